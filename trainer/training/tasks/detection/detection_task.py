"""Training and validation of a detector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.trainer.data.info import Data, DataInfo
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.training.tasks.detection.average_precision import PrecisionScores
from syncnorm.trainer.training.tasks.detection.loss_means import LossMeans
from syncnorm.trainer.training.tasks.detection.loss_shares import UNCOUNTED, unknown_losses, weighted_losses
from syncnorm.trainer.training.tasks.detection.prediction_pictures import drawn_predictions

FOUND = ("boxes", "labels", "scores")


def require_predictions(network: nn.Module, output: Any) -> None:
    """Raises: ValueError if `output` of eval mode is not what a detector finds, image by image."""
    is_of_images = isinstance(output, list | tuple) and all(isinstance(one, Mapping) for one in output)
    if not is_of_images or any(name not in one for one in output for name in FOUND):
        raise ValueError(
            f"a network for detection must give a dict with {', '.join(FOUND)} for each image in eval mode, but "
            f"{type(network).__name__} gave a {type(output).__name__}. Use a detector, such as "
            "torchvision/fasterrcnn_resnet50_fpn."
        )


@dataclass(frozen=True)
class DetectionTask:
    """For networks that take a list of images: in training with targets, and give losses by name; in eval mode alone,
    and give `boxes`, `labels` and `scores` of each image, and `masks` if they find any."""

    info: DataInfo

    @property
    def score(self) -> str:
        return "map"

    def step(self, network: nn.Module, batch: Batch, scores: LossMeans | None) -> Tensor:
        losses = weighted_losses(network, batch)
        if scores is not None:
            scores.update(losses, batch)
        return torch.stack(list(losses.values())).sum()

    def count(self, network: nn.Module, batch: Batch, scores: PrecisionScores) -> None:
        """Image by image: what a detector finds in one then depends on no other, nor on how many workers there are."""
        images, targets = batch.data
        for image, target in zip(images, targets, strict=True):
            (found,) = network([image])
            scores.update(found, target, image.shape[-2:])

    def scores(self, stage: str) -> nn.Module:
        return LossMeans(stage) if stage == "train" else PrecisionScores(self.info.categories)

    def to(self, device: torch.device, dtype: torch.dtype) -> DetectionTask:  # noqa: ARG002 - it keeps nothing
        return self

    def deviations(self, network: nn.Module) -> Iterator[str]:
        if not unknown_losses(network):
            return
        yield UNCOUNTED.format(type(network).__name__)

    def pictures(self, network: nn.Module, data: Data) -> Iterator[tuple[str, bytes]]:
        return drawn_predictions(network, data)
