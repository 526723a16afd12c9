"""Parameters that several modules share, through a conversion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm


class TiedConvs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, bias=False), nn.Conv2d(3, 3, 3, bias=False)
        self.norm, self.act = nn.BatchNorm2d(3), nn.ReLU()
        self.second.weight = self.first.weight
        self.last = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.act(self.norm(self.first(x)))))


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.embedding(x)))


@pytest.mark.parametrize("kind", ["weight", "weight_standardization", "selu", "none", "group"])
def test_tied_weights_stay_tied(kind: str) -> None:
    model = TiedConvs()

    converted, _ = norm.convert(model, kind)
    optimizer = torch.optim.SGD(converted.parameters(), 0.1)
    for _ in range(3):
        converted(torch.randn(4, 3, 9, 9)).square().sum().mul(0.01).backward()
        optimizer.step()

    assert torch.equal(converted.first.weight, converted.second.weight)
    trained_weight = converted.first.weight.detach().clone()
    reverted = norm.revert(converted)
    assert reverted.first.weight is reverted.second.weight
    if kind in ("weight", "none", "group"):  # the others have a raw weight, or start from weights of their own
        torch.testing.assert_close(reverted.first.weight, trained_weight)


@pytest.mark.parametrize("kind", ["weight", "selu"])
def test_tie_that_can_not_stay_is_refused_by_name(kind: str) -> None:
    model = TiedHead()

    with pytest.raises(ValueError, match=r"head\.weight is also embedding\.weight, of a Embedding that can't be"):
        norm.convert(model, kind)

    assert type(model.norm) is nn.BatchNorm1d
    assert model.head.weight is model.embedding.weight


def test_tied_layer_can_be_left_out_by_an_override() -> None:
    model, _ = norm.convert(TiedHead(), "weight", overrides=[{"match": "head", "kind": "none"}])

    assert model.head.weight is model.embedding.weight
    assert type(model.norm) is nn.Identity


def test_tied_layers_of_which_one_axis_differs_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 3, 1))
    model[2].weight = model[0].weight

    with pytest.raises(ValueError, match=r"0\.weight is also 2\.weight, of a ConvTranspose2d"):
        norm.convert(model, "weight")
