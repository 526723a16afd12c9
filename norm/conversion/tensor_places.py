"""Where the tensors of a state_dict belong in a model, also by the names that they had before its conversion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from syncnorm.norm.conversion.edits import original_of
from syncnorm.norm.conversion.fixup import FixupLayer
from syncnorm.norm.reading.norm_act import NormAct
from syncnorm.norm.reading.readers import read_source


@dataclass(frozen=True)
class TensorPlace:
    """A place for a tensor: `attribute` of `owner`.

    fills: the names in the model's state_dict that a tensor put here sets. of_kind: whether the kind of normalization
    decides that there is such a place.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> place = norm.tensor_places(model).by_name["1.weight"]
    >>> place.put(torch.tensor([3.0, 4.0]))
    >>> model[1].weight.tolist(), place.fills
    ([3.0, 4.0], ('1.weight',))
    """

    owner: nn.Module
    attribute: str
    fills: tuple[str, ...]
    of_kind: bool = False

    @property
    def tensor(self) -> Tensor:
        found = getattr(self.owner, self.attribute)
        assert isinstance(found, Tensor)
        return found

    @torch.no_grad()
    def put(self, value: Tensor) -> None:
        """Copy `value` here, in the dtype of the place; a normalized weight is taken apart."""
        if parametrize.is_parametrized(self.owner, self.attribute):
            like = self.tensor
            setattr(self.owner, self.attribute, value.to(like.device, like.dtype))
        else:
            self.tensor.copy_(value)


@dataclass(frozen=True)
class Places:
    """by_name: every place by its name in the state_dict, by the one before a conversion, and by the one in earlier
    versions of a layer with an activation inside, where these are others.
    layers: kind of normalization by the path of its layer, as it was before a conversion."""

    by_name: dict[str, TensorPlace] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)

    @property
    def own(self) -> dict[str, TensorPlace]:
        """Those of the state_dict alone."""
        return {name: place for name, place in self.by_name.items() if name in place.fills}


def tensor_places(model: nn.Module) -> Places:
    """The places of `model` as it is now.

    Raises: ValueError for a lazy parameter that has no shape yet.

    >>> model, _ = norm.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "weight")
    >>> norm.tensor_places(model).by_name["0.weight"].fills
    ('0.parametrizations.weight.original0', '0.parametrizations.weight.original1')
    """
    found = Places()
    names: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        for name, tensor in _tensors(module):
            if torch.nn.parameter.is_lazy(tensor):
                raise ValueError(f"{_join(path, name)} must have a shape; run one batch through the model first.")
            names[id(tensor)].append(_join(path, name))
            found.by_name[_join(path, name)] = TensorPlace(module, name, ())
    for name, place in found.by_name.items():  # tied tensors have several names
        found.by_name[name] = replace(place, fills=tuple(names[id(place.tensor)]))
    for path, module in model.named_modules(remove_duplicate=False):
        _note_conversion(path, module, found)
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, NormAct):
            found.by_name.update(_by_earlier_name(path, module, found))
    return found


def _by_earlier_name(path: str, layer: NormAct, found: Places) -> Iterator[tuple[str, TensorPlace]]:
    owners = {layer: "0.", **{layer.tail[name[:-1]]: start for start, name in layer.earlier_names.items() if name}}
    for owner, start in owners.items():
        now = layer.earlier_names[start]
        for name, _ in _tensors(owner):
            if _join(path, now + name) in found.by_name:
                yield _join(path, start + name), found.by_name[_join(path, now + name)]


def _note_conversion(path: str, module: nn.Module, found: Places) -> None:
    """Add the names before, and mark what the kind of normalization has brought."""
    original = original_of(module)
    source = read_source(original or module, path)
    if source is not None:
        found.layers[path] = source.kind
    elif original is None:
        return
    kept = dict(_former_places(path, module, original, found)) if original is not None else {}
    kept_names = {fill for place in kept.values() for fill in place.fills} if source is None else set()
    for name in [name for name in found.by_name if name.startswith(f"{path}." if path else "")]:
        found.by_name[name] = replace(found.by_name[name], of_kind=name not in kept_names)
    found.by_name.update({name: replace(place, of_kind=source is not None) for name, place in kept.items()})


def _former_places(
    path: str, module: nn.Module, original: nn.Module, found: Places
) -> Iterator[tuple[str, TensorPlace]]:
    """Where the tensors of what stood at `path` before are now, by their names then."""
    inside, holder = path, module
    if isinstance(module, FixupLayer):
        inside, holder = _join(path, "layer"), module.layer
    for name, _ in _tensors(original):
        now = _join(inside, name)
        if parametrize.is_parametrized(holder, name):
            start = _join(inside, f"parametrizations.{name}.")
            fills = tuple(own for own in found.by_name if own.startswith(start))
            # One that is standardized is kept as it is; one that is normalized is taken apart.
            yield _join(path, name), found.by_name[fills[0]] if len(fills) == 1 else TensorPlace(holder, name, fills)
        elif now in found.by_name:
            yield _join(path, name), found.by_name[now]


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What of the module itself is in its state_dict."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and name not in module._non_persistent_buffers_set:
            yield name, tensor


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
