"""Graph networks: their batches are objects, and each worker has another number of nodes in a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.norm.pool import Pool
from tests.helpers.vision.on_ranks import job, train_in

METRICS = ("train/loss", "val_acc")


def spec(workers: int, *, double: bool) -> dict[str, Any]:
    document = job("graphs.GraphNet", "graphs.graphs", {"batch_size": 8 // workers, "double": double})
    document["resources"] = {"workers": workers}
    document["train"] = {"epochs": 2, "precision": "64-true" if double else "32-true"}
    return document


def test_graph_network_trains_on_two_workers(ranks: Pool, tmp_path: Path) -> None:
    first, second = ranks.run(train_in, 2, str(tmp_path), spec(2, double=False))

    assert first.metrics == second.metrics
    assert set(METRICS) <= set(first.metrics)
    assert all(torch.equal(tensor, second.state[path]) for path, tensor in first.state.items())


def test_two_workers_equal_one(ranks: Pool, tmp_path: Path) -> None:
    """Though statistics are over nodes, of which one has more than the other."""
    one, *_ = ranks.run(train_in, 1, str(tmp_path / "one"), spec(1, double=True))
    two, *_ = ranks.run(train_in, 2, str(tmp_path / "two"), spec(2, double=True))

    for path, tensor in one.state.items():  # four steps of fp64, whose sums run in another order
        torch.testing.assert_close(two.state[path], tensor, rtol=1e-9, atol=1e-12, msg=path)
    for name in METRICS:
        assert two.metrics[name] == pytest.approx(one.metrics[name], rel=1e-6)
