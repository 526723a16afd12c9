"""Modules for images as people write them, as jobs of two workers through the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from tests.helpers.norm.pool import Pool
from tests.helpers.vision.on_ranks import job, plainly_trained
from tests.vision.conftest import Submitted, artifact, run_of

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]


def test_everyday_classifier_runs_with_all_its_hooks_and_callbacks(
    submitted: Submitted, folder: str, ranks: Pool, tmp_path: Path
) -> None:
    document = job("classifiers.Finetuned", "images.Folder", {"root": folder, "workers": 2}, train={"epochs": 5})

    done, (first, second) = submitted(document)
    plain, _ = plainly_trained(ranks, tmp_path / "plain", document)

    assert (done["state"], done["export"]["state"]) == ("succeeded", "certified"), done["export"]
    assert first["weights"] == second["weights"]
    assert first["calls"] == second["calls"] == plain["calls"]
    assert first["trained"] == [False, True]  # its EarlyStopping ends it after two of five epochs
    assert (first["norm"], plain["norm"]) == ("SyncBatchNorm", "BatchNorm2d")
    run = run_of(done)
    assert {"val_acc", "train_loss_epoch", "lr-AdamW/pg1", "lr-AdamW/pg2"} <= run["metrics"].keys()
    assert artifact(done, "notes.txt") == b"epoch 1"
    assert any(name.startswith("images/first") for name in run["files"])


def test_averages_of_weights_are_kept_and_restored(submitted: Submitted, folder: str) -> None:
    done, (first, second) = submitted(
        job("classifiers.Averaged", "images.FolderWithTwoValidations", {"root": folder}, train={"epochs": 2})
    )

    assert done["state"] == "succeeded"
    assert first["weights"] == second["weights"]
    assert first["averaged"] > 0
    weights = load(artifact(done, "export/weights.safetensors"))
    assert int(weights["average.n_averaged"]) == first["averaged"]
    assert {"val_loss/dataloader_idx_0", "val_loss/dataloader_idx_1"} <= done["progress"]["metrics"].keys()


def test_module_without_forward_and_two_optimizers_trains_without_an_export(submitted: Submitted) -> None:
    done, (first, second) = submitted(job("classifiers.TwoPlayers", "images.Pairs"))

    assert (done["state"], done["export"]["state"], done["export"]["reason"]) == ("succeeded", "skipped", "no_forward")
    assert first["weights"] == second["weights"]


def test_two_optimizers_without_manual_optimization_fail_in_lightnings_words(submitted: Submitted) -> None:
    document = job("classifiers.TwoPlayers", "images.Pairs")
    document["model"]["init_args"] = {"automatic": True}

    done, _ = submitted(document)

    assert (done["state"], done["reason"]) == ("failed", "user_error")
    assert "multiple optimizers is only supported with manual optimization" in done["message"]


def test_contrastive_module_has_no_certificate_but_of_its_backbone(submitted: Submitted, client: Any) -> None:
    document = job("contrastive.SimCLR", "contrastive.Views", {"samples": 33}, train={"epochs": 1})

    whole, (first, second) = submitted(document)
    part, _ = submitted(document | {"export": {"module": "backbone"}})

    assert (whole["state"], whole["export"]["state"]) == ("succeeded", "skipped")
    assert "projection.1 never runs in it" in whole["export"]["message"]
    assert first["gathered"] == second["gathered"]
    assert first["norm"] == "SyncBatchNorm"
    assert (part["state"], part["export"]["state"]) == ("succeeded", "certified"), part["export"]
