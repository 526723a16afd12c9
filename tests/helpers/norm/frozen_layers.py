"""Frozen batch normalization as libraries define it that need not be installed, and lookalikes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _FourBuffers(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def columns(self) -> Iterator[Tensor]:
        return (getattr(self, name).reshape(1, -1, 1, 1) for name in ("weight", "bias", "running_mean", "running_var"))

    def scaled(self, x: Tensor, eps: float) -> Tensor:
        weight, bias, mean, var = self.columns()
        scale = weight * (var + eps).rsqrt()
        return x * scale + (bias - mean * scale)


class FrozenBatchNorm2d(_FourBuffers):
    """torchvision: eps is an attribute, there is no num_features, and a counter in the state_dict is dropped."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        self.eps = eps

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x, self.eps)


class DetrFrozenBatchNorm2d(_FourBuffers):
    """Hugging Face: eps is a constant in forward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x, 1e-5)


def _of_detectron2() -> type[nn.Module]:
    class FrozenBatchNorm2d(_FourBuffers):
        """Detectron2: the variance starts at 1 - eps, so that a new layer changes nothing."""

        def __init__(self, num_features: int, eps: float = 1e-5) -> None:
            super().__init__(num_features)
            self.num_features, self.eps = num_features, eps
            self.running_var -= eps

        def forward(self, x: Tensor) -> Tensor:
            weight, bias, mean, var = (
                self.get_buffer(name) for name in ("weight", "bias", "running_mean", "running_var")
            )
            return F.batch_norm(x, mean, var, weight, bias, training=False, eps=self.eps)

    return FrozenBatchNorm2d


def _without_eps() -> type[nn.Module]:
    class FrozenBatchNorm2d(_FourBuffers):
        """maskrcnn-benchmark: no eps."""

        def forward(self, x: Tensor) -> Tensor:
            return self.scaled(x, 0.0)

    return FrozenBatchNorm2d


LIBRARIES: Mapping[str, tuple[Callable[[int], nn.Module], float]] = {
    "torchvision": (FrozenBatchNorm2d, 1e-5),
    "torchvision, another eps": (lambda channels: FrozenBatchNorm2d(channels, eps=3e-3), 3e-3),
    "Hugging Face": (DetrFrozenBatchNorm2d, 1e-5),
    "Detectron2": (_of_detectron2(), 1e-5),
    "maskrcnn-benchmark": (_without_eps(), 0.0),
}
"""A layer of so many channels, and its eps."""


class EpsOutsideFrozenBatchNorm2d(_FourBuffers):
    """eps is added to the root, not below it."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = self.columns()
        return (x - mean) / (var.sqrt() + 1e-5) * weight + bias


class OneMoreFrozenBatchNorm2d(_FourBuffers):
    """The scale is 1 + weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight, _, _, _ = self.columns()
        return self.scaled(x, 1e-5) * (1 + weight) / weight


class FrozenBatchNormReLU2d(FrozenBatchNorm2d):
    """An activation inside."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class OnlyInEvalFrozenBatchNorm2d(_FourBuffers):
    """Takes the statistics of the batch in training."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (self.get_buffer(name) for name in ("weight", "bias", "running_mean", "running_var"))
        return F.batch_norm(x, mean, var, weight, bias, self.training, 0.1, 1e-5)


class TrainableFrozenBatchNorm2d(FrozenBatchNorm2d):
    """Scale and shift are trained."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        for name in ("weight", "bias"):
            value = self.get_buffer(name)
            delattr(self, name)
            self.register_parameter(name, nn.Parameter(value))


class FrozenFeatures(_FourBuffers):
    """Computes the formula by chance: nothing in its name says that it is a normalization."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x, 1e-5)


LOOKALIKES: Sequence[type[_FourBuffers]] = (
    EpsOutsideFrozenBatchNorm2d,
    OneMoreFrozenBatchNorm2d,
    FrozenBatchNormReLU2d,
    OnlyInEvalFrozenBatchNorm2d,
    TrainableFrozenBatchNorm2d,
)


def randomized(model: nn.Module) -> nn.Module:
    """With buffers as after training: no two channels alike, and some variances as small as eps."""
    with torch.no_grad():
        for name, value in (*model.named_buffers(), *model.named_parameters()):
            if name.endswith("running_var"):
                value.copy_(torch.logspace(-5, 0.5, len(value)))
            elif value.dim() == 1:
                value.copy_(torch.rand(len(value)) + (0.5 if name.endswith("weight") else -0.5))
    return model
