"""Builds a layer from the name of a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup

from syncnorm.norm.kind import KINDS, Value
from syncnorm.norm.layer_spec import LayerSpec, Momentum
from syncnorm.norm.layers.batch_renorm import BatchRenorm, RenormSchedule, SyncBatchRenorm
from syncnorm.norm.layers.box_cox import BoxCox
from syncnorm.norm.layers.evo_norm import EvoNormS0
from syncnorm.norm.layers.filter_response_norm import FilterResponseNorm
from syncnorm.norm.layers.frozen_batch_norm import FrozenBatchNorm
from syncnorm.norm.layers.ghost_batch_norm import GhostBatchNorm
from syncnorm.norm.layers.instance_norm import GroupNorm, InstanceNorm, channel_groups
from syncnorm.norm.layers.noisy_batch_norm import NoisyBatchNorm
from syncnorm.norm.layers.sync_batch_norm import SyncBatchNorm
from syncnorm.norm.layers.sync_group_norm import SyncGroupNorm
from syncnorm.norm.statistics.frozen_layers import frozen_form
from syncnorm.norm.torch_compat import NormBase

BATCH_NORMS: Mapping[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}


def build(
    kind: str,
    num_features: int,
    *,
    dims: int = 2,
    eps: float | None = None,
    momentum: Momentum = "default",
    affine: bool = True,
    process_group: ProcessGroup | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    **options: Value,
) -> nn.Module:
    """A layer of `kind` for inputs (N, num_features, *) with `dims` spatial dimensions (1 also takes (N, C)).

    For kinds of scope `weights` and `network` this is what stands where the layer stood; what they do to the weights
    around it is `convert`'s.

    options: those of the kind, see `norm.kinds()[kind].options`; what is left out takes its default.
    Raises: ValueError for an unknown kind or option, or a value it can't take.

    >>> norm.build("group", 64).num_groups
    32
    >>> norm.build("batch_renorm", 8, r_max=2.0).schedule.r_max
    2.0
    >>> norm.build("group", 24, num_groups=32)
    Traceback (most recent call last):
    ValueError: num_groups must divide the channels: 32 does not divide 24. Use one of …
    """
    spec = LayerSpec(
        num_features,
        dims=dims,
        eps=eps,
        momentum=momentum,
        affine=affine,
        process_group=process_group,
        device=device,
        dtype=dtype,
        options=options,
    )
    return build_layer(kind, spec)


def build_layer(kind: str, spec: LayerSpec) -> nn.Module:
    """The layer of `kind` that `spec` describes, its options checked and filled in."""
    spec = replace(spec, options=read_options(kind, spec.options))
    if spec.dims not in KINDS[kind].dims:
        raise ValueError(f"dims must be one of {KINDS[kind].dims} for {kind}, got {spec.dims!r}.")
    return _RECIPES[kind].build(spec)


def read_options(kind: str, options: Mapping[str, Value]) -> dict[str, Value]:
    """`options` with every default filled in.

    Raises: ValueError for an unknown kind or option, or a value it can't take.
    """
    if kind not in KINDS:
        raise ValueError(f"norm.kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    known = KINDS[kind].options
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{kind} has no option {name!r}; it has: {', '.join(known) or 'none'}.")
        if problem := known[name].problem(value):
            raise ValueError(f"Option {name} of {kind} {problem}.")
    return {name: option.default for name, option in known.items()} | dict(options)


_COMMON = ("affine", "device", "dtype")


@dataclass(frozen=True)
class _Recipe:
    """How a layer is made: its class, its defaults, and what of `LayerSpec` it takes besides channels and options.

    eps, momentum: None where it has none.
    """

    make: Callable[..., nn.Module]
    eps: float | None = None
    momentum: float | None = None
    takes: tuple[str, ...] = _COMMON

    def build(self, spec: LayerSpec) -> nn.Module:
        arguments = {name: getattr(spec, name) for name in self.takes} | dict(spec.options)
        if self.eps is not None:
            arguments["eps"] = spec.eps_or(self.eps)
        if self.momentum is not None:
            arguments["momentum"] = spec.momentum_or(self.momentum)
        return self.make(spec.num_features, **arguments)


def _identity(_: int, **_options: Value) -> nn.Module:
    return nn.Identity()


def _batch_norm(num_features: int, *, dims: int, **arguments: Any) -> nn.Module:
    return BATCH_NORMS[dims](num_features, **arguments)


def _group_norm(num_features: int, *, num_groups: int | str = 1, **arguments: Any) -> nn.Module:
    return GroupNorm(channel_groups(num_features, num_groups), num_features, **arguments)


def _batch_renorm(num_features: int, **arguments: Any) -> nn.Module:
    return BatchRenorm(num_features, **_scheduled(arguments))


def _sync_batch_renorm(num_features: int, **arguments: Any) -> nn.Module:
    return SyncBatchRenorm(num_features, **_scheduled(arguments))


def _scheduled(arguments: dict[str, Any]) -> dict[str, Any]:
    """With the options of the schedule as one value."""
    schedule = {field.name: arguments.pop(field.name) for field in fields(RenormSchedule)}
    return {**arguments, "schedule": RenormSchedule(**schedule)}


def _box_cox(_: int, **arguments: Any) -> nn.Module:
    return BoxCox(**arguments)


_RECIPES: Mapping[str, _Recipe] = {
    "none": _Recipe(_identity, takes=()),
    "batch": _Recipe(_batch_norm, 1e-5, 0.1, ("dims", "track_running_stats", *_COMMON)),
    "sync_batch": _Recipe(SyncBatchNorm, 1e-5, 0.1, ("track_running_stats", "process_group", *_COMMON)),
    "frozen_batch": _Recipe(FrozenBatchNorm, 1e-5),
    "batch_renorm": _Recipe(_batch_renorm, 1e-5, 0.01),
    "sync_batch_renorm": _Recipe(_sync_batch_renorm, 1e-5, 0.01, ("process_group", *_COMMON)),
    "ghost_batch": _Recipe(GhostBatchNorm, 1e-5, 0.1),
    "noisy_batch": _Recipe(NoisyBatchNorm, 1e-5, 0.1),
    "group": _Recipe(_group_norm, 1e-5),
    "layer": _Recipe(_group_norm, 1e-5),
    "instance": _Recipe(InstanceNorm, 1e-5),
    "weight": _Recipe(_identity, takes=()),
    "weight_standardization": _Recipe(_group_norm, 1e-5),
    "filter_response": _Recipe(FilterResponseNorm, 1e-6, takes=("activation", *_COMMON)),
    "evo_s0": _Recipe(EvoNormS0, 1e-5, takes=("activation", *_COMMON)),
    "selu": _Recipe(_identity, takes=()),
    "fixup": _Recipe(_identity, takes=()),
    "box_cox": _Recipe(_box_cox, takes=("device", "dtype")),
}


_CLASSES = (
    NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    BoxCox,
    EvoNormS0,
    FilterResponseNorm,
    FrozenBatchNorm,
    InstanceNorm,
    SyncGroupNorm,
)


def is_normalization(layer: nn.Module) -> bool:
    """Whether `layer` is a normalization of torch, of norm, or a frozen one of another library."""
    return isinstance(layer, _CLASSES) or frozen_form(layer) is not None
