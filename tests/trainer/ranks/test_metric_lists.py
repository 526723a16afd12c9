"""Lists that metrics keep are gathered over workers that hold a different number of items."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection.mean_ap import MeanAveragePrecision

from syncnorm.trainer.ranks.metric_lists import in_turn, lists_of_any_length
from tests.helpers.norm.pool import Pool


class Items(Metric):
    """Keeps its inputs in a list, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("items", default=[], dist_reduce_fx=None)
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, item: Tensor) -> None:
        self.items.append(item)
        self.count += 1

    def compute(self) -> tuple[list[float], int]:
        return [float(item.sum()) for item in self.items], int(self.count)


def computed(rank: int, world_size: int, counts: list[int]) -> tuple[Any, Any]:
    """What rank 0 and 1 compute of so many items each, and what they hold afterwards."""
    metric = Items()
    for number in range(counts[rank]):
        metric.update(torch.full((1 + number,), float(10 * rank + number)))
    with lists_of_any_length():
        found = metric.compute()
    return found, [float(item[0]) for item in metric.items]


@pytest.mark.parametrize(
    ("counts", "items"),
    [([2, 2], [0.0, 10.0, 2.0, 22.0]), ([3, 1], [0.0, 10.0, 2.0, 6.0]), ([0, 2], [10.0, 22.0])],
)
def test_items_of_all_workers_are_gathered_in_turn(counts: list[int], items: list[float], ranks: Pool) -> None:
    first, second = ranks.run(computed, 2, counts)

    assert first == ((items, sum(counts)), [float(number) for number in range(counts[0])])
    assert second == ((items, sum(counts)), [10.0 + number for number in range(counts[1])])


def masks(rank: int, world_size: int) -> list[str]:
    with lists_of_any_length():
        return MeanAveragePrecision._gather_tuple_list([("a", "b", "c"), ("d",)][rank])  # type: ignore[arg-type]


def test_masks_of_all_workers_are_gathered_in_turn(ranks: Pool) -> None:
    assert ranks.run(masks, 2) == [["a", "d", "b", "c"]] * 2


def test_metrics_are_as_before_after_the_block() -> None:
    before = Metric._sync_dist, MeanAveragePrecision._gather_tuple_list

    with lists_of_any_length():
        assert Metric._sync_dist is not before[0]

    assert (Metric._sync_dist, MeanAveragePrecision._gather_tuple_list) == before


def test_in_turn() -> None:
    assert in_turn([[1, 4, 6], [2, 5], [3]]) == [1, 2, 3, 4, 5, 6]
