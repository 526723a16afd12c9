"""A user's code whose modules are named as our folders are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from syncnorm.service.cli.code_folder import pack

FILES = {
    "trainer.py": """
from importlib.util import find_spec
import norm, service
from tests import shapes
from torch import nn

assert find_spec("benchmarks") is None, "the service runs in its checkout, whose folders are nobody's modules"

class Net(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        for module in (norm, service, shapes):
            print("imported", module.__name__, module.OWNER)
        self.layers = nn.Sequential(
            nn.Conv2d(1, shapes.CHANNELS, 3), norm.make(shapes.CHANNELS), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
        )

    def forward(self, x):
        return self.layers(x)
""",
    "norm.py": "from torch import nn\nOWNER = 'a user'\ndef make(channels): return nn.BatchNorm2d(channels)\n",
    "service/__init__.py": "OWNER = 'a user'\n",
    "tests/__init__.py": "",
    "tests/shapes.py": "OWNER = 'a user'\nCHANNELS = 4\n",
}


def spec(package: str, workers: int) -> dict[str, Any]:
    return {
        "name": f"own-names-{workers}",
        "model": {"class_path": "trainer.Net"},
        "data": {"name": "digits", "batch_size": 64},
        "norm": {"kind": "sync_batch"},
        "train": {"epochs": 1},
        "resources": {"workers": workers},
        "code": {"package": package},
    }


def archive(folder: Path) -> bytes:
    """The package as `syncnorm package put` sends it. folder: an empty one, to write it to."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return pack(folder)
