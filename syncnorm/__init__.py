"""Distributed training with normalization across devices: `Client` talks to a service, `norm` is the library of layers.

Importing this loads neither torch nor the service. The three parts lie beside this folder, linked into it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncnorm import norm
    from syncnorm.service.client import Client

__all__ = ["Client", "__version__", "norm"]

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name == "Client":
        return import_module("syncnorm.service.client").Client
    if name == "norm":
        return import_module("syncnorm.norm")
    raise AttributeError(f"module 'syncnorm' has no attribute {name!r}")
