"""What a user hears about a package that is likely to fail."""

from __future__ import annotations

import pytest

from syncnorm.service.storage.package_hints import hints


def test_code_that_will_do_is_passed_without_a_word() -> None:
    sources = {
        "net/__init__.py": "import torch\nfrom . import blocks\nfrom net.blocks import Block\n",
        "net/blocks.py": "import json, numpy as np\nfrom lightning.pytorch import LightningModule\nimport syncnorm\n",
        "train_data.py": "from net import blocks\nimport pytorch_lightning as pl\n",
    }

    assert hints(sources) == []


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ({"project/model.py": "", "project/parts/__init__.py": ""}, "All code lies in project/, so its modules"),
        ({"numpy.py": ""}, "Your numpy takes the place of the module numpy"),
        ({"random.py": "", "model.py": ""}, "Your random takes the place of the module random"),
        ({"model.py": "import flywheels.fast\nfrom gyros import spin"}, "It imports flywheels, gyros, which is not"),
    ],
)
def test_what_is_likely_to_fail_is_told(sources: dict[str, str], says: str) -> None:
    (hint,) = hints(sources)

    assert says in hint


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    import flywheels\n",
        "try:\n    import flywheels\nexcept ImportError:\n    flywheels = None\n",
        "import (",
    ],
)
def test_what_may_never_be_imported_is_not(source: str) -> None:
    assert hints({"model.py": source}) == []


def test_modules_of_a_project_one_folder_down_are_not_called_missing() -> None:
    assert len(hints({"project/model.py": "import blocks\n", "project/blocks.py": ""})) == 1
