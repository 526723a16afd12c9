"""Lightning is one package, whichever of its names code imports."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> str:
    """What it prints, in a process of its own."""
    begin = "from syncnorm.trainer.user_code.lightning_names import unite\n"
    done = subprocess.run([sys.executable, "-c", begin + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_both_names_give_the_same_module() -> None:
    code = """
unite(); unite()
import sys, pytorch_lightning as pl, pytorch_lightning.callbacks.early_stopping, lightning_fabric.utilities.seed
from pytorch_lightning.utilities import rank_zero
import lightning.pytorch as own, lightning.fabric
from lightning.pytorch.utilities import rank_zero as own_rank_zero
print(pl is own, rank_zero is own_rank_zero, lightning_fabric.utilities.seed is lightning.fabric.utilities.seed,
      own.__spec__.name, own.__version__ == pl.__version__,
      sum(type(finder).__name__ == "_Finder" for finder in sys.meta_path))
"""

    assert run(code).split() == ["True", "True", "True", "lightning.pytorch", "True", "1"]


def test_every_module_has_its_other_name_and_no_other_one_has() -> None:
    code = """
unite()
import importlib, pkgutil, pytorch_lightning
names = [found.name for found in pkgutil.walk_packages(pytorch_lightning.__path__, "pytorch_lightning.")]
print(len(names), {importlib.import_module(name).__name__.partition(".")[0] for name in names if ".cli" not in name})
try:
    import pytorch_lightning.nothing
except ModuleNotFoundError as error:
    print(error)
"""
    counted, missing = run(code).splitlines()

    assert int(counted.partition(" ")[0]) > 100
    assert counted.endswith("{'lightning'}")
    assert missing == "No module named 'pytorch_lightning.nothing'"


def test_pickles_by_the_other_name_give_the_same_class() -> None:
    code = """
unite()
import pickle
from lightning.pytorch.utilities.parsing import AttributeDict
print(pickle.loads(b"cpytorch_lightning.utilities.parsing\\nAttributeDict\\n.") is AttributeDict)
"""

    assert run(code) == "True"


def test_process_that_has_loaded_the_other_one_keeps_both() -> None:
    code = """
import sys, pytorch_lightning
before = list(sys.meta_path)
unite()
import lightning.pytorch
print(pytorch_lightning is lightning.pytorch, sys.meta_path == before)
"""

    assert run(code) == "False True"
