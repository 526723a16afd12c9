"""The parts of all built-in models: normalization layers, activations, their order, and initialisation.

Models are always built with torch's own batch normalization; the worker converts it afterwards with `norm.convert`, so
that built-in models and a user's own take the same path. For that, every norm and every activation is a registered
module of its own, none is shared, none works in place, and they are registered in the order of execution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from syncnorm.norm.kind import KINDS
from syncnorm.trainer.contract.spec import NormSpec

DataTask = Literal["classification", "segmentation"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
}
_BATCH_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_UP_CONVS: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_MAX_POOLS: dict[int, type[nn.Module]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_GLOBAL_POOLS: dict[int, type[nn.Module]] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


@dataclass(frozen=True)
class Layers:
    """Builds the layers of one model. dims: spatial dimensions, 1 to 3 (1 also for (N, C) features)."""

    norm: NormSpec
    activation: str = "relu"
    dims: int = 2

    @property
    def norm_first(self) -> bool:
        return self.norm.placement == "before"

    @property
    def bias(self) -> bool:
        """Whether a convolution or linear layer in front of a norm has one: not where each norm subtracts it again."""
        kinds = [self.norm.kind, *(override.kind for override in self.norm.overrides)]
        return not (self.norm_first and all(kind in KINDS and KINDS[kind].centers for kind in kinds))

    def batch_norm(self, channels: int) -> nn.Module:
        settings = {"eps": self.norm.eps, "momentum": self.norm.momentum, "affine": self.norm.affine}
        return _BATCH_NORMS[self.dims](channels, **{name: one for name, one in settings.items() if one != "keep"})

    def act(self) -> nn.Module:
        return _ACTIVATIONS[self.activation]()

    def norm_act(self, channels: int) -> list[nn.Module]:
        """A norm and an activation in the order that `norm.placement` asks for."""
        pair = [self.batch_norm(channels), self.act()]
        return pair if self.norm_first else pair[::-1]

    def conv(self, c_in: int, c_out: int, size: int, *, stride: int = 1, bias: bool) -> nn.Module:
        """Zero-padded, so that stride 1 keeps the size of the image."""
        return _CONVS[self.dims](c_in, c_out, size, stride=stride, padding=size // 2, bias=bias)

    def up_conv(self, c_in: int, c_out: int, *, bias: bool) -> nn.Module:
        """Doubles each side of the image."""
        return _UP_CONVS[self.dims](c_in, c_out, 2, stride=2, bias=bias)

    def halve(self) -> nn.Module:
        return _MAX_POOLS[self.dims](2)

    def global_pool(self) -> nn.Module:
        return _GLOBAL_POOLS[self.dims](1)


def add_norm_act(module: nn.Module, layers: Layers, suffix: str, channels: int) -> None:
    """Register `bn{suffix}` and `act{suffix}` on `module`, in the order in which they run."""
    parts = [("bn", layers.batch_norm(channels)), ("act", layers.act())]
    for prefix, part in parts if layers.norm_first else parts[::-1]:
        module.add_module(prefix + suffix, part)


def norm_then_act(x: Tensor, norm: nn.Module, act: nn.Module) -> Tensor:
    out: Tensor = act(norm(x))
    return out


def act_then_norm(x: Tensor, norm: nn.Module, act: nn.Module) -> Tensor:
    out: Tensor = norm(act(x))
    return out


def initialize(model: nn.Module) -> None:
    """Convolutions after He et al. 2015, arXiv:1502.01852 (fan-out), their biases 0; the rest as torch has it."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
