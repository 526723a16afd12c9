"""Building blocks of ultralytics, in a row."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from typing import Any

from torch import nn

from tests.helpers.vision.zoo.architecture import Architecture, on_images

# Name -> arguments behind (channels in, channels out).
BLOCKS: dict[str, tuple[Any, ...]] = {
    "Conv": (3, 2),
    "GhostConv": (3, 1),
    "RepConv": (3,),
    "Bottleneck": (),
    "BottleneckCSP": (),
    "C2": (1,),
    "C2f": (1,),
    "C3": (1,),
    "C3k2": (1,),
    "C3x": (1,),
    "C3Ghost": (1,),
    "C2fCIB": (1,),
    "GhostBottleneck": (),
    "SPPF": (),
    "SPPELAN": (16,),
    "ADown": (),
    "AConv": (),
    "SCDown": (3, 2),
    "RepNCSPELAN4": (16, 8),
    "ELAN1": (16, 8),
    "C2PSA": (),
}


def architectures() -> list[Architecture]:
    return [
        Architecture("ultralytics", name, partial(_in_a_row, name, more), on_images(32))
        for name, more in BLOCKS.items()
    ]


def _in_a_row(name: str, more: tuple[Any, ...]) -> nn.Module:
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())  # it writes its settings when it is imported
    os.environ.setdefault("YOLO_OFFLINE", "true")
    from ultralytics.nn import modules
    from ultralytics.nn.modules.block import ELAN1

    block = ELAN1 if name == "ELAN1" else getattr(modules, name)
    width = 128 if name == "C2PSA" else 16
    return nn.Sequential(modules.Conv(3, width, 3, 2), block(width, width, *more), nn.Conv2d(width, 2, 1))
