"""A normalization layer that applies modules of its own behind it, such as dropout and an activation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from syncnorm.norm.layers.scripting import refuse_scripting
from syncnorm.norm.reading.elementwise import effect


class NormAct(nn.Module):
    """What `with_tail` makes of a layer: its own class, and then the modules of `tail`, by name.

    The layer is not a part but the thing itself, as in timm. So its tensors keep their names (`bn1.weight`), and those
    of the modules behind it have the names they had (`bn1.act.weight`).
    """

    _tail: tuple[str, ...]

    def forward(self, x: Tensor) -> Tensor:
        return apply_tail(self, super().forward(x))

    @property
    def tail(self) -> dict[str, nn.Module]:
        """The modules behind the normalization, in order."""
        return {name: self.get_submodule(name) for name in self._tail}

    @property
    def earlier_names(self) -> dict[str, str]:
        """The beginnings of names in checkpoints where layer, dropout and activation were in a row, and those now."""
        return {f"{number}.": f"{name}." if name else "" for number, name in enumerate(("", *self._tail))}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As every module, also from earlier names."""
        for start, now in self.earlier_names.items():
            for key in [key for key in state_dict if key.startswith(prefix + start)]:
                state_dict[prefix + now + key.removeprefix(prefix + start)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    __prepare_scriptable__ = refuse_scripting

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """The class is made at run time, so a pickle can't name it. It names the one it is made from."""
        if is_parametrized(self):  # torch refuses to pickle these, with a sentence
            return super().__reduce_ex__(protocol)  # type: ignore[return-value]
        return _empty, (norm_class(self),), vars(self)


def with_tail(layer: nn.Module, tail: Mapping[str, nn.Module]) -> nn.Module:
    """`layer`, which from now on applies the modules of `tail` too.

    Where the normalization is removed, they don't work in place: their input may be read elsewhere.

    >>> layer = with_tail(nn.BatchNorm2d(2), {"act": nn.ReLU()})
    >>> type(layer).__name__, isinstance(layer, nn.BatchNorm2d), bool((layer(torch.randn(4, 2, 3, 3)) >= 0).all())
    ('BatchNorm2dAct', True, True)
    """
    named = {_free_name(layer, name): module for name, module in tail.items()}
    layer.__class__ = _with_tail(type(layer))
    assert isinstance(layer, NormAct)
    for name, module in named.items():
        layer.add_module(name, out_of_place(module) if isinstance(layer, nn.Identity) else module)
    layer._tail = tuple(named)
    return layer


def _free_name(layer: nn.Module, name: str) -> str:
    """`name`, unless `layer` has something else of that name, as EvoNormS0 has `activation`."""
    return f"own_{name}" if hasattr(layer, name) else name


def norm_class(layer: nn.Module) -> type[nn.Module]:
    """The class of the normalization alone."""
    layer_class = type_before_parametrizations(layer)
    return layer_class.__bases__[1] if isinstance(layer, NormAct) else layer_class


def apply_tail(layer: nn.Module, y: Tensor) -> Tensor:
    """What `layer` makes of y, the output of its normalization alone."""
    for module in layer.tail.values() if isinstance(layer, NormAct) else ():
        y = module(y)
    return y


def has_effect(layer: nn.Module) -> bool:
    """Whether `layer` applies something behind it that changes values in eval mode."""
    return isinstance(layer, NormAct) and any(effect(module) != "identity" for module in layer.tail.values())


def is_identity(module: nn.Module) -> bool:
    """Whether it hands its input on in eval mode: nn.Identity, or a removed layer with nothing behind it."""
    return norm_class(module) is nn.Identity and not has_effect(module)


def out_of_place(module: nn.Module) -> nn.Module:
    """`module` itself, or a copy with the same parameters if it writes into its input."""
    if not getattr(module, "inplace", False):
        return module
    double = copy.copy(module)
    double.inplace = False  # type: ignore[assignment]
    return double


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _with_tail(layer_class: type[nn.Module]) -> type[nn.Module]:
    """The one class that is a NormAct and `layer_class`."""
    if layer_class not in _CLASSES:
        _CLASSES[layer_class] = type(f"{layer_class.__name__}Act", (NormAct, layer_class), {"__module__": __name__})
    return _CLASSES[layer_class]


def _empty(layer_class: type[nn.Module]) -> nn.Module:
    made = _with_tail(layer_class)
    return made.__new__(made)
