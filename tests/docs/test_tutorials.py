"""The code that a tutorial has its reader write fits together."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch

from tests.helpers.paths import ROOT

USE = """
from tiny.data import Digits
from tiny.net import Net

data = Digits()
data.setup("fit")
images, targets = next(iter(data.train_dataloader()))
print(tuple(Net(num_classes=data.num_classes)(images).shape), targets.dtype)
"""


def written_files(page: Path) -> dict[str, str]:
    """The files that the commands of a page write, by their paths."""
    return dict(re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", page.read_text(), re.MULTILINE | re.DOTALL))


def test_network_of_the_tutorial_takes_its_data(tmp_path: Path) -> None:
    files = written_files(ROOT / "docs" / "tutorial" / "own-model.md")
    assert set(files) == {"my_project/tiny/net.py", "my_project/tiny/data.py", "tiny.yaml"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path / "my_project", capture_output=True, text=True, check=False
    )

    assert done.stdout.strip() == f"(32, 10) {torch.int64}", done.stderr
