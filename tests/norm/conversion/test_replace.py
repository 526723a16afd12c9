"""Layers with statistics of the batch are exchanged alone, where that is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from syncnorm import norm
from syncnorm.norm.layers.frozen_batch_norm import FrozenBatchNorm


class LayerNorm2d(nn.GroupNorm):
    """A subclass of the kind that many repositories have."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.0


class Styled(nn.InstanceNorm2d):
    """Another one."""


def mixed() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.InstanceNorm2d(8, affine=True),
        nn.GroupNorm(4, 8),
        FrozenBatchNorm(8),
        LayerNorm2d(8),
        Styled(8),
        nn.SyncBatchNorm(8),
    )


def names(model: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in model.children()]


@pytest.mark.parametrize("kind", ["sync_batch", "group", "none", "batch_renorm"])
def test_what_does_not_depend_on_the_batch_stays(kind: str) -> None:
    model = mixed()
    before = list(model.children())

    converted, report = norm.convert(model, kind, replace="batch")

    assert [one.path for one in report] == ["1", "7"]
    assert list(converted.children())[2:7] == before[2:7]


def test_overrides_name_any_layer() -> None:
    overrides = [norm.Override("2", "layer")]

    converted, report = norm.convert(mixed(), "sync_batch", replace="batch", overrides=overrides)

    assert [(one.path, one.after) for one in report] == [
        ("1", "SyncBatchNorm"),
        ("2", "GroupNorm"),
        ("7", "SyncBatchNorm"),
    ]
    assert names(norm.revert(converted)) == names(mixed())


def test_weights_are_normalized_beside_layers_that_stay() -> None:
    _, report = norm.convert(mixed(), "weight", replace="batch")

    assert [one.path for one in report] == ["0", "1", "7"]


def test_all_is_every_normalization_over_channels() -> None:
    model = nn.Sequential(*(layer for layer in mixed() if type(layer) not in (LayerNorm2d, Styled)))

    _, report = norm.convert(model, "sync_batch")

    assert len(report) == 5


def test_subclass_of_batch_norm_that_nobody_described_is_refused_all_the_same() -> None:
    class Odd(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    with pytest.raises(ValueError, match="Only layers of known behaviour"):
        norm.convert(nn.Sequential(Odd(8)), "sync_batch", replace="batch")


def test_kinds_are_counted() -> None:
    model = nn.Sequential(*list(mixed())[:5])

    assert norm.count_kinds(model) == {"batch": 1, "instance": 1, "group": 1, "frozen_batch": 1}


@pytest.mark.parametrize("chosen", ["group", "weight_standardization", "evo_s0", "weight", "selu"])
def test_what_was_converted_to_other_statistics_before_stays(chosen: str) -> None:
    def convolution() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))

    model, _ = norm.convert(convolution(), chosen)
    x, before = torch.randn(2, 3, 7, 7), list(model.modules())
    expected = model(x)

    converted, report = norm.convert(model, "sync_batch", replace="batch")

    assert report == []
    assert list(converted.modules()) == before
    torch.testing.assert_close(converted(x), expected, rtol=0, atol=0)
    assert names(norm.revert(converted)) == names(convolution())


def test_what_was_converted_to_statistics_of_the_batch_before_is_exchanged_once() -> None:
    model, _ = norm.convert(mixed(), "batch_renorm", replace="batch")

    converted, report = norm.convert(model, "sync_batch", replace="batch")

    assert [(one.path, one.before) for one in report] == [("1", "BatchNorm2d"), ("7", "SyncBatchNorm")]
    assert names(norm.revert(converted)) == names(mixed())


@pytest.mark.parametrize("chosen", ["group", "instance", "none"])
def test_an_override_of_one_converted_layer_leaves_the_others(chosen: str) -> None:
    model, _ = norm.convert(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8)), chosen)
    others = list(model.children())[:2]

    converted, report = norm.convert(model, "sync_batch", replace="batch", overrides=[norm.Override("2", "layer")])

    assert [(one.path, one.before, one.after) for one in report] == [("2", "BatchNorm2d", "GroupNorm")]
    assert list(converted.children())[:2] == others
    assert names(norm.revert(converted)) == ["BatchNorm2d", "ReLU", "BatchNorm2d"]


@pytest.mark.parametrize("chosen", ["weight_standardization", "weight", "evo_s0"])
def test_an_override_undoes_all_of_a_conversion_whose_parts_need_each_other(chosen: str) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    model, _ = norm.convert(plain, chosen)

    converted, _ = norm.convert(model, "sync_batch", replace="batch", overrides=[norm.Override("4", "layer")])

    assert names(converted) == ["Conv2d", "SyncBatchNorm", "ReLU", "Conv2d", "GroupNorm"]
    assert not any(hasattr(layer, "parametrizations") for layer in converted.children())


def test_an_override_of_a_converted_layer_starts_from_what_was_there_before() -> None:
    model, _ = norm.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), "evo_s0")

    converted, _ = norm.convert(model, "sync_batch", replace="batch", overrides=[norm.Override("1", "layer")])

    assert names(converted) == ["Conv2d", "GroupNorm", "ReLU"]
