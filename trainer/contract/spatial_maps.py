"""Facts about networks and data from the spec alone: the smallest map, the number of samples, windows.

Pure, pydantic only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from syncnorm.trainer.contract.catalog.names import DATASETS, MODELS
from syncnorm.trainer.contract.spec import JobSpec


def smallest_map(spec: JobSpec) -> int | None:
    """Positions of the smallest map a normalization layer sees; 1 for vectors; None for models or data of one's own,
    and for images of any size.

    tests/trainer/contract/test_norm_choice.py holds it against what the layers see.
    """
    if spec.model.name not in MODELS or spec.data.name not in DATASETS or spec.data.name == "coco":
        return None
    if spec.model.name in ("mlp", "lstm"):
        return 1
    sides = _image(spec.data.name, DATASETS[spec.data.name].model_validate(spec.data.init_args))
    args = MODELS[spec.model.name].model_validate(spec.model.init_args)
    return math.prod(
        _halve(side, times, up=up) for side in sides for times, up in [_halvings(spec.model.name, args, sides)]
    )


def _image(name: str, args: Any) -> Sequence[int]:
    """Sides of a sample."""
    if name == "digits":
        return (8, 8)
    if name == "synthetic":
        return tuple(args.shape[1:])
    if name == "nifti":
        return tuple(args.patch)
    return (args.size,) * getattr(args, "dims", 2)


def _halvings(name: str, args: Any, sides: Sequence[int]) -> tuple[int, bool]:
    """(how often a side is halved, whether halves are rounded up)."""
    if name == "resnet":
        return (5, True) if args.depth in (18, 34, 50) else (2, True)
    if name == "unet":
        return args.depth, False
    stages = 5 if name == "vgg" else len(args.channels)
    room = max(0, int(math.log2(min(sides))) - 1)  # a side below 4 is not halved any more
    return min(stages - 1, room), False


def _halve(side: int, times: int, *, up: bool) -> int:
    for _ in range(times):
        side = (side + 1) // 2 if up else side // 2
    return side


def uses_windows(spec: JobSpec) -> str | None:
    """The field of the spec by which a network runs over parts of a sample in validation, such as the windows of
    monai.inferers.SlidingWindowInferer; None if it sees whole samples."""
    if (inferer := spec.model.inferer) is not None:
        name = inferer.class_path.rpartition(".")[2]
        return "model.inferer" if _PARTS_OF_SAMPLES.search(name) else None
    return "data" if spec.data.name in _VALIDATED_BY_WINDOWS else None


_PARTS_OF_SAMPLES = re.compile("window|patch|tile|slice", re.IGNORECASE)
_VALIDATED_BY_WINDOWS = ("nifti",)
"""Built-in data whose validation samples are larger than those of training."""


def train_samples(spec: JobSpec) -> int | None:
    """How many samples training has; None for data that would have to be read.

    tests/trainer/contract/test_norm_choice.py compares it with the data.
    """
    if spec.data.name not in DATASETS:
        return None
    args: Any = DATASETS[spec.data.name].model_validate(spec.data.init_args)
    if spec.data.name == "digits":
        held_out = [min(max(round(count * args.val_fraction), 1), count - 1) for count in _DIGITS]
        return sum(_DIGITS) - int(sum(held_out))
    if spec.data.name == "synthetic":
        return int(args.samples)
    return int(args.scenes) if spec.data.name == "digit_scenes" else None


_DIGITS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
"""Images of each of the ten digits."""
