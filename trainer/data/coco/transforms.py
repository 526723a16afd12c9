"""Changes of an image together with its boxes and masks: mirroring, and transforms of torchvision by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from syncnorm.trainer.contract.catalog.detection_args import TransformArgs

Target = dict[str, Any]
Transform = Callable[[Tensor, Target, int], tuple[Tensor, Target]]
"""(image, target, seed) -> the same, changed."""


def mirrored(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Left and right exchanged."""
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    changed = target | {"boxes": boxes}
    if "masks" in target:
        changed["masks"] = target["masks"].flip(-1)
    return image.flip(-1), changed


def transforms_of(named: Sequence[TransformArgs]) -> list[Transform]:
    """Raises: ValueError naming the field where torchvision has no such transform, or refuses its arguments."""
    return [_transform(f"data.init_args.transforms.{place}", one) for place, one in enumerate(named)]


def _transform(where: str, args: TransformArgs) -> Transform:
    try:
        v2 = importlib.import_module("torchvision.transforms.v2")
    except Exception as error:  # a torchvision that does not match torch raises RuntimeError
        raise ValueError(
            f"{where} needs torchvision, which can't be imported here: {error}. Install the extra: pip install "
            "'syncnorm[vision]'."
        ) from error
    made = getattr(v2, args.name, None)
    if not isinstance(made, type) or not issubclass(made, v2.Transform):
        raise ValueError(f"{where}.name must be a class of torchvision.transforms.v2, got {args.name!r}.")
    try:
        return _BoxTransform(made(**args.init_args))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}.init_args must fit torchvision's {args.name}: {error}") from error


class _BoxTransform:
    """Draws from a seed, and leaves torch's own generator as it was. Objects whose box has no area left are dropped."""

    def __init__(self, transform: Any) -> None:
        self._transform = transform

    def __call__(self, image: Tensor, target: Target, seed: int) -> tuple[Tensor, Target]:
        from torchvision import tv_tensors

        given: Target = {"labels": target["labels"]}
        given["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.shape[-2:])
        if "masks" in target:
            given["masks"] = tv_tensors.Mask(target["masks"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            changed, found = self._transform(tv_tensors.Image(image), given)
        boxes = _within(found["boxes"].as_subclass(Tensor), changed.shape[-1], changed.shape[-2])
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        found = {name: value.as_subclass(Tensor)[kept] for name, value in (found | {"boxes": boxes}).items()}
        return changed.as_subclass(Tensor), target | found


def _within(boxes: Tensor, width: int, height: int) -> Tensor:
    most = torch.tensor([width, height, width, height], dtype=boxes.dtype)
    return boxes.clamp(min=0).minimum(most)
