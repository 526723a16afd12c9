"""From the name of a kind to a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from torch.distributed import ProcessGroup

from norm.batch_renorm import BatchRenorm, RenormSchedule, SyncBatchRenorm
from norm.box_cox import BoxCox
from norm.evo import EvoNormS0
from norm.filter_response import FilterResponseNorm
from norm.frozen import FrozenBatchNorm
from norm.ghost import GhostBatchNorm
from norm.group import InstanceNorm, channel_groups
from norm.layer_spec import LayerSpec, Momentum
from norm.noisy import NoisyBatchNorm
from norm.sync_batch_norm import SyncBatchNorm
from norm.traits import KINDS, Value

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
    return _BUILDERS[kind](spec)


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


def _batch(spec: LayerSpec) -> nn.Module:
    return BATCH_NORMS[spec.dims](
        spec.num_features,
        eps=spec.eps_or(1e-5),
        momentum=spec.momentum_or(0.1),
        affine=spec.affine,
        track_running_stats=spec.track_running_stats,
        device=spec.device,
        dtype=spec.dtype,
    )


def _sync_batch(spec: LayerSpec) -> nn.Module:
    return SyncBatchNorm(
        spec.num_features,
        eps=spec.eps_or(1e-5),
        momentum=spec.momentum_or(0.1),
        affine=spec.affine,
        track_running_stats=spec.track_running_stats,
        process_group=spec.process_group,
        device=spec.device,
        dtype=spec.dtype,
    )


def _frozen_batch(spec: LayerSpec) -> nn.Module:
    return FrozenBatchNorm(
        spec.num_features, eps=spec.eps_or(1e-5), affine=spec.affine, device=spec.device, dtype=spec.dtype
    )


def _batch_renorm(spec: LayerSpec) -> nn.Module:
    return BatchRenorm(
        spec.num_features,
        eps=spec.eps_or(1e-5),
        momentum=spec.momentum_or(0.01),
        affine=spec.affine,
        schedule=_schedule(spec),
        device=spec.device,
        dtype=spec.dtype,
    )


def _sync_batch_renorm(spec: LayerSpec) -> nn.Module:
    return SyncBatchRenorm(
        spec.num_features,
        eps=spec.eps_or(1e-5),
        momentum=spec.momentum_or(0.01),
        affine=spec.affine,
        process_group=spec.process_group,
        schedule=_schedule(spec),
        device=spec.device,
        dtype=spec.dtype,
    )


def _schedule(spec: LayerSpec) -> RenormSchedule:
    return RenormSchedule(**cast(dict[str, Any], spec.options))


def _ghost_batch(spec: LayerSpec) -> nn.Module:
    return GhostBatchNorm(
        spec.num_features,
        eps=spec.eps_or(1e-5),
        momentum=spec.momentum_or(0.1),
        affine=spec.affine,
        ghost_size=cast(int, spec.options["ghost_size"]),
        device=spec.device,
        dtype=spec.dtype,
    )


def _noisy_batch(spec: LayerSpec) -> nn.Module:
    return NoisyBatchNorm(
        spec.num_features,
        eps=spec.eps_or(1e-5),
        momentum=spec.momentum_or(0.1),
        affine=spec.affine,
        device=spec.device,
        dtype=spec.dtype,
    )


def _group(spec: LayerSpec) -> nn.Module:
    return _group_norm(_groups(spec), spec)


def _layer(spec: LayerSpec) -> nn.Module:
    return _group_norm(1, spec)


def _instance(spec: LayerSpec) -> nn.Module:
    return InstanceNorm(
        spec.num_features, eps=spec.eps_or(1e-5), affine=spec.affine, device=spec.device, dtype=spec.dtype
    )


def _group_norm(num_groups: int, spec: LayerSpec) -> nn.GroupNorm:
    return nn.GroupNorm(
        num_groups,
        spec.num_features,
        eps=spec.eps_or(1e-5),
        affine=spec.affine,
        device=spec.device,
        dtype=spec.dtype,
    )


def _groups(spec: LayerSpec) -> int:
    return channel_groups(spec.num_features, cast(int | str, spec.options["num_groups"]))


def _filter_response(spec: LayerSpec) -> nn.Module:
    return FilterResponseNorm(
        spec.num_features,
        eps=spec.eps_or(1e-6),
        affine=spec.affine,
        activation=spec.activation,
        device=spec.device,
        dtype=spec.dtype,
    )


def _evo_s0(spec: LayerSpec) -> nn.Module:
    return EvoNormS0(
        spec.num_features,
        eps=spec.eps_or(1e-5),
        affine=spec.affine,
        num_groups=_groups(spec),
        activation=spec.activation,
        device=spec.device,
        dtype=spec.dtype,
    )


def _box_cox(spec: LayerSpec) -> nn.Module:
    return BoxCox(cast(float, spec.options["lambda_init"]), device=spec.device, dtype=spec.dtype)


_BUILDERS: Mapping[str, Callable[[LayerSpec], nn.Module]] = {
    "none": lambda _: nn.Identity(),
    "batch": _batch,
    "sync_batch": _sync_batch,
    "frozen_batch": _frozen_batch,
    "batch_renorm": _batch_renorm,
    "sync_batch_renorm": _sync_batch_renorm,
    "ghost_batch": _ghost_batch,
    "noisy_batch": _noisy_batch,
    "group": _group,
    "layer": _layer,
    "instance": _instance,
    "weight": lambda _: nn.Identity(),
    "weight_standardization": _group,
    "filter_response": _filter_response,
    "evo_s0": _evo_s0,
    "selu": lambda _: nn.Identity(),
    "fixup": lambda _: nn.Identity(),
    "box_cox": _box_cox,
}
