"""Objects by `_target_`, as Hydra's configurations write them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

Find = Callable[[str, str], Callable[..., Any]]
"""(path of the field, import path) -> what it names. Raises: ValueError with the path of the field."""

_TARGET = "_target_"
_SPECIAL = (_TARGET, "_partial_", "_args_", "_recursive_", "_convert_")


def has_target(value: Any) -> bool:
    """Whether there is a `_target_` in it, at any depth."""
    if isinstance(value, Mapping):
        return _TARGET in value or any(map(has_target, value.values()))
    return isinstance(value, list) and any(map(has_target, value))


def made(path: str, value: Any, find: Find) -> Any:
    """`value` with an object in place of each mapping with a `_target_`: what that gives for the other keys.

    `_partial_: true` gives a function that still takes arguments, `_args_` are arguments by position, and with
    `_recursive_: false` a mapping inside stays one. `_convert_` changes nothing, since values are plain already.

    >>> made("model.init_args.layer", {"_target_": "torch.nn.ReLU"}, find)  # doctest: +SKIP
    ReLU()
    Raises: ValueError naming the field. What a called class raises is passed on as it is.
    """
    if isinstance(value, list):
        return [made(f"{path}.{index}", item, find) for index, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if _TARGET not in value:
        return {key: made(f"{path}.{key}", item, find) for key, item in value.items()}
    target = find(f"{path}.{_TARGET}", str(value[_TARGET]))
    inside = value if value.get("_recursive_") is False else _made_inside(path, value, find)
    named = {key: item for key, item in inside.items() if key not in _SPECIAL}
    positional = list(inside.get("_args_", []))
    if value.get("_partial_"):
        return functools.partial(target, *positional, **named)
    return target(*positional, **named)


def _made_inside(path: str, value: Mapping[str, Any], find: Find) -> dict[str, Any]:
    return {key: item if key == _TARGET else made(f"{path}.{key}", item, find) for key, item in value.items()}
