"""Absorb normalization into the neighbouring convolutions and linear layers, for inference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.utils.parametrize import is_parametrized

from norm.flow import Flow, trace
from norm.paths import put
from norm.sources import read_source
from norm.traits import KINDS

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class Folded:
    """What became of one layer: absorbed by the module at `into`, or kept, for `reason`."""

    path: str
    kind: str
    into: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class _Affine:
    """What a layer does in eval mode, channel by channel: x * scale + shift. (C,), float64."""

    scale: Tensor
    shift: Tensor


def fold(model: nn.Module) -> tuple[nn.Module, list[Folded]]:
    """A copy of `model` for inference with every layer folded away that can be, exactly; `model` is left alone.

    conv, linear or transposed conv, then batch normalization: W' = W * s, b' = b * s + t with s = weight / sqrt(var +
        eps), t = bias - mean * s, computed in float64. So for every kind with running statistics.
    batch normalization, then conv without zero padding or linear: W' = W * s per input channel, b' = b + sum W * t.
        With zero padding it would be wrong at the borders.
    The two must follow each other directly, and nothing else may read what is between; the data flow is taken from
    torch.fx. A linear layer before or behind is taken to work on (N, C). Folded layers become nn.Identity.

    Returns: the copy, in eval mode, and for each normalization what became of it.
    """
    folded = _copy(model).eval()
    paths = {module: path for path, module in folded.named_modules()}
    flow, gone, report = trace(folded), set[nn.Module](), list[Folded]()

    def passes(module: nn.Module) -> bool:
        return module in gone or isinstance(module, (nn.Identity, *_DROPOUT))

    for layer, path in paths.items():
        if (kind := _kind(layer, path)) is None:
            continue
        try:
            into = _absorb(layer, kind, flow, passes)
        except _CannotFoldError as error:
            report.append(Folded(path, kind, reason=str(error)))
        else:
            gone.add(layer)
            report.append(Folded(path, kind, into=paths[into]))
    for path, module in list(folded.named_modules(remove_duplicate=False)):
        if module in gone:
            folded = put(folded, path, nn.Identity())
    return folded.eval(), report


class _CannotFoldError(Exception):
    """Why a layer stays."""


def _absorb(layer: nn.Module, kind: str, flow: Flow, passes: Callable[[nn.Module], bool]) -> nn.Module:
    affine = _as_affine(layer, kind)
    if _has_hooks(layer):
        raise _CannotFoldError("it has hooks, which would no longer run")
    if layer not in flow.calls:
        why = "; ".join(f"{path or 'the model'}: {reason}" for path, reason in flow.untraced.items())
        raise _CannotFoldError(f"its place in the data flow is not known ({why or 'it is not used'})")
    before, after = flow.before(layer, passes), flow.after(layer, passes)
    if before is not None and _takes_behind(before, affine):
        _fold_into_previous(before, affine)
        return before
    if after is not None and _takes_in_front(after, affine):
        _fold_into_next(after, affine)
        return after
    raise _CannotFoldError(_why_not(before, after))


def _as_affine(layer: nn.Module, kind: str) -> _Affine:
    if not KINDS[kind].running_statistics:
        raise _CannotFoldError("its statistics depend on the sample")
    if not isinstance(layer.running_mean, Tensor) or not isinstance(layer.running_var, Tensor):
        raise _CannotFoldError("it has no running statistics")
    assert isinstance(layer.eps, float)
    mean, var = layer.running_mean.double(), layer.running_var.double()
    weight, bias = layer.weight, layer.bias
    scale = torch.rsqrt(var + layer.eps) * (weight.detach().double() if isinstance(weight, Tensor) else 1.0)
    return _Affine(scale, (bias.detach().double() if isinstance(bias, Tensor) else 0.0) - mean * scale)


def _takes_behind(module: nn.Module, affine: _Affine) -> bool:
    """Whether `module` is linear with one output channel for each of `affine`, and nothing hooks in between."""
    return _is_plain_linear(module) and _out_channels(module) == affine.scale.numel()


def _takes_in_front(module: nn.Module, affine: _Affine) -> bool:
    if not _is_plain_linear(module) or isinstance(module, _TRANSPOSED):
        return False
    if isinstance(module, nn.Linear):
        return module.in_features == affine.scale.numel()
    assert isinstance(module, _PLAIN)
    return module.in_channels == affine.scale.numel() and not _pads_with_zeros(module)


def _pads_with_zeros(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> bool:
    is_padded = conv.padding != "valid" if isinstance(conv.padding, str) else any(conv.padding)
    return conv.padding_mode == "zeros" and is_padded


def _is_plain_linear(module: nn.Module) -> bool:
    is_linear = type(module) in (*_PLAIN, *_TRANSPOSED, nn.Linear)
    return is_linear and not is_parametrized(module) and not _has_hooks(module)


def _why_not(before: nn.Module | None, after: nn.Module | None) -> str:
    return (
        "it needs a convolution or linear layer directly before it, or directly behind it and without zero padding; "
        f"it reads {_described(before)} and is read by {_described(after)}"
    )


def _described(module: nn.Module | None) -> str:
    if module is None:
        return "no module that it has for itself"
    return f"a {type(module).__name__}" + (" with hooks" if _has_hooks(module) else "")


def _fold_into_previous(module: nn.Module, affine: _Affine) -> None:
    weight = _parameter(module, "weight")
    scale = affine.scale
    if isinstance(module, _TRANSPOSED):  # weight: (in, out / groups, *)
        by_group = _by_group(weight.double(), module.groups)
        new = (by_group * _shaped(scale.view(module.groups, 1, -1), by_group)).flatten(0, 1)
    else:
        new = weight.double() * _shaped(scale, weight)
    _store(module, new, _bias(module) * scale + affine.shift)


def _fold_into_next(module: nn.Module, affine: _Affine) -> None:
    weight = _parameter(module, "weight").double()
    groups = module.groups if isinstance(module, _PLAIN) else 1
    by_group = _by_group(weight, groups)  # (groups, out / groups, in / groups, *)
    scale, shift = (_shaped(values.view(groups, 1, -1), by_group) for values in (affine.scale, affine.shift))
    added = (by_group * shift).flatten(2).sum(2).flatten()
    _store(module, (by_group * scale).flatten(0, 1), _bias(module) + added)


def _store(module: nn.Module, weight: Tensor, bias: Tensor) -> None:
    old = _parameter(module, "weight")
    module.weight = nn.Parameter(weight.to(old.dtype), requires_grad=old.requires_grad)
    module.bias = nn.Parameter(bias.to(old.dtype), requires_grad=old.requires_grad)


def _parameter(module: nn.Module, name: str) -> Tensor:
    return module.get_parameter(name).detach()


def _bias(module: nn.Module) -> Tensor:
    if module.bias is not None:
        return _parameter(module, "bias").double()
    return torch.zeros(_out_channels(module), dtype=torch.float64, device=_parameter(module, "weight").device)


def _out_channels(module: nn.Module) -> int:
    return module.out_features if isinstance(module, nn.Linear) else int(module.out_channels)  # type: ignore[arg-type]


def _by_group(weight: Tensor, groups: int) -> Tensor:
    return weight.view(groups, -1, *weight.shape[1:])


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    """`values` with singleton dimensions appended, to multiply `like` from its first dimension on."""
    return values.view(*values.shape, *[1] * (like.dim() - values.dim()))


def _kind(layer: nn.Module, path: str) -> str | None:
    try:
        source = read_source(layer, path)
    except ValueError:
        return None
    return None if source is None else source.kind


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy, except for process groups, which have none."""
    groups = [value for module in model.modules() for value in vars(module).values() if isinstance(value, ProcessGroup)]
    return copy.deepcopy(model, {id(group): group for group in groups})
