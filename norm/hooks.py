"""The hooks that users put on a module."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)

# How torch names them. The dictionaries themselves go along: a handle removes its hook from there.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def carry_hooks(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the forward and backward hooks of `source`; handles to them stay valid."""
    for name in (*_HOOKS, "_is_full_backward_hook"):
        if name in source.__dict__:
            object.__setattr__(target, name, source.__dict__[name])


def copy_without_hooks(module: M) -> M:
    """A deep copy of `module` that has none of its forward and backward hooks."""
    return copy.deepcopy(module, {id(module.__dict__[name]): type(module.__dict__[name])() for name in _HOOKS})


def has_forward_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
