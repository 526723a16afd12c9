"""Models may hold what has no deep copy."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from syncnorm import norm
from syncnorm.norm.folding.copies import deep_copy


class Sampler:
    """A plain object that keeps samples, as that of an energy-based model."""

    def __init__(self, model: nn.Module) -> None:
        self.examples = [model(torch.randn(2, 3, 8, 8)) for _ in range(2)]


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


@pytest.mark.parametrize("holds", ["samples", "a lock", "a file", "a list with a lock and a layer"])
def test_model_that_holds_anything_folds_as_without_it(holds: str) -> None:
    model = network().eval()
    wanted, _ = norm.fold(model)
    with open(__file__) as file:  # noqa: PTH123
        made: dict[str, Any] = {
            "samples": Sampler(model),
            "a lock": threading.Lock(),
            "a file": file,
            "a list with a lock and a layer": [threading.Lock(), model[0]],
        }
        model.held = made[holds]

        folded, report = norm.fold(model)

    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(folded(x), wanted(x))
    assert report[0].into == "0"


def test_copy_shares_no_values_with_the_model() -> None:
    model = network()
    model.sampler = Sampler(model)

    copied = deep_copy(model)

    with torch.no_grad():
        model[0].weight.zero_()
        model.sampler.examples[0].zero_()
    assert copied[0].weight.abs().sum() > 0
    assert copied.sampler.examples[0].abs().sum() > 0
    assert not copied.sampler.examples[0].requires_grad


def test_layer_in_a_plain_list_is_that_of_the_copy() -> None:
    model = network()
    model.also = [model[0]]

    copied: Any = deep_copy(model)

    assert copied.also[0] is copied[0] is not model[0]
