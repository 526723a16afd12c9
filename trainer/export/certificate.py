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

# Some networks multiply rounding: those with statistics far from zero and a small spread, flows, deep ones without
# normalization. The trained network against itself in fp64 shows by how much. The exported one rounds as well, in
# another order. At most ten times as much is allowed: still less than a wrong statistic moves outputs by.
ROUNDINGS_ALLOWED = 4
MOST_ALLOWED = 1e-3

# A sample whose outputs happen to lie near zero, as one of a regression may, has no scale of its own: its rounding is
# that of the sums behind it, which are as large as those of other samples.
LEAST_SCALE = 0.1

# Whole numbers and booleans, such as classes and masks, are decisions on values that rounding moves. Where one lies on
# its border, as the sample does that a threshold was chosen by, another runtime may decide the other way.
MAX_DIFFERING_DECISIONS = 1e-3

Array = NDArray[Any]


@dataclass(frozen=True)
class Check:
    """One runtime against the trained model on one set of inputs.

    max_rel: over the samples, the largest of max|candidate - trained| / s, where s is max|trained| of the sample, or
        LEAST_SCALE of its median over the samples where that is larger. max_abs and max_rel are None where there is
        nothing to compare: another shape, or outputs that are not finite. For decisions above what is allowed,
        max_rel is the share of those that differ.
    differing: decisions that differ, of all outputs.
    leaf: of several outputs, the one that differs most, such as `['out']`; empty for a single tensor.
    """

    runtime: str
    inputs: str
    samples: int
    max_abs: float | None
    max_rel: float | None
    passed: bool
    leaf: str = ""
    differing: int = 0


Answers = Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]
"""For each batch, the outputs of the trained model and of another."""


def rounding(answers: Answers) -> float | None:
    """What rounding alone does to outputs, as a relative difference, decisions left aside. None where that can't be
    said: an output has another shape, or is not finite.

    answers: those of the trained model and of the same in fp64.
    """
    checks = [check for trained, exact in answers for check in _of_batch("fp64", "", trained, exact, MOST_ALLOWED)]
    measured = [check.max_rel for check in checks if check.max_rel is not None]
    return max(measured) if measured and len(measured) == len(checks) else None


def allowed(rounding: float | None) -> float:
    """The relative difference that a check may have. rounding: see there; None: not measured."""
    return min(max(MAX_RELATIVE_DIFFERENCE, ROUNDINGS_ALLOWED * (rounding or 0.0)), MOST_ALLOWED)


def compare_outputs(runtime: str, inputs: str, batches: Answers, most: float = MAX_RELATIVE_DIFFERENCE) -> Check:
    """The worst of all outputs of all batches. most: the relative difference that is allowed."""
    checks = [check for trained, candidate in batches for check in _of_batch(runtime, inputs, trained, candidate, most)]
    checks += _of_decisions(runtime, inputs, batches)
    worst = max(checks, key=lambda check: float("inf") if check.max_rel is None else check.max_rel)
    samples = sum(len(box_sets(trained)) or len(next(iter(trained.values()))) for trained, _ in batches)
    differing = sum(check.differing for check in checks)
    return replace(worst, samples=samples, passed=all(check.passed for check in checks), differing=differing)


def _of_batch(
    runtime: str, inputs: str, trained: Mapping[str, Array], candidate: Mapping[str, Array], most: float
) -> list[Check]:
    if trained.keys() != candidate.keys():
        other = ", ".join(sorted(trained.keys() ^ candidate.keys()))
        return [Check(runtime, inputs, 0, None, None, False, other)]
    if found := box_sets(trained):
        others = box_sets(candidate)
        return [_of_boxes(runtime, inputs, place, difference(one, others[place]), most) for place, one in found.items()]
    return [
        replace(compare(runtime, inputs, output, candidate[leaf], most), leaf=leaf)
        for leaf, output in trained.items()
        if not _is_decision(output) or output.shape != candidate[leaf].shape
    ]


def _is_decision(output: Array) -> bool:
    return output.dtype.kind in "biu"


def _of_decisions(runtime: str, inputs: str, batches: Answers) -> list[Check]:
    """One check for each output of decisions, over all batches. Other shapes are left to `compare`, boxes to
    `_of_boxes`."""
    comparable = [(one, other) for one, other in batches if one.keys() == other.keys() and not box_sets(one)]
    outputs = comparable[0][0] if comparable else {}
    has_values = not all(map(_is_decision, outputs.values()))
    checks = []
    for leaf in (leaf for leaf, output in outputs.items() if _is_decision(output)):
        pairs = [(one[leaf], other[leaf]) for one, other in comparable if one[leaf].shape == other[leaf].shape]
        size, differing = sum(one.size for one, _ in pairs), sum(int((one != other).sum()) for one, other in pairs)
        # Few of many, or one where values that lead to it are outputs, too, and agree.
        passes = differing <= max(int(has_values), MAX_DIFFERING_DECISIONS * size)
        max_rel = 0.0 if passes else differing / size
        checks.append(Check(runtime, inputs, 0, float(differing > 0), max_rel, passes, leaf, differing))
    return checks


def _of_boxes(runtime: str, inputs: str, place: str, apart: tuple[float, float] | None, most: float) -> Check:
    """apart: absolute and relative difference of the boxes and scores of an image; None: one set has another box."""
    if apart is None:
        return Check(runtime, inputs, 1, None, None, False, place)
    return Check(runtime, inputs, 1, *apart, apart[1] <= most, place)


def compare(
    runtime: str, inputs: str, trained: Array, candidate: Array, most: float = MAX_RELATIVE_DIFFERENCE
) -> Check:
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
    return Check(runtime, inputs, len(a), float(difference.max()), max_rel, max_rel <= most)


def passed(checks: list[Check]) -> bool:
    """Whether there is at least one check, and all of them pass."""
    return bool(checks) and all(check.passed for check in checks)


def document(
    *, job_id: str, checks: list[Check], files: dict[str, str], facts: dict[str, Any], rounding: float | None = None
) -> dict[str, Any]:
    """The content of export/certificate.json. files: sha256 by name; facts: further parts of the certificate."""
    return {
        "job_id": job_id,
        "passed": passed(checks),
        "max_relative_difference": max((check.max_rel for check in checks if check.max_rel is not None), default=None),
        "tolerance": {
            "max_relative_difference": allowed(rounding),
            "rounding": rounding,
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
