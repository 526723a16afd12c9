"""Nothing of a model changes while its data flow is traced."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm


class MovingTeacher(nn.Module):
    """Its forward moves an average of its weights, counts its calls, and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.teacher = copy.deepcopy(self.student)
        self.register_buffer("queue", torch.zeros(3))
        self.calls, self.last = 0, None

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.mul_(0.5).add_(fast + 1)
            self.teacher[0].bias.data += 0.5
            self.queue = self.queue + torch.rand(3)
            self.calls += 1
        self.last = self.student(x)
        return self.last


class CountingNorm(nn.BatchNorm2d):
    """A normalization that counts by itself, as timm's do, but that nobody has described: it is traced through."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, momentum=None)
        self.drop = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return self.drop(x)


def _everything(model: nn.Module) -> dict[str, Any]:
    state = {name: value.clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
    modes = {path: module.training for path, module in model.named_modules()}
    others = {name: value for name, value in vars(model).items() if not name.startswith("_")}
    return {"modes": modes, "others": others, "random": torch.get_rng_state(), **state}


TRACING: dict[str, Callable[[nn.Module], Any]] = {
    "audit": lambda model: norm.audit(model, torch.randn(1, 3, 4, 4), batch_size=2, workers=2),
    **{
        kind: lambda model, kind=kind: norm.revert(norm.convert(model, kind)[0])  # type: ignore[misc]
        for kind in ("evo_s0", "filter_response", "weight_standardization", "selu", "sync_batch")
    },
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "teacher": MovingTeacher,
    "teacher inside": lambda: nn.Sequential(MovingTeacher(), nn.BatchNorm2d(4)),
    "counting": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
    "in a wrapper": lambda: nn.DataParallel(MovingTeacher()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("action", TRACING)
def test_tracing_leaves_every_value_as_it_was(action: str, name: str, is_training: bool, dtype: torch.dtype) -> None:
    model = MODELS[name]().train(is_training).to(dtype)
    before = _everything(model)

    TRACING[action](model)

    after = _everything(model)
    drawn = {"random"} if action in ("audit", "selu") else set()  # the test's example, and weights drawn anew
    assert after.keys() == before.keys()
    for key in after.keys() - drawn:
        is_same = torch.equal(after[key], before[key]) if isinstance(after[key], Tensor) else after[key] == before[key]
        assert is_same, key


def test_undescribed_layer_does_not_count_while_it_is_traced() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), CountingNorm(4))

    norm.audit(model, torch.randn(1, 3, 4, 4), batch_size=2, workers=2)

    assert int(model[1].num_batches_tracked) == 0
