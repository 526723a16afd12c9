"""Modules for images and data of any form, on two ranks of the gloo pool."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.norm.pool import Pool
from tests.helpers.vision.on_ranks import job, trained


@pytest.mark.parametrize("model", ["classifiers.BuiltLate", "classifiers.BuiltInSetup"])
@pytest.mark.parametrize("data", ["images.Named", "images.Triples", "images.Pairs"])
def test_batches_of_any_form_train_and_layers_built_late_are_converted(
    model: str, data: str, ranks: Pool, tmp_path: Path
) -> None:
    result, (first, second) = trained(ranks, tmp_path, job(model, data))

    assert result.metrics["train/loss"] > 0
    assert first["weights"] == second["weights"]
    assert (first["norm"], first["samples"], second["samples"]) == ("SyncBatchNorm", 40, 40)
    assert first["labels"] + second["labels"] == 2 * 4 * sum(range(10))  # every sample once in each epoch


def test_stream_is_read_by_every_worker(ranks: Pool, tmp_path: Path) -> None:
    _, (first, second) = trained(ranks, tmp_path, job("classifiers.BuiltLate", "images.Streamed"))

    assert first["weights"] == second["weights"]
    assert (first["samples"], second["samples"]) == (80, 80)


@pytest.mark.parametrize("options", [{"weighted": True}, {"weighted": True, "workers": 2}])
def test_sampler_of_the_user_is_shared_out(
    options: dict[str, object], folder: str, ranks: Pool, tmp_path: Path
) -> None:
    document = job("classifiers.Averaged", "images.Folder", {"root": folder, **options}, train={"epochs": 1})

    result, (first, second) = trained(ranks, tmp_path, document)

    assert first["weights"] == second["weights"]
    assert (
        first["calls"]["training_step"] == 6
    )  # 20 images for 2 workers in batches of 4, and once more for the average
    assert 0 <= result.metrics["val_acc"] <= 1


@pytest.mark.parametrize(("samples", "last"), [(32, 8), (33, 2), (35, 4)])
def test_all_workers_gather_as_many_views(samples: int, last: int, ranks: Pool, tmp_path: Path) -> None:
    document = job("contrastive.SimCLR", "contrastive.Views", {"samples": samples}, train={"epochs": 1})

    _, (first, second) = trained(ranks, tmp_path, document)

    assert first["gathered"] == second["gathered"]
    assert [shape[0] for shape in first["gathered"]] == [8] * 4 + [last] * (samples > 32)
    assert first["weights"] == second["weights"]
    assert first["norm"] == "SyncBatchNorm"
