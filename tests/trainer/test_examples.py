"""Every job in examples/ is a valid spec; those that segment train in small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers.norm.pool import Pool
from tests.helpers.paths import EXAMPLES
from tests.helpers.trainer.ranks import train


def _document(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_example_is_a_valid_job_or_a_study_of_one(path: Path) -> None:
    document = _document(path)

    spec = read_spec(document.get("base", document))

    assert "base" in document or spec.name == path.stem


@pytest.mark.parametrize("kind", ["batch", "sync_batch"])
@pytest.mark.parametrize("example", ["scenes-unet-sync-batch", "volumes-unet-3d"])
def test_segmentation_trains_on_two_workers_with_one_sample_each(
    example: str, kind: str, ranks: Pool, tmp_path: Path
) -> None:
    document = _document(EXAMPLES / f"{example}.yaml")
    document["data"]["init_args"] |= {"scenes": 4, "val_scenes": 3}
    document |= {"norm": {"kind": kind}, "train": {"epochs": 1}}

    first, second = ranks.run(train, 2, str(tmp_path), document)

    assert first.metrics == second.metrics
    assert first.metrics["val/loss"] > 0
    assert {"val/mean_iou", "val/dice", "val/loss", "train/mean_iou"} <= first.metrics.keys()
