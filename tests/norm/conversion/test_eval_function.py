"""The function in eval mode: kept by a conversion, or the report says what changes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm import KINDS
from tests.helpers.norm.models import trained

RUNNING_KINDS = [name for name, kind in KINDS.items() if kind.running_statistics]


def _fixed() -> nn.Module:
    """The statistics stay as they are, and torch still uses them in eval mode."""
    layer = trained(nn.BatchNorm2d(4))
    layer.track_running_stats = False
    return layer


def _without_statistics() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return layer


def _tracking_instances() -> nn.Module:
    layer = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    for _ in range(5):
        layer(torch.randn(8, 4, 4, 4) * 3 + 1)
    return layer


EXACT: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "fixed statistics": (_fixed, RUNNING_KINDS),
    "no statistics": (_without_statistics, ["batch", "sync_batch"]),
    "instance norm with statistics": (_tracking_instances, RUNNING_KINDS),
    "groups": (lambda: nn.GroupNorm(2, 4), []),
}
SILENT = [(name, kind) for name, (_, kinds) in EXACT.items() for kind in kinds]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("name", "kind"), SILENT)
def test_function_in_eval_mode_stays(name: str, kind: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), EXACT[name][0]()).to(dtype).eval()
    x = torch.randn(2, 3, 4, 4, dtype=dtype)
    expected = model(x)

    converted, _ = norm.convert(model, kind)

    torch.testing.assert_close(converted(x), expected)
    assert torch.equal(norm.revert(converted)(x), expected)


@pytest.mark.parametrize("kind", ["batch", "sync_batch"])
def test_fixed_statistics_stay_fixed_in_training(kind: str) -> None:
    model = nn.Sequential(_fixed())
    before = copy.deepcopy(model.state_dict())

    converted, replaced = norm.convert(model, kind)
    converted.train()(torch.randn(4, 4, 3, 3))

    assert replaced[0].note == ""
    assert all(torch.equal(value, before[key]) for key, value in converted.state_dict().items())


SAID: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "fixed statistics": (_fixed, "batch_renorm", "follow the data from here on"),
    "no statistics": (_without_statistics, "ghost_batch", "it had no running statistics"),
    "frozen without statistics": (_without_statistics, "frozen_batch", "it had no running statistics"),
    "instance norm with statistics": (_tracking_instances, "instance", "by those of each sample"),
    "other groups": (lambda: nn.GroupNorm(1, 4), "layer", ""),
    "fewer groups": (lambda: nn.GroupNorm(4, 4), "group", "its 4 groups of channels are 2 now"),
}


@pytest.mark.parametrize("name", SAID)
def test_what_changes_in_eval_mode_is_said(name: str) -> None:
    make, kind, note = SAID[name]

    _, replaced = norm.convert(nn.Sequential(make()), kind)

    assert note in replaced[0].note
    assert bool(note) is bool(replaced[0].note)


class BranchOfTraining(nn.Module):
    """A second head, in training alone, whose activation is also used elsewhere, as in MONAI's SegResNetVAE."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.other, self.last = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.conv(x))
        y: Tensor = self.last(h + 1)
        return y + self.other(self.act(self.norm(h - 1))) + self.other(self.act(self.norm(h))) if self.training else y


@pytest.mark.parametrize("kind", ["none", "weight"])
def test_activation_of_a_branch_of_training_writes_into_nothing(kind: str) -> None:
    torch.manual_seed(0)
    model, x = BranchOfTraining().eval(), torch.randn(2, 3, 4, 4)

    converted, replaced = norm.convert(model, kind)
    converted.train()(x).sum().backward()

    assert [item.path for item in replaced if "not in place any more" in item.note] == ["act"]
    assert norm.revert(converted).act.inplace
