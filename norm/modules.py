"""The hooks that users put on a module."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from syncnorm.norm.torch_compat import HOOK_DICTIONARIES

M = TypeVar("M", bound=nn.Module)


def carry_hooks(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the forward and backward hooks of `source`; handles to them stay valid."""
    for name in (*HOOK_DICTIONARIES, "_is_full_backward_hook"):
        if name in source.__dict__:
            object.__setattr__(target, name, source.__dict__[name])


def copy_without_hooks(module: M) -> M:
    """A deep copy of `module` that has none of its forward and backward hooks."""
    return copy.deepcopy(
        module, {id(module.__dict__[name]): type(module.__dict__[name])() for name in HOOK_DICTIONARIES}
    )
