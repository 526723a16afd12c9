"""Frozen batch normalization of other libraries, recognized without importing them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_NAME = re.compile(r"Frozen_?(?:BatchNorm|BN)_?(?P<dims>[123])?", re.IGNORECASE)
_TENSORS = {"weight", "bias", "running_mean", "running_var"}
_COUNTER = "num_batches_tracked"
# From the size of the usual eps up, so that eps and its place in the formula show.
_VARIANCES = (1e-5, 1e-3, 1.0)


@dataclass(frozen=True)
class FrozenForm:
    """Channels, spatial dimensions (None: the class does not say) and eps of a frozen batch normalization."""

    num_features: int
    dims: int | None
    eps: float


def is_named_frozen(layer: nn.Module) -> bool:
    """Whether its class is called like a frozen batch normalization."""
    return _NAME.search(type(layer).__name__) is not None


def frozen_form(layer: nn.Module) -> FrozenForm | None:
    """What `layer` is, if it is a frozen batch normalization of another library; None for anything else.

    It has the name (torchvision and Detectron2: FrozenBatchNorm2d; Hugging Face: DetrFrozenBatchNorm2d and its copies
    in other model files), the four buffers of the formula and nothing else, and it computes the formula. Name and
    buffers are not enough: among classes that share them, eps is an attribute, a constant in the code or missing, and a
    subclass may do more, such as an activation. So the class's code runs on buffers made up here, in train and in eval
    mode. Variances as small as eps show what the layer's own values would hide. The layer itself does not run, so its
    hooks, counters and device take no part.
    """
    name = _NAME.search(type(layer).__name__)
    num_features = _channels(layer) if name is not None else None
    if name is None or num_features is None:
        return None
    dims = None if name["dims"] is None else int(name["dims"])
    x = torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu").view(2, 1, *[1] * (dims or 2))
    x = x.expand(2, num_features, *[2] * (dims or 2)).contiguous()
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            runs = [(values, double.forward(x)) for values, double in _doubles(layer, num_features)]
            candidates = [*_named_eps(layer), _measured_eps(*runs[0])]
            fits = (eps for eps in candidates if all(_computes(x, *run, eps) for run in runs))
            eps = next(fits, None)
    except Exception:  # code of somebody else, on values that it may not be made for
        return None
    return None if eps is None else FrozenForm(num_features, dims, eps)


def _channels(layer: nn.Module) -> int | None:
    """The length of its four buffers; None if it has others, or parameters or modules besides."""
    buffers = {name: value for name, value in layer._buffers.items() if name != _COUNTER}
    if buffers.keys() != _TENSORS or layer._modules or layer._parameters:
        return None
    shapes = {tuple(value.shape) for value in buffers.values() if value is not None}
    is_vector = len(shapes) == 1 and all(value is not None for value in buffers.values())
    shape = shapes.pop() if is_vector else ()
    return shape[0] if len(shape) == 1 and shape[0] else None


def _doubles(layer: nn.Module, num_features: int) -> Iterator[tuple[Mapping[str, Tensor], nn.Module]]:
    """Shallow copies of `layer` in each mode with buffers under which another formula would give other outputs."""
    steps = torch.linspace(0, 1, num_features, dtype=torch.float64, device="cpu")
    for variance in _VARIANCES:
        values = {
            "weight": 0.5 + steps,
            "bias": 0.25 - steps,
            "running_mean": 0.25 + steps,
            "running_var": variance * (1 + steps),
        }
        counter = {_COUNTER: torch.zeros((), dtype=torch.long, device="cpu")} if _COUNTER in layer._buffers else {}
        for training in (False, True):
            double = copy.copy(layer)
            own = {name: value.clone() for name, value in (values | counter).items()}
            vars(double).update(_buffers=own, training=training)
            yield values, double


def _named_eps(layer: nn.Module) -> Iterator[float]:
    for name in ("eps", "epsilon"):
        if isinstance(value := getattr(layer, name, None), float | int):
            yield float(value)


def _measured_eps(values: Mapping[str, Tensor], output: Tensor) -> float:
    """From the slope of the first channel: weight / sqrt(running_var + eps)."""
    slope = (output[1] - output[0]).double()[0].flatten()[0]
    eps = float((values["weight"][0] / slope) ** 2 - values["running_var"][0])
    return 0.0 if abs(eps) < 1e-10 else float(f"{eps:.4g}")


def _computes(x: Tensor, values: Mapping[str, Tensor], output: Tensor, eps: float) -> bool:
    """Whether `output` is that of batch normalization by `values`. Code that computes in float32 inside may."""
    weight, bias, mean, var = (
        values[name].view(1, -1, *[1] * (x.dim() - 2)) for name in ("weight", "bias", "running_mean", "running_var")
    )
    expected = (x - mean) / (var + eps).sqrt() * weight + bias
    return output.shape == x.shape and torch.allclose(output.double(), expected, rtol=1e-5, atol=1e-3)
