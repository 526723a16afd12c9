from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn

from syncnorm import norm
from tests.helpers.norm.models import ResNet, trained


def test_snapshot_has_every_layer_with_running_statistics() -> None:
    model, _ = norm.convert(ResNet(), "sync_batch", overrides=[{"match": "layer2.*", "kind": "group"}])

    found = norm.snapshot(model)

    assert set(found) == {"bn1", "layer1.0.bn1", "layer1.0.bn2", "layer1.1.bn1", "layer1.1.bn2"}
    assert found["bn1"].kind == "SyncBatchNorm"


def test_snapshot_summarizes_and_copies() -> None:
    layer = trained(nn.BatchNorm2d(5))
    mean, var = layer.running_mean.clone(), layer.running_var.clone()

    found = norm.snapshot(layer)[""]
    layer.running_mean.zero_()

    assert torch.equal(found.running_mean, mean.double())
    assert found.running_mean_abs == pytest.approx(mean.abs().mean().item())
    assert found.running_var_mean == pytest.approx(var.mean().item())
    assert found.num_batches_tracked == 7


def test_drift_is_known_after_an_observed_forward_only() -> None:
    layer = nn.BatchNorm1d(2).eval()
    x = torch.tensor([[1.0, -3.0], [3.0, -3.0]])

    layer(x)
    unobserved = norm.snapshot(layer)[""].drift
    with norm.observe(layer):
        layer(x)

    assert unobserved is None
    # means 2 and -3 against running mean 0 and std 1: on average 2.5 stds, up to eps
    assert norm.snapshot(layer)[""].drift == pytest.approx(2.5, rel=1e-4)
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("make", [nn.BatchNorm1d, norm.SyncBatchNorm, nn.SyncBatchNorm])
def test_layer_called_by_keyword_is_observed(make: Callable[[int], nn.Module]) -> None:
    layer = make(1).eval()

    with norm.observe(layer):
        layer(**{next(iter(inspect.signature(layer.forward).parameters)): torch.tensor([[1.0], [3.0]])})

    assert norm.snapshot(layer)[""].drift == pytest.approx(2.0, rel=1e-4)  # mean 2 from 0, with variance 1 + eps
