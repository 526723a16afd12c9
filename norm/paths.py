"""Modules of a model by path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def modules_with_paths(model: nn.Module) -> list[tuple[nn.Module, tuple[str, ...]]]:
    """Every module once, with all paths it is used at."""
    found: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found.setdefault(module, []).append(path)
    return [(module, tuple(paths)) for module, paths in found.items()]


def put(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """`model` with `module` at `path`, in place; "" is the model itself.

    A wrapper may run the forward of a module that is no part of the model, and hold its parts besides, as terratorch's
    does around a network of timm. The module gets it, too.
    """
    if not path:
        return module
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    before = getattr(owner, name)
    setattr(owner, name, module)
    lender = getattr(vars(owner).get("forward"), "__self__", None)
    if isinstance(lender, nn.Module) and vars(lender).get("_modules", {}).get(name) is before:
        setattr(lender, name, module)
    return model


@contextmanager
def errors_named(subject: str) -> Iterator[None]:
    """Within, the sentence of a ValueError begins with `subject`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{subject}: {error}") from error
