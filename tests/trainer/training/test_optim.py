from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from syncnorm import norm
from syncnorm.trainer.callbacks.adaptive_clipping import AdaptiveClipping
from syncnorm.trainer.contract.spec import ModelSpec, NormSpec, OptimizerSpec, ScheduleSpec
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import DataInfo
from syncnorm.trainer.models import build_model
from syncnorm.trainer.training.optim import (
    build_optimizer,
    build_schedule,
    clip_adaptive,
    rate_factor,
)
from syncnorm.trainer.training.parameters.groups import parameter_groups
from syncnorm.trainer.training.task_module import TaskModule
from syncnorm.trainer.training.tasks.task import Task


class WideNorm(nn.Module):
    """A norm whose weight is not one-dimensional."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 4, 1, 1))


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), WideNorm(), nn.Flatten(), nn.Linear(4, 1))


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rmsprop", "adam", "adamw", "lbfgs"])
def test_every_optimizer_lowers_a_quadratic(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = build_optimizer(model, OptimizerSpec(name=name, lr=0.01))  # type: ignore[arg-type]
    x, y = torch.randn(32, 4), torch.randn(32, 1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    before = closure().item()
    for _ in range(5):
        optimizer.step(closure)

    assert closure().item() < before


def test_weight_decay_spares_biases_and_norm_parameters() -> None:
    model = _model()

    groups = parameter_groups(model, OptimizerSpec(weight_decay=0.1))

    decayed = {id(param) for group in groups if group["weight_decay"] for param in group["params"]}
    assert decayed == {id(model[0].weight), id(model[4].weight)}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_lengths_of_weight_normalization_are_not_decayed() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, bias=False))

    groups = parameter_groups(model, OptimizerSpec(weight_decay=0.1))

    decayed = [param for group in groups if group["weight_decay"] for param in group["params"]]
    assert [param.shape for param in decayed] == [(4, 3, 3, 3)]


def test_decay_norm_decays_everything() -> None:
    groups = parameter_groups(_model(), OptimizerSpec(weight_decay=0.1, decay_norm=True))

    assert [group["weight_decay"] for group in groups] == [0.1]


def test_scalars_of_fixup_learn_at_a_tenth_of_the_rate_and_are_not_decayed() -> None:
    info = DataInfo("classification", 3, (1, 8, 8))
    resnet = build_model(ModelSpec(name="resnet", init_args={"depth": 8, "width": 4}), NormSpec(), info)
    model, _ = norm.convert(resnet, "fixup")

    groups = parameter_groups(model, OptimizerSpec(lr=0.5, weight_decay=0.1))

    slow = [param for group in groups if group["lr"] == 0.05 for param in group["params"]]
    assert {param.numel() for param in slow} == {1}
    # 3 blocks with 4 biases and a scale each (Zhang et al. 2019, fig. 1), one bias behind the stem, one at the end
    assert len(slow) == 3 * 5 + 2
    assert all(group["weight_decay"] == 0 for group in groups if group["lr"] == 0.05)


def test_frozen_parameters_are_left_out() -> None:
    model = _model()
    model[0].requires_grad_(False)

    groups = parameter_groups(model, OptimizerSpec())

    assert all(param.requires_grad for group in groups for param in group["params"])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"name": "constant"}, [1, 1, 1, 1, 1, 1, 1]),
        ({"name": "constant", "warmup_steps": 3}, [0.25, 0.5, 0.75, 1, 1, 1, 1]),
        ({"name": "linear", "tau_steps": 4, "end_factor": 0.2}, [1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2]),
        ({"name": "linear", "end_factor": 0.0}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
        ({"name": "step", "step_size": 2, "gamma": 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]),
        ({"name": "step", "gamma": 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]),
        ({"name": "cosine"}, [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(7)]),
        ({"name": "cosine", "warmup_steps": 2}, [1 / 3, 2 / 3, 1, (1 + math.sqrt(0.5)) / 2, 0.5, None, 0]),
    ],
)
def test_schedule_follows_its_formula(spec: dict[str, Any], expected: list[float | None]) -> None:
    rates = [rate_factor(ScheduleSpec(**spec), 6, step) for step in range(7)]

    for rate, wanted in zip(rates, expected, strict=True):
        # fp64 arithmetic of a few operations
        assert wanted is None or rate == pytest.approx(wanted, abs=1e-12)


def test_schedule_goes_on_from_its_state() -> None:
    spec, optimizer_spec = ScheduleSpec(name="cosine"), OptimizerSpec(lr=1.0)

    def run(optimizer: torch.optim.Optimizer, schedule: Any, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return rates

    first = build_optimizer(nn.Linear(1, 1), optimizer_spec)
    schedule = build_schedule(first, spec, 10)
    whole = run(first, schedule, 4)
    state = schedule.state_dict(), first.state_dict()
    whole += run(first, schedule, 6)
    second = build_optimizer(nn.Linear(1, 1), optimizer_spec)
    resumed = build_schedule(second, spec, 10)
    resumed.load_state_dict(state[0])
    second.load_state_dict(state[1])

    rest = run(second, resumed, 6)

    assert rest == whole[4:]


def test_warmup_beyond_tau_is_refused() -> None:
    spec = ScheduleSpec(name="linear", tau_steps=5, warmup_steps=5)

    with pytest.raises(ValueError, match=r"schedule.tau_steps must be above warmup_steps, got 5 and 5"):
        build_schedule(build_optimizer(nn.Linear(1, 1), OptimizerSpec()), spec, 10)


def test_adaptive_clipping_bounds_each_unit_by_its_weights_and_spares_the_output_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0, 4], [0, 0, 0]]))
    model[0].weight.grad = torch.tensor([[0.0, 2, 0], [0.0, 0, 1]])
    model[1].weight.grad = torch.full((2, 2), 100.0)

    clip_adaptive(model, 0.1)

    # unit 0: 0.1 * ‖(3, 0, 4)‖; unit 1 has no weights yet: 0.1 * eps
    torch.testing.assert_close(model[0].weight.grad, torch.tensor([[0.0, 0.5, 0], [0, 0, 1e-4]]))
    torch.testing.assert_close(model[1].weight.grad, torch.full((2, 2), 100.0))


def test_job_that_asks_for_adaptive_clipping_gets_it_before_each_step() -> None:
    network = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2))
    job = read_spec({"name": "a", "model": {"name": "mlp"}, "data": {"name": "digits", "batch_size": 1}})
    module = TaskModule(network, Task(DataInfo("classification", 2, (3,))), job, total_steps=1)
    network[0].weight.grad = torch.full((2, 3), 100.0)

    AdaptiveClipping(0.1).on_before_optimizer_step(Trainer(logger=False), module, torch.optim.SGD(network.parameters()))

    limit = 0.1 * network[0].weight.norm(dim=1)
    torch.testing.assert_close(network[0].weight.grad.norm(dim=1), limit)  # fp32


def test_adaptive_clipping_leaves_short_gradients_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Linear(1, 1))
    for param in model.parameters():
        param.grad = torch.full_like(param, 1e-9)

    clip_adaptive(model, 0.01)

    assert all(
        torch.equal(param.grad, torch.full_like(param, 1e-9)) for param in model.parameters() if param.grad is not None
    )
