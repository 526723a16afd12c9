"""A loader of torchdata's, which keeps a state of its own, continues where the job was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from syncnorm.trainer.training import checkpoints
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.own_module_jobs import job
from tests.helpers.trainer.ranks import RecordingReporter
from tests.helpers.vision.on_ranks import train_in

DATA = "tests.helpers.vision.stateful"


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("StatefulPoints", {}),
        ("StatefulPoints", {"shuffle": True}),
        ("StatefulPoints", {"shuffle": True, "num_workers": 2}),
        ("StatefulStream", {}),
        ("StatefulStream", {"num_workers": 2, "noise": 0.0}),  # numbers that these processes draw begin anew
    ],
)
@pytest.mark.parametrize("stop_at", [2, 4])
def test_stopped_job_ends_as_one_that_was_not(
    data: str, options: dict[str, Any], stop_at: int, ranks: Pool, tmp_path: Path
) -> None:
    document = job("Hooks", workers=2, norm={"kind": "sync_batch"})
    document["data"] = {"class_path": f"{DATA}.{data}", "init_args": options}
    whole = ranks.run(train_in, 2, str(tmp_path / "whole"), document)

    stopped = ranks.run(train_in, 2, str(tmp_path / "1"), document, None, RecordingReporter(stop_at=stop_at))
    newest = checkpoints.newest([tmp_path / "1" / "job" / "checkpoints"])
    assert newest is not None
    resumed = ranks.run(train_in, 2, str(tmp_path / "2"), document, str(newest.path))

    assert stopped[0].stopped_at is not None
    for found, wanted in zip(resumed, whole, strict=True):
        assert found.metrics == wanted.metrics
        assert [path for path, tensor in wanted.state.items() if not torch.equal(tensor, found.state[path])] == []
