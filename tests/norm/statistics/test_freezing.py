from __future__ import annotations

import copy

import torch
from torch import nn

from syncnorm import norm
from syncnorm.norm.statistics.freezing import (
    can_freeze_statistics,
    freeze_statistics,
    has_frozen_statistics,
    unfreeze_statistics,
)


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), norm.SyncBatchNorm(4))
    freeze_statistics(model[1])
    return model


def test_held_layer_normalizes_by_running_statistics_in_training_and_never_updates_them() -> None:
    model = network()
    before = copy.deepcopy(model[1].state_dict())
    x = torch.randn(8, 3)

    model.eval().train()
    hidden = model[1](model[0](x) + 5.0)

    expected = nn.functional.batch_norm(model[0](x) + 5.0, before["running_mean"], before["running_var"])
    torch.testing.assert_close(hidden, expected)  # fp32
    assert all(torch.equal(tensor, before[name]) for name, tensor in model[1].state_dict().items())
    assert model[3].training


def test_a_copy_is_held_by_itself() -> None:
    model = network()

    other = copy.deepcopy(model).train()
    unfreeze_statistics(model[1])

    assert not other[1].training
    assert has_frozen_statistics(other[1])
    assert model[1].training
    assert not has_frozen_statistics(model[1])
    assert model.eval().train()[1].training


def test_only_layers_with_running_statistics_can_be_held() -> None:
    layers = [nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False), norm.FrozenBatchNorm(2), nn.Dropout()]

    assert [can_freeze_statistics(layer) for layer in layers] == [True, False, False, False]
    assert [has_frozen_statistics(layer) for layer in layers] == [False, False, True, False]


def test_population_statistics_leave_a_held_layer_as_it_is() -> None:
    model = network()

    found = norm.recompute_population_statistics(model, [torch.randn(16, 3)])

    assert list(found.layers) == ["3"]
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_snapshots_tell_held_layers_apart() -> None:
    assert {path: layer.frozen for path, layer in norm.snapshot(network()).items()} == {"1": True, "3": False}


def test_audit_takes_a_held_layer_for_one_without_batch_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2))
    freeze_statistics(model[0])

    found = norm.audit(model, torch.zeros(1, 2, 4, 4), batch_size=1, workers=2, accumulate=2)

    assert [finding.code for finding in found if finding.path == "0"] == ["frozen_without_statistics"]
    assert "accumulation_splits_statistics" in [finding.code for finding in found if finding.path == "2"]
