"""What a module does to each value by itself: nothing, an activation or a gate; for classes of anybody."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from syncnorm.norm.modules import copy_without_hooks

Effect = Literal["identity", "activation", "gate"]
"""identity: hands its input on in eval mode, as dropout does. gate: its outputs lie in [0, 1]."""

# A normalization with an activation of its own, or SELU, can stand for these.
ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
    nn.Hardtanh,
    nn.LogSigmoid,
    nn.Threshold,
    nn.Tanhshrink,
    nn.Softshrink,
    nn.Hardshrink,
)
GATES = (nn.Sigmoid, nn.Hardsigmoid)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_KNOWN: dict[type[nn.Module], Effect] = {
    **dict.fromkeys(ACTIVATIONS, "activation"),
    **dict.fromkeys(GATES, "gate"),
    **dict.fromkeys((nn.Identity, *DROPOUTS), "identity"),
}
_POSITIONS = 4
_LARGEST = 30.0


def effect(module: nn.Module, num_features: int | None = None, dims: int | None = None) -> Effect | None:
    """The effect of `module` on each value; None if it is no elementwise function, is affine, or can't be told.

    Torch's classes are known. A module of another class, such as a subclass of nn.ReLU or a Swish, runs on inputs made
    up here, (2, num_features, *) with `dims` spatial dimensions, as a copy on the CPU, in train and in eval mode. It is
    elementwise if other values at some positions leave the outputs at all other positions bit for bit as they were. It
    must have no parts, no parameter longer than the channels, and change no buffer: then it mixes and keeps nothing
    that these inputs could miss.
    """
    if type(module) in _KNOWN or type(module).__module__.startswith("torch.nn."):
        return _KNOWN.get(type(module))
    sizes = {parameter.numel() for parameter in module.parameters()} - {1}
    if (
        next(module.children(), None) is not None
        or len(sizes) > 1
        or (num_features is not None and sizes - {num_features})
    ):
        return None
    channels = num_features or next(iter(sizes), _POSITIONS)
    try:
        return _measured(copy_without_hooks(module), (2, channels, *[_POSITIONS] * (dims or 2)))
    except Exception:  # code of somebody else, on values that it may not be made for
        return None


def _measured(module: nn.Module, shape: tuple[int, ...]) -> Effect | None:
    module.to(device="cpu", dtype=torch.float32)
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
        torch.default_generator.manual_seed(0)
        x, other = (torch.rand(shape, device="cpu") * 2 * _LARGEST - _LARGEST for _ in range(2))
        x.view(-1)[::2] /= _LARGEST  # most activations bend near 0
        masks = [torch.rand(shape, device="cpu") < share for share in (0.5, 0.1, 0.9)]
        if not all(_is_local(module.train(mode), x, other, masks) for mode in (True, False)):
            return None
        if not all(torch.equal(value, buffers[name]) for name, value in module.named_buffers()):
            return None
        y = _run(module, x)
        if torch.equal(y, x):
            return "identity"
        if not bool(y.isfinite().all()) or _is_affine(module, x, other):
            return None
        return "gate" if bool(((y >= 0) & (y <= 1)).all()) else "activation"


def _is_local(module: nn.Module, x: Tensor, other: Tensor, masks: list[Tensor]) -> bool:
    """Whether each output depends on the input at its position alone. Draws are the same in every run."""
    y = _run(module, x)
    return y.shape == x.shape and all(
        torch.equal(_run(module, torch.where(mask, other, x))[~mask], y[~mask]) for mask in masks
    )


def _is_affine(module: nn.Module, x: Tensor, other: Tensor) -> bool:
    ends, middle = _run(module, x) + _run(module, other), _run(module, (x + other) / 2)
    return torch.allclose(middle, ends / 2, rtol=1e-4, atol=1e-4)


def _run(module: nn.Module, x: Tensor) -> Tensor:
    torch.default_generator.manual_seed(0)
    y = module(x.clone())
    if not isinstance(y, Tensor):
        raise TypeError(f"{type(module).__name__} gives a {type(y).__name__}")
    return y
