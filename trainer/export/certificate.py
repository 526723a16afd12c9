"""Is the exported model the trained one? Pure comparison of outputs, and the document that records it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from syncnorm.trainer.export.detectors.box_sets import box_sets, difference

# Folding and other runtimes reorder fp32 sums: differences of some 1e-6 of a sample's largest output are rounding.
# A wrong statistic or a lost activation moves outputs by percents. 1e-4 lies between with room on both sides.
MAX_RELATIVE_DIFFERENCE = 1e-4

# A sample whose outputs happen to lie near zero, as one of a regression may, has no scale of its own: its rounding is
# that of the sums behind it, which are as large as those of other samples.
LEAST_SCALE = 0.1

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Check:
    """One runtime against the trained model on one set of inputs.

    max_rel: over the samples, the largest of max|candidate - trained| / s, where s is max|trained| of the sample, or
        LEAST_SCALE of its median over the samples where that is larger. max_abs and max_rel are None where there is
        nothing to compare: another shape, or outputs that are not finite.
    leaf: of several outputs, the one that differs most, such as `['out']`; empty for a single tensor.
    """

    runtime: str
    inputs: str
    samples: int
    max_abs: float | None
    max_rel: float | None
    passed: bool
    leaf: str = ""


def compare_outputs(
    runtime: str, inputs: str, batches: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]
) -> Check:
    """The worst of all outputs of all batches, each a pair of the trained model's and the candidate's."""
    checks = [check for trained, candidate in batches for check in _of_batch(runtime, inputs, trained, candidate)]
    worst = max(checks, key=lambda check: float("inf") if check.max_rel is None else check.max_rel)
    samples = sum(len(box_sets(trained)) or len(next(iter(trained.values()))) for trained, _ in batches)
    return replace(worst, samples=samples, passed=all(check.passed for check in checks))


def _of_batch(runtime: str, inputs: str, trained: Mapping[str, Array], candidate: Mapping[str, Array]) -> list[Check]:
    if trained.keys() != candidate.keys():
        other = ", ".join(sorted(trained.keys() ^ candidate.keys()))
        return [Check(runtime, inputs, 0, None, None, False, other)]
    if found := box_sets(trained):
        others = box_sets(candidate)
        return [_of_boxes(runtime, inputs, place, difference(one, others[place])) for place, one in found.items()]
    return [replace(compare(runtime, inputs, output, candidate[leaf]), leaf=leaf) for leaf, output in trained.items()]


def _of_boxes(runtime: str, inputs: str, place: str, apart: tuple[float, float] | None) -> Check:
    """apart: absolute and relative difference of the boxes and scores of an image; None: one set has another box."""
    if apart is None:
        return Check(runtime, inputs, 1, None, None, False, place)
    return Check(runtime, inputs, 1, *apart, apart[1] <= MAX_RELATIVE_DIFFERENCE, place)


def compare(runtime: str, inputs: str, trained: Array, candidate: Array) -> Check:
    """Compare `candidate` outputs with `trained` ones, both (N, ...). Non-finite values or another shape never pass."""
    if trained.size == 0 and trained.shape == candidate.shape:
        return Check(runtime, inputs, len(trained), 0.0, 0.0, True)
    if trained.shape != candidate.shape or not (np.isfinite(trained).all() and np.isfinite(candidate).all()):
        return Check(runtime, inputs, len(trained), None, None, False)
    a = trained.reshape(len(trained), -1).astype(np.float64)
    b = candidate.reshape(len(candidate), -1).astype(np.float64)
    difference = np.abs(a - b).max(axis=1)
    scale = np.abs(a).max(axis=1)
    typical = float(np.median(scale)) or float(scale.max())
    scale = np.maximum(scale, max(LEAST_SCALE * typical, float(np.finfo(np.float32).tiny)))
    max_rel = float((difference / scale).max())
    return Check(runtime, inputs, len(a), float(difference.max()), max_rel, max_rel <= MAX_RELATIVE_DIFFERENCE)


def passed(checks: list[Check]) -> bool:
    """Whether there is at least one check, and all of them pass."""
    return bool(checks) and all(check.passed for check in checks)


def document(*, job_id: str, checks: list[Check], files: dict[str, str], facts: dict[str, Any]) -> dict[str, Any]:
    """The content of export/certificate.json. files: sha256 by name; facts: further parts of the certificate."""
    return {
        "job_id": job_id,
        "passed": passed(checks),
        "max_relative_difference": max((check.max_rel for check in checks if check.max_rel is not None), default=None),
        "tolerance": {
            "max_relative_difference": MAX_RELATIVE_DIFFERENCE,
            "meaning": "largest over samples and outputs of max|exported - trained| / max|trained|; a sample is "
            "taken to be at least a tenth as large as the median one",
        },
        "checks": [asdict(check) for check in checks],
        "files": files,
        "versions": _versions(),
        **facts,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("syncnorm", "torch", "lightning", "ray", "mlflow", "onnx", "onnxruntime", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
