"""Every code of the audit: found where it belongs, and not on a model without fault."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm import Finding
from tests.helpers.norm.models import ResNet, Shared, trained

IMAGE = (2, 3, 8, 8)
PLAN: dict[str, Any] = {"batch_size": 32, "workers": 2}


def _net(*layers: nn.Module) -> nn.Sequential:
    """A convolution to 8 channels, then `layers`."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), *layers)


def _with(layer: nn.Module, **attributes: Any) -> nn.Module:
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def _filled(layer: nn.Module, name: str, value: float) -> nn.Module:
    layer.get_buffer(name)[:2] = value
    return layer


class _NotReached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _PooledByMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).mean((2, 3))


Case = tuple[Callable[[], nn.Module], dict[str, Any], str]

CASES: dict[str, Case] = {
    "one_value_per_channel": (
        lambda: _net(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8)),
        {"batch_size": 1, "workers": 4},
        "error",
    ),
    "few_values_per_statistic": (
        lambda: _net(nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(8)),
        {"batch_size": 2, "workers": 4},
        "warning",
    ),
    "batch_norm_on_one_position": (lambda: _net(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8)), PLAN, "warning"),
    "sync_on_one_worker": (lambda: _net(norm.SyncBatchNorm(8)), {"batch_size": 32, "workers": 1}, "info"),
    "statistics_of_one_worker": (lambda: _net(nn.BatchNorm2d(8)), {"batch_size": 4, "workers": 8}, "warning"),
    "torch_sync_batch_norm": (lambda: _net(nn.SyncBatchNorm(8)), PLAN, "warning"),
    "accumulation_splits_statistics": (lambda: _net(nn.BatchNorm2d(8)), {**PLAN, "accumulate": 4}, "warning"),
    "uneven_last_batch": (lambda: _net(nn.BatchNorm2d(8)), {**PLAN, "dataset_size": 6402}, "warning"),
    "ghost_size_does_not_divide": (lambda: _net(norm.build("ghost_batch", 8, ghost_size=24)), PLAN, "info"),
    "groups_do_not_divide": (lambda: nn.Sequential(_with(_Bypassed(2, 8), num_groups=3)), PLAN, "error"),
    "group_of_one_value": (lambda: _net(nn.AdaptiveAvgPool2d(1), nn.GroupNorm(8, 8)), PLAN, "error"),
    "layer_not_reached": (_NotReached, PLAN, "info"),
    "layer_called_several_times": (Shared, PLAN, "warning"),
    "no_running_statistics": (lambda: _net(nn.BatchNorm2d(8, track_running_stats=False)), PLAN, "warning"),
    "extreme_momentum": (lambda: _net(nn.BatchNorm2d(8, momentum=1.0)), PLAN, "warning"),
    "eps_too_small": (lambda: _net(nn.BatchNorm2d(8, eps=0.0)), PLAN, "warning"),
    "renorm_never_starts": (lambda: _net(norm.build("batch_renorm", 8)), {**PLAN, "steps": 1000}, "warning"),
    "non_finite_statistics": (lambda: _net(_filled(nn.BatchNorm2d(8), "running_mean", torch.nan)), PLAN, "error"),
    "dead_channels": (lambda: _net(_filled(nn.BatchNorm2d(8), "running_var", 0.0)), PLAN, "warning"),
    "frozen_without_statistics": (lambda: _net(norm.build("frozen_batch", 8)), PLAN, "warning"),
    "instance_norm_before_global_pooling": (
        lambda: _net(nn.InstanceNorm2d(8), nn.AdaptiveAvgPool2d((1, 1))),
        PLAN,
        "error",
    ),
    "bias_before_norm": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), PLAN, "info"),
    "activation_twice": (lambda: _net(norm.build("evo_s0", 8), nn.ReLU()), PLAN, "warning"),
    "normalizes_nothing": (lambda: _net(norm.build("evo_s0", 8), _bare_evo_norm()), PLAN, "info"),
    "dropout_before_batch_norm": (lambda: _net(nn.Dropout2d(0.2), nn.BatchNorm2d(8)), PLAN, "warning"),
    "dropout_in_self_normalizing_network": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.SELU(), nn.Dropout(0.1)),
        PLAN,
        "warning",
    ),
    "box_cox_in_a_deep_network": (
        lambda: _net(*(norm.build("box_cox", 8) for _ in range(8))),
        PLAN,
        "warning",
    ),
    "forward_fails": (lambda: _net(nn.AdaptiveAvgPool2d(1), norm.build("instance", 8)), PLAN, "error"),
    "unknown_layer": (lambda: _net(_Described(8)), PLAN, "error"),
}


def _bare_evo_norm() -> nn.Module:
    return norm.convert(nn.Sequential(nn.BatchNorm2d(8)), "evo_s0")[0][0]


class _Bypassed(nn.GroupNorm):
    """A group normalization whose forward does not mind its number of groups."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class _Described(nn.BatchNorm2d):
    """A subclass that nobody described, with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.fixture(autouse=True)
def _describe_bypassed(monkeypatch: pytest.MonkeyPatch) -> None:
    from syncnorm.norm.reading import readers as sources

    monkeypatch.setattr(sources, "_READERS", dict(sources._READERS))
    norm.register_source(_Bypassed, lambda layer: norm.Source("group", layer.num_channels, None, layer.eps, True))


def _audit(model: nn.Module, **plan: Any) -> list[Finding]:
    takes_features = isinstance(next(model.children(), None), nn.Linear)
    return norm.audit(model, torch.randn((2, 8) if takes_features else IMAGE), **plan)


@pytest.mark.parametrize("code", CASES)
def test_finding_is_made_where_it_belongs(code: str) -> None:
    make, plan, severity = CASES[code]

    found = [finding for finding in _audit(make(), **plan) if finding.code == code]

    assert found
    assert found[0].severity == severity
    assert found[0].message.endswith((".", ")"))
    assert found[0].fix.endswith(".")


def test_model_without_fault_has_no_finding() -> None:
    model, _ = norm.convert(ResNet(), "sync_batch")

    assert norm.audit(model, torch.randn(IMAGE), batch_size=32, workers=4, dataset_size=12800) == []


def test_finding_has_path_and_numbers() -> None:
    model, _ = norm.convert(ResNet(), "sync_batch")

    found = norm.audit(model, torch.randn(1, 3, 4, 4), batch_size=2, workers=2)

    by_path = {finding.path: finding for finding in found if finding.code == "few_values_per_statistic"}
    # 4x4 maps, halved in the second stage: 2 samples x 2 workers x 4 positions
    assert by_path["layer2.0.bn1"].numbers == {"values": 16, "samples": 2, "positions": 4}
    assert "bn1" not in by_path


def test_synchronization_counts_the_values_of_all_workers() -> None:
    plan = {"batch_size": 2, "workers": 16}
    local = _audit(_net(nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(8)), **plan)
    synchronized = _audit(_net(nn.AdaptiveAvgPool2d(2), norm.SyncBatchNorm(8)), **plan)

    assert "few_values_per_statistic" in [finding.code for finding in local]
    assert synchronized == []


def test_mean_over_positions_is_global_pooling_too() -> None:
    found = norm.audit(_PooledByMean(), torch.randn(IMAGE), **PLAN)

    assert [finding.code for finding in found] == ["instance_norm_before_global_pooling"]


def test_instance_norm_elsewhere_is_fine() -> None:
    assert _audit(_net(nn.InstanceNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), **PLAN) == []


def test_weight_decay_on_norm_parameters_is_found_and_its_absence_not() -> None:
    model = _net(nn.BatchNorm2d(8))
    decayed = torch.optim.SGD(model.parameters(), 0.1, weight_decay=1e-4)
    spared = torch.optim.SGD(
        [{"params": model[0].parameters(), "weight_decay": 1e-4}, {"params": model[1].parameters()}], 0.1
    )

    assert [finding.code for finding in _audit(model, **PLAN, optimizer=decayed)] == ["norm_under_weight_decay"]
    assert _audit(model, **PLAN, optimizer=spared) == []


def test_layer_that_stops_the_forward_is_named() -> None:
    found = _audit(_net(nn.AdaptiveAvgPool2d(1), norm.build("instance", 8), nn.BatchNorm2d(8)), **PLAN)

    assert {(finding.code, finding.path) for finding in found} == {("forward_fails", ""), ("group_of_one_value", "2")}


def test_worst_comes_first() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8))

    severities = [finding.severity for finding in _audit(model, **PLAN)]

    assert severities == sorted(severities, key=["error", "warning", "info"].index)
    assert len(set(severities)) == 3


def test_model_is_left_as_it_is() -> None:
    model = trained(ResNet()).train()
    state = copy.deepcopy(model.state_dict())

    norm.audit(model, torch.randn(IMAGE), **PLAN)

    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_impossible_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        norm.audit(ResNet(), torch.randn(IMAGE), batch_size=4, workers=0)


class _ByKeyword(nn.Module):
    """Calls its layer by keyword, and takes its own inputs by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, *, pixel_values: Tensor, scale: float = 1.0) -> Tensor:
        return self.bn(input=pixel_values) * scale


class _TakesMapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.bn(batch["image"])


class _TakesTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        return self.bn(image + other)


INPUTS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "keywords": (_ByKeyword, {"pixel_values": torch.randn(1, 3, 2, 2)}),
    "keywords, one that is no tensor": (_ByKeyword, {"pixel_values": torch.randn(1, 3, 2, 2), "scale": 2.0}),
    "a class of mappings": (_ByKeyword, UserDict({"pixel_values": torch.randn(1, 3, 2, 2)})),
    "a mapping as one argument": (_TakesMapping, {"image": torch.randn(1, 3, 2, 2)}),
    "two arguments": (_TakesTwo, (torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2))),
}


@pytest.mark.parametrize("name", INPUTS)
def test_example_is_what_the_model_takes(name: str) -> None:
    make, example = INPUTS[name]

    found = norm.audit(make(), example, batch_size=2, workers=1)

    # 2 samples of 2 x 2 positions
    assert [(item.code, item.numbers["values"]) for item in found] == [("few_values_per_statistic", 8)]


@pytest.mark.parametrize("example", [{"image": torch.randn(1, 3, 2, 2)}, [torch.randn(1, 3, 2, 2)], None, "text"])
def test_example_that_does_not_fit_is_a_finding(example: Any) -> None:
    found = norm.audit(ResNet(), example, batch_size=32, workers=1)

    assert found[0].code == "forward_fails"
    assert found[0].message.startswith("The model does not take the example: ")
    assert len(found[0].message) > 50


class Product(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


@pytest.mark.parametrize("masked", [True, False])
def test_output_that_overflows_is_found_and_a_mask_is_none(masked: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), *[Product() for _ in range(12)])
    x = torch.full((1, 3, 4, 4), 100.0)
    if masked:
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Threshold(0.5, -torch.inf))
    norm.convert(model, "none")

    found = norm.audit(model, x, batch_size=2, workers=1)

    assert ("output_not_finite" in {item.code for item in found}) is not masked
