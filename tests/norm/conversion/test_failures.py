"""Conversions that fail: a sentence, and the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn.utils import prune

from syncnorm import norm
from syncnorm.norm import SyncBatchNorm
from tests.helpers.norm.models import ResNet, vgg


def _weight_normed(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "WeightNorm": _weight_normed,
    "SpectralNorm": nn.utils.spectral_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.3),
}


@pytest.mark.parametrize("kind", ["weight", "weight_standardization", "selu", "fixup"])
@pytest.mark.parametrize("name", COMPUTED)
def test_weight_that_a_hook_computes_is_refused_with_a_sentence(name: str, kind: str) -> None:
    model = ResNet()
    model.layer1[0].conv2 = COMPUTED[name](model.layer1[0].conv2)
    model, _ = norm.convert(model, "sync_batch")

    with pytest.raises(ValueError, match=r"The weight of a layer must be a parameter, .* is computed"):
        norm.convert(model, kind)

    assert isinstance(model.bn1, SyncBatchNorm)
    assert type(norm.revert(model).bn1) is nn.BatchNorm2d


class Failing(nn.Module):
    """Raises `error` wherever a conversion touches it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error: BaseException | None = None
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.norm = nn.BatchNorm2d(3)
        self.error = error

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "norm" and getattr(self, "error", None) is not None and not isinstance(value, nn.BatchNorm2d):
            raise self.error  # type: ignore[misc]
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x))


@pytest.mark.parametrize("error", [ValueError, RuntimeError, AttributeError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["sync_batch", "evo_s0", "weight"])
def test_any_exception_leaves_the_model_as_it_was(kind: str, error: type[BaseException]) -> None:
    model = Failing(error("no"))
    layers = list(model.modules())

    with pytest.raises(error, match="no"):
        norm.convert(model, kind)

    assert list(model.modules()) == layers


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_any_exception_leaves_an_earlier_one(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = norm.convert(vgg(), "sync_batch")
    layers = list(model.modules())

    def fail(*_: object) -> None:
        raise error("no")

    monkeypatch.setattr("syncnorm.norm.conversion.exchanges.build_layer", fail)
    with pytest.raises(error, match="no"):
        norm.convert(model, "group")

    assert list(model.modules()) == layers
    assert type(norm.revert(model)[1]) is nn.BatchNorm2d
