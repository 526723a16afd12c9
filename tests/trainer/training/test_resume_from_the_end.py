"""A worker that dies once training is over: the next attempt has nothing to train, and all else to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils._pytree import tree_leaves

from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.worker.fit import FitResult, fit
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.own_module_jobs import job
from tests.helpers.trainer.ranks import RecordingReporter, build, launch_of, rank_context

SMALL = {
    "name": "small",
    "model": {"name": "resnet", "init_args": {"depth": 8, "width": 4}},
    "data": {"name": "digits", "batch_size": 360},
}


def document(name: str, **train: Any) -> dict[str, Any]:
    own = {"Tested": job("Tested", data="PointsAndTest"), "Hooks": job("Hooks")}
    return {**own.get(name, SMALL), "norm": {"kind": "sync_batch"}, "resources": {"workers": 2}, "train": train}


Ended = tuple[int, dict[str, float], list[float], int, dict[str, float]]
"""Steps, metrics, the sum of each batch of validation, batches of training, and what the test found."""


def end(rank: int, world_size: int, root: str, document: dict[str, Any], resume_from: str | None) -> Ended:
    launch = launch_of(document, resume_from)
    assembly = build(rank, world_size, launch)
    reporter: Any = RecordingReporter()
    found: FitResult = fit(assembly, launch, AttemptFolders(Path(root)), reporter, rank_context(rank, world_size))
    test = found.test() if launch.spec.train.test else {}
    held_out = [float(tree_leaves(batch)[0].sum()) for batch in found.held_out]
    return found.step, found.metrics, held_out, len(list(found.training)), test


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("digits", {"epochs": 2}),
        ("digits", {"steps": 3}),
        ("Tested", {"epochs": 2, "test": True}),
        ("Tested", {"steps": 3, "test": True}),
        ("Hooks", {"epochs": 2}),
        ("Hooks", {"epochs": 2, "average": {"kind": "ema"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_an_attempt_with_nothing_left_to_train_ends_as_the_one_before(
    name: str, train: dict[str, Any], ranks: Pool, tmp_path: Path
) -> None:
    whole = ranks.run(end, 2, str(tmp_path / "1"), document(name, **train), None)
    newest = checkpoints.newest([tmp_path / "1" / "checkpoints"])
    assert newest is not None

    again = ranks.run(end, 2, str(tmp_path / "2"), document(name, **train), str(newest.path))

    for rank, (found, wanted) in enumerate(zip(again, whole, strict=True)):
        assert found == wanted, rank
