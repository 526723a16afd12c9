"""The table of normalization kinds: names, traits, options, papers. Free of torch, so that a service can read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Value = bool | int | float | str | None


@dataclass(frozen=True)
class Option:
    """One setting that a kind alone has, e.g. `num_groups`."""

    default: Value
    types: tuple[type, ...]
    doc: str
    minimum: float | None = None
    choices: tuple[str, ...] = ()
    largest: float = 1e12
    """Either side of 0."""

    def problem(self, value: object) -> str | None:
        """Why `value` can't be taken, or None if it can."""
        if isinstance(value, str) and self.choices and str in self.types:
            return None if value in self.choices else f"must be one of {list(self.choices)}, got {value!r}"
        if isinstance(value, bool) and bool not in self.types:
            return f"must be {self.expected()}, got {value!r}"
        if isinstance(value, int) and float in self.types:
            value = float(value)
        if not isinstance(value, self.types) and not (value is None and self.default is None):
            return f"must be {self.expected()}, got {value!r}"
        if self.minimum is not None and isinstance(value, int | float) and value < self.minimum:
            return f"must be at least {self.minimum:g}, got {value!r}"
        if isinstance(value, int | float) and not abs(value) <= self.largest:
            return f"must lie between -{self.largest:g} and {self.largest:g}, got {value!r}"
        return None

    def expected(self) -> str:
        names = [repr(choice) for choice in self.choices]
        names += [kind.__name__ for kind in self.types if not (kind is str and self.choices)]
        if self.default is None:
            names.append("null")
        return " or ".join(names)


@dataclass(frozen=True)
class Kind:
    """What is true of a normalization, whatever network it sits in.

    batch_statistics: in training the output of one sample depends on the others.
    running_statistics: keeps running_mean and running_var for inference.
    synchronizes: exchanges statistics between the workers of a process group.
    foldable: can be absorbed exactly into a neighbouring convolution or linear layer for inference.
    sample_statistics: takes statistics of each sample by itself, at inference too, so that the output depends on how
        much of a picture it sees.
    centers: subtracts the mean of each channel, so that a bias right before it does nothing; of several channels
        together, as group does, leaves their biases' differences.
    scope: `layer` replaces a layer; `weights` reparametrizes the layer before and drops the norm;
        `network` converts a whole network (residual branches, initialisation).

    >>> norm.KINDS["sync_batch"].paper
    'Ioffe & Szegedy 2015, arXiv:1502.03167; Peng et al. 2018 (MegDet), arXiv:1711.07240'
    """

    name: str
    summary: str
    paper: str
    batch_statistics: bool = False
    running_statistics: bool = False
    synchronizes: bool = False
    foldable: bool = False
    sample_statistics: bool = False
    centers: bool = False
    scope: Literal["layer", "weights", "network"] = "layer"
    dims: tuple[int, ...] = (1, 2, 3)
    options: Mapping[str, Option] = field(default_factory=dict)


_RENORM = {
    "r_max": Option(3.0, (float,), "largest factor by which the batch std may be corrected", 1.0),
    "d_max": Option(5.0, (float,), "largest shift, in running stds", 0.0),
    "warmup_steps": Option(5000, (int,), "steps of plain batch normalization at the start", 0),
    "r_max_steps": Option(40000, (int,), "step at which r_max is reached", 0),
    "d_max_steps": Option(25000, (int,), "step at which d_max is reached", 0),
}

_GROUPS = Option(
    "auto",
    (int, str),
    "channel groups; auto: the largest divisor of the channels up to 32 that leaves two channels a group",
    1,
    ("auto",),
)


def _table(*kinds: Kind) -> Mapping[str, Kind]:
    return {kind.name: kind for kind in kinds}


KINDS: Mapping[str, Kind] = _table(
    Kind("none", "no normalization; the layers are removed", "-", foldable=True),
    Kind(
        "batch",
        "batch normalization over one worker's samples",
        "Ioffe & Szegedy 2015, arXiv:1502.03167",
        batch_statistics=True,
        running_statistics=True,
        foldable=True,
        centers=True,
    ),
    Kind(
        "sync_batch",
        "batch normalization over the samples of all workers of a group",
        "Ioffe & Szegedy 2015, arXiv:1502.03167; Peng et al. 2018 (MegDet), arXiv:1711.07240",
        batch_statistics=True,
        running_statistics=True,
        synchronizes=True,
        foldable=True,
        centers=True,
    ),
    Kind(
        "frozen_batch",
        "batch normalization with fixed statistics and affine",
        "He et al. 2017 (Mask R-CNN), arXiv:1703.06870",
        running_statistics=True,
        foldable=True,
    ),
    Kind(
        "batch_renorm",
        "batch normalization corrected towards the running statistics",
        "Ioffe 2017, arXiv:1702.03275",
        batch_statistics=True,
        running_statistics=True,
        foldable=True,
        centers=True,
        options=_RENORM,
    ),
    Kind(
        "sync_batch_renorm",
        "batch renormalization over the samples of all workers of a group",
        "Ioffe 2017, arXiv:1702.03275",
        batch_statistics=True,
        running_statistics=True,
        synchronizes=True,
        foldable=True,
        centers=True,
        options=_RENORM,
    ),
    Kind(
        "ghost_batch",
        "batch normalization over chunks of one worker's samples",
        "Hoffer et al. 2017, arXiv:1705.08741",
        batch_statistics=True,
        running_statistics=True,
        foldable=True,
        centers=True,
        options={"ghost_size": Option(16, (int,), "samples that share statistics", 1)},
    ),
    Kind(
        "noisy_batch",
        "batch normalization followed by non-stationary noise",
        "Santurkar et al. 2018, arXiv:1805.11604, appendix A",
        batch_statistics=True,
        running_statistics=True,
        foldable=True,
        centers=True,
    ),
    Kind(
        "group",
        "normalization over groups of channels of one sample",
        "Wu & He 2018, arXiv:1803.08494",
        sample_statistics=True,
        options={"num_groups": _GROUPS},
    ),
    Kind(
        "layer",
        "normalization over all channels and positions of one sample",
        "Ba et al. 2016, arXiv:1607.06450",
        sample_statistics=True,
    ),
    Kind(
        "instance",
        "normalization over the positions of one channel of one sample",
        "Ulyanov et al. 2016, arXiv:1607.08022",
        sample_statistics=True,
        centers=True,
    ),
    Kind(
        "weight",
        "weights as length times direction; the norm layers are removed",
        "Salimans & Kingma 2016, arXiv:1602.07868",
        foldable=True,
        scope="weights",
    ),
    Kind(
        "weight_standardization",
        "weights standardized per output channel, followed by group normalization",
        "Qiao et al. 2019, arXiv:1903.10520",
        foldable=True,
        sample_statistics=True,
        scope="weights",
        options={"num_groups": _GROUPS},
    ),
    Kind(
        "filter_response",
        "filter response normalization with a thresholded linear unit",
        "Singh & Krishnan 2019, arXiv:1911.09737",
        sample_statistics=True,
    ),
    Kind(
        "evo_s0",
        "EvoNorm-S0: normalization and activation in one, without batch statistics",
        "Liu et al. 2020, arXiv:2004.02967",
        sample_statistics=True,
        options={"num_groups": _GROUPS},
    ),
    Kind(
        "selu",
        "self-normalizing network: SELU, LeCun initialisation, alpha dropout; the norm layers are removed",
        "Klambauer et al. 2017, arXiv:1706.02515",
        foldable=True,
        scope="network",
    ),
    Kind(
        "fixup",
        "residual network without normalization, by rescaled initialisation",
        "Zhang et al. 2019, arXiv:1901.09321",
        foldable=True,
        scope="network",
    ),
    Kind(
        "box_cox",
        "Box-Cox transform with one learnable exponent a layer, without statistics",
        "Box & Cox 1964, J. R. Stat. Soc. B 26(2)",
        options={"lambda_init": Option(2.0, (float,), "the exponent at the start")},
    ),
)


def kinds() -> dict[str, Kind]:
    """Every normalization by name, with its traits.

    >>> kinds()["group"].options["num_groups"].default
    'auto'
    >>> [name for name, kind in kinds().items() if kind.foldable and not kind.running_statistics]
    ['none', 'weight', 'weight_standardization', 'selu', 'fixup']
    """
    return dict(KINDS)


def smallest_share(samples: int, workers: int, group: int) -> int:
    """Samples behind a statistic of the group that has fewest, of those that have any.

    `samples` are spread over the workers in rank order as evenly as possible; `group` neighbours share statistics.

    >>> smallest_share(5, 4, 1), smallest_share(3, 4, 2), smallest_share(3, 4, 4)
    (1, 1, 3)
    """
    base, extra = divmod(samples, workers)
    if base:
        return group * base + max(0, extra - (workers - group))
    return extra % group or group
