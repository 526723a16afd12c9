"""Models that were scripted, traced or exported: their normalization is no layer any more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm


def _network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()


def _scripted(layer: nn.Module) -> nn.Module:
    return torch.jit.script(nn.Sequential(layer, nn.ReLU()).eval())


X = torch.ones(2, 3, 4, 4)
COMPILED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "scripted": ("", lambda: torch.jit.script(_network())),
    "traced": ("", lambda: torch.jit.trace(_network(), X)),
    "frozen": ("", lambda: torch.jit.freeze(torch.jit.script(_network()), optimize_numerics=False)),
    "exported": ("", lambda: torch.export.export(_network(), (X,)).module()),
    "group": ("", lambda: _scripted(nn.GroupNorm(1, 3))),
    "instance": ("", lambda: _scripted(nn.InstanceNorm2d(3))),
    "a part": ("0", lambda: nn.Sequential(torch.jit.script(_network()), nn.BatchNorm2d(4)).eval()),
}
SENTENCE = "(The model|0) is (scripted or traced|exported), so its normalization is part of a graph, and no layer"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_normalization_is_refused_by_convert(name: str) -> None:
    model = COMPILED[name][1]()
    before = model(X)

    with pytest.raises(ValueError, match=SENTENCE):
        norm.convert(model, "sync_batch")

    assert torch.equal(model(X), before)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_normalization_is_named_by_fold_and_audit(name: str) -> None:
    path, make = COMPILED[name]
    model = make()

    folded, report = norm.fold(model)
    found = norm.audit(model, X, batch_size=2, workers=1)

    assert [item.path for item in report if item.reason and "part of a graph" in item.reason] == [path]
    assert [item.path for item in found if item.code == "compiled_normalization"] == [path]
    assert not any(item.code == "forward_fails" for item in found)
    assert torch.equal(folded(X), model(X))


class Linear(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_compiled_part_without_normalization_stays_as_it_is() -> None:
    part = torch.jit.script(nn.Sequential(Linear(), nn.ReLU()))

    model, replaced = norm.convert(nn.Sequential(part, nn.BatchNorm2d(3)), "group")

    assert [item.path for item in replaced] == ["1"]
    assert model[0] is part
    assert not any(item.code == "compiled_normalization" for item in norm.audit(model, X, batch_size=2, workers=1))
