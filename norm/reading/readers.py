"""Which layers `convert` can read, and the kind and arguments of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn
from torch.distributed import ProcessGroup
from torch.nn.modules.lazy import LazyModuleMixin

from syncnorm.norm.kind import KINDS
from syncnorm.norm.layer_spec import LayerSpec, Momentum
from syncnorm.norm.layers.batch_renorm import BatchRenorm, SyncBatchRenorm
from syncnorm.norm.layers.evo_norm import EvoNormS0
from syncnorm.norm.layers.filter_response_norm import FilterResponseNorm
from syncnorm.norm.layers.frozen_batch_norm import FrozenBatchNorm
from syncnorm.norm.layers.ghost_batch_norm import GhostBatchNorm
from syncnorm.norm.layers.instance_norm import GroupNorm, InstanceNorm
from syncnorm.norm.layers.noisy_batch_norm import NoisyBatchNorm
from syncnorm.norm.layers.sync_batch_norm import SyncBatchNorm
from syncnorm.norm.layers.sync_group_norm import SyncGroupNorm
from syncnorm.norm.reading.norm_act import NormAct, norm_class
from syncnorm.norm.statistics.frozen_layers import frozen_form
from syncnorm.norm.torch_compat import BatchNormBase, NormBase

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Source:
    """What a layer is: its kind, its channels and how it was made.

    dims: spatial dimensions, None where the class takes any. momentum: "default" where the layer has none.
    tail: modules the layer applies behind its normalization, such as an activation; they are kept. process_group: the
    workers that share its statistics. is_activation: whether its formula is an activation too, which `tail` stands for.

    >>> norm.Source("batch", num_features=8, dims=2, eps=1e-5, affine=True).kind
    'batch'
    """

    kind: str
    num_features: int
    dims: int | None
    eps: float
    affine: bool
    momentum: Momentum = "default"
    track_running_stats: bool = True
    tail: tuple[nn.Module, ...] = ()
    process_group: ProcessGroup | None = None
    is_activation: bool = False

    def as_spec(self) -> LayerSpec:
        return LayerSpec(
            self.num_features,
            dims=self.dims or 2,
            eps=self.eps,
            momentum=self.momentum,
            affine=self.affine,
            track_running_stats=self.track_running_stats,
            process_group=self.process_group,
        )


_READERS: dict[type[nn.Module], Callable[[Any], Source]] = {}


def register_source(layer_class: type[M], read: Callable[[M], Source]) -> None:
    """Tell `convert` what layers of exactly `layer_class` are, e.g. of a subclass with an activation inside.

    >>> class BatchNormReLU(nn.BatchNorm2d):
    ...     def forward(self, x):
    ...         return super().forward(x).relu()
    >>> def read(layer):
    ...     return norm.Source("batch", layer.num_features, dims=2, eps=layer.eps, affine=True, tail=(nn.ReLU(),))
    >>> norm.register_source(BatchNormReLU, read)
    >>> layer = norm.convert(nn.Sequential(BatchNormReLU(8)), "group")[0][0]
    >>> type(layer).__name__, layer.act
    ('GroupNormAct', ReLU())
    """
    _READERS[layer_class] = read


_SAME_FORMULAS = {
    "timm.layers.evo_norm.EvoNorm2dS0": EvoNormS0,
    "timm.layers.filter_response_norm.FilterResponseNormTlu2d": FilterResponseNorm,
}


def formula(layer: nn.Module) -> type[nn.Module]:
    """The class whose formula `layer` computes, with parameters of the same names: its own, or one of ours."""
    layer_class = norm_class(layer)
    return _SAME_FORMULAS.get(_full_name(layer_class), layer_class)


def num_groups(layer: nn.Module) -> int | None:
    """Of a layer that normalizes groups of channels; timm calls them `groups`."""
    found = getattr(layer, "num_groups", getattr(layer, "groups", None))
    return found if isinstance(found, int) else None


def read_source(layer: nn.Module, path: str) -> Source | None:
    """What `layer` is, or None if it normalizes no channels (nn.LayerNorm normalizes the last dimensions: also None).

    Frozen batch normalization of other libraries is recognized by what it computes, see `frozen_form`.

    A subclass that only has defaults or a check of dimensions of its own is what it derives from.

    Raises: ValueError for a lazy layer, and for a subclass whose behaviour nobody has described.
    """
    layer_class = norm_class(layer)
    if read := _READERS.get(_computing(layer_class)) or _READERS_OF_LIBRARIES.get(_full_name(layer_class)):
        source = read(layer)
        return replace(source, tail=tuple(layer.tail.values())) if isinstance(layer, NormAct) else source
    if (frozen := frozen_form(layer)) is not None:
        return Source("frozen_batch", frozen.num_features, frozen.dims, frozen.eps, affine=True)
    if not isinstance(layer, (NormBase, nn.GroupNorm, SyncGroupNorm)):
        return None
    if isinstance(layer, LazyModuleMixin):
        raise ValueError(
            f"Every normalization layer must know its channels: {path or 'the model'} is a {layer_class.__name__} that "
            "has seen no input. Run one batch through the model first."
        )
    raise ValueError(
        f"Only layers of known behaviour can be converted: {path or 'the model'} is a {layer_class.__name__}, which "
        "may do more than normalize. Describe it with norm.register_source, or use a standard layer."
    )


_WITHOUT_EFFECT = {"__init__", "_check_input_dim", "reset_parameters", "extra_repr", "__repr__"}


def _computing(layer_class: type[nn.Module]) -> type[nn.Module]:
    """The class whose forward `layer_class` has, if it derives from it and changes nothing that computes."""
    for base in layer_class.__mro__:
        own = {name for name, value in vars(base).items() if callable(value) or isinstance(value, property)}
        if base in _READERS:
            return base
        if not own <= _WITHOUT_EFFECT:
            break
    return layer_class


_WITHOUT_BATCH = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, SyncGroupNorm)


def is_without_batch(layer: nn.Module, path: str) -> bool:
    """Whether `layer` normalizes channels without statistics of the batch, as also subclasses do that nobody described.

    Raises: as `read_source`, for other layers.
    """
    if isinstance(layer, _WITHOUT_BATCH) and _computing(norm_class(layer)) not in _READERS:
        return True
    source = read_source(layer, path)
    return source is not None and not KINDS[source.kind].batch_statistics


def uses_batch_statistics(module: nn.Module) -> bool:
    """Whether `module`, or a part of it, normalizes with statistics of the batch.

    Raises: as `read_source`.
    """
    sources = (read_source(part, path) for path, part in module.named_modules())
    return any(source is not None and KINDS[source.kind].batch_statistics for source in sources)


def count_kinds(model: nn.Module) -> dict[str, int]:
    """How many layers of each kind `model` has; a layer used at several places counts once.

    Raises: ValueError for a layer that `convert` can't read.

    >>> norm.count_kinds(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)))
    {'batch': 2, 'group': 1}
    """
    sources = (read_source(module, path) for path, module in model.named_modules())
    return dict(Counter(source.kind for source in sources if source is not None))


def _full_name(layer_class: type[nn.Module]) -> str:
    return f"{layer_class.__module__}.{layer_class.__qualname__}"


def named_tail(layer: nn.Module, source: Source) -> dict[str, nn.Module]:
    """What `layer` applies behind its normalization, by the names it has there."""
    names = {part: name for name, part in layer.named_children()}
    return {names.get(part, f"act{number or ''}"): part for number, part in enumerate(source.tail)}


def _batch(kind: str, dims: int | None) -> Callable[[Any], Source]:
    def read(layer: Any) -> Source:
        return Source(
            kind,
            layer.num_features,
            dims,
            layer.eps,
            layer.affine,
            layer.momentum,
            layer.running_mean is not None,  # track_running_stats may be changed later, the buffers count
            process_group=getattr(layer, "process_group", None),
        )

    return read


def _torch_instance(dims: int) -> Callable[[Any], Source]:
    return lambda layer: Source("instance", layer.num_features, dims, layer.eps, layer.affine)


def _without_batch(kind: str) -> Callable[[Any], Source]:
    return lambda layer: Source(kind, layer.num_features, None, layer.eps, layer.affine)


def _activating(kind: str, activation: type[nn.Module]) -> Callable[[Any], Source]:
    """activation: what the layer's own, learned one is at the start."""

    def read(layer: Any) -> Source:
        return replace(_without_batch(kind)(layer), **_as_activation(activation if layer.activation else None))

    return read


def _as_activation(activation: type[nn.Module] | None) -> dict[str, Any]:
    return {} if activation is None else {"tail": (activation(),), "is_activation": True}


def _timm_activating(kind: str, activation: type[nn.Module] | None = None) -> Callable[[Any], Source]:
    """Layers that are the activation too. activation: what stands for the formula; None: the layer has a module."""

    def read(layer: Any) -> Source:
        momentum: Momentum = getattr(layer, "momentum", "default")
        source = Source(kind, len(layer.weight), 2, layer.eps, affine=True, momentum=momentum)
        if activation is None:
            return replace(source, tail=() if isinstance(layer.act, nn.Identity) else (layer.act,))
        return replace(source, **_as_activation(activation if layer.apply_act else None))

    return read


def _timm_frozen(layer: Any) -> Source:
    return Source("frozen_batch", len(layer.weight), 2, layer.eps, affine=True)


def _group(layer: nn.GroupNorm) -> Source:
    kind = "layer" if layer.num_groups == 1 else "group"
    return Source(kind, layer.num_channels, None, layer.eps, layer.affine)


def _with_activation(
    read: Callable[[Any], Source], names: tuple[str, ...] = ("drop", "act")
) -> Callable[[Any], Source]:
    """With what the layer applies behind it, as far as it has that. names: timm's dropout and activation."""

    def read_both(layer: Any) -> Source:
        tail = (getattr(layer, name, None) for name in names)
        return replace(read(layer), tail=tuple(module for module in tail if module is not None))

    return read_both


# Layers of libraries that need not be installed, by the path of their class.
_READERS_OF_LIBRARIES: dict[str, Callable[[Any], Source]] = {
    "timm.layers.norm_act.BatchNormAct2d": _with_activation(_batch("batch", 2)),
    "timm.layers.norm_act.FrozenBatchNormAct2d": _with_activation(_timm_frozen),
    "timm.layers.norm_act.SyncBatchNormAct": _with_activation(_batch("sync_batch", None)),
    "timm.layers.norm_act.GroupNormAct": _with_activation(_group),
    "timm.layers.norm_act.GroupNorm1Act": _with_activation(_group),
    "timm.layers.norm.GroupNorm": _group,
    "timm.layers.norm.GroupNorm1": _group,
    "transformers.models.bit.modeling_bit.BitGroupNormActivation": _with_activation(_group, ("activation",)),
    "transformers.models.poolformer.modeling_poolformer.PoolFormerGroupNorm": _group,
}

for _classes, _read in (
    (("EvoNorm2dB0", "EvoNorm2dB1", "EvoNorm2dB2"), _timm_activating("batch", nn.ReLU)),
    (("EvoNorm2dS0", "EvoNorm2dS0a"), _timm_activating("evo_s0", nn.SiLU)),
    (("EvoNorm2dS1", "EvoNorm2dS1a", "EvoNorm2dS2", "EvoNorm2dS2a"), _timm_activating("evo_s0")),
):
    _READERS_OF_LIBRARIES.update({f"timm.layers.evo_norm.{name}": _read for name in _classes})
_FILTER_RESPONSE = "timm.layers.filter_response_norm.FilterResponseNorm"
_READERS_OF_LIBRARIES[f"{_FILTER_RESPONSE}Tlu2d"] = _timm_activating("filter_response", nn.ReLU)
_READERS_OF_LIBRARIES[f"{_FILTER_RESPONSE}Act2d"] = _timm_activating("filter_response")

for _dims, _batch_norm, _instance_norm in (
    (1, nn.BatchNorm1d, nn.InstanceNorm1d),
    (2, nn.BatchNorm2d, nn.InstanceNorm2d),
    (3, nn.BatchNorm3d, nn.InstanceNorm3d),
):
    register_source(_batch_norm, _batch("batch", _dims))
    register_source(_instance_norm, _torch_instance(_dims))
register_source(BatchNormBase, _batch("batch", None))
for _sync in (nn.SyncBatchNorm, SyncBatchNorm):
    register_source(_sync, _batch("sync_batch", None))
for _kind, _layer_class in {
    "batch_renorm": BatchRenorm,
    "sync_batch_renorm": SyncBatchRenorm,
    "ghost_batch": GhostBatchNorm,
    "noisy_batch": NoisyBatchNorm,
}.items():
    register_source(_layer_class, _batch(_kind, None))
for _kind, _layer_class in {
    "frozen_batch": FrozenBatchNorm,
    "instance": InstanceNorm,
}.items():
    register_source(_layer_class, _without_batch(_kind))
register_source(FilterResponseNorm, _activating("filter_response", nn.ReLU))
register_source(EvoNormS0, _activating("evo_s0", nn.SiLU))
for _group_norm in (nn.GroupNorm, GroupNorm):
    register_source(_group_norm, _group)
