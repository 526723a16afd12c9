"""Segmentation of volumes with MONAI, one volume a worker: its Dice is that of one device."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from tests.helpers.vision.on_ranks import HERE, job
from tests.vision.conftest import Submitted, artifact, run_of

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]


@pytest.mark.parametrize("volumes", [6, 7])
def test_dice_is_that_of_one_device(
    volumes: int, submitted: Submitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(HERE)
    sys.modules.pop("volumes", None)
    from volumes import Scans, Segmenter, write_volumes  # type: ignore[import-not-found]

    root = tmp_path / "scans"
    write_volumes(root, volumes)

    done, (first, second) = submitted(job("volumes.Segmenter", "volumes.Scans", {"root": str(root)}))

    assert done["state"] == "succeeded", done["message"]
    assert (first["volumes"], second["volumes"]) == (4, 4)  # two of four in each of two epochs
    assert first["weights"] == second["weights"]
    alone, scans = Segmenter(), Scans(str(root))
    alone.load_state_dict(load(artifact(done, "export/weights.safetensors")))
    scans.setup("fit")
    assert len(scans.val) == volumes - 4
    with torch.no_grad():
        for batch in scans.val_dataloader():
            alone.eval().validation_step(batch, 0)
    assert run_of(done)["metrics"]["val_dice"] == pytest.approx(alone.dice.aggregate().item(), rel=1e-5)  # fp32
