"""One Lightning under both its names: code that imports `pytorch_lightning` gets `lightning.pytorch`.

The two hold the same code, generated from one source, but Python would load it twice, and a LightningModule of the one
is none of the other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

NAMES = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}


def unite() -> None:
    """From now on this process imports `pytorch_lightning` and `lightning_fabric` as names of Lightning's own modules.

    For processes of ours only: it changes `sys.meta_path`. Nothing changes where one of them has been imported already.

    >>> unite()  # doctest: +SKIP
    >>> import pytorch_lightning, lightning.pytorch
    >>> pytorch_lightning.LightningModule is lightning.pytorch.LightningModule
    True
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path) and NAMES.keys().isdisjoint(sys.modules):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        first, dot, rest = fullname.partition(".")
        own = f"{NAMES[first]}{dot}{rest}" if first in NAMES else ""
        return ModuleSpec(fullname, _SameModule(own)) if own and find_spec(own) is not None else None


class _SameModule(Loader):
    """Gives the module `name`, as it is, under another name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:  # noqa: ARG002
        module = import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put that of the other name there
