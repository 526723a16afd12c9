"""Kinds that exchange statistics: any split of a batch over workers equals one device with the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm import KINDS
from tests.helpers.combinations import each_value
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import SPLITS, part, relative_error

SYNCHRONIZED = [name for name, kind in KINDS.items() if kind.synchronizes]
# r and d at work from the first step on
STARTED = {"warmup_steps": 0, "r_max_steps": 4, "d_max_steps": 4}


def _build(kind: str) -> nn.Module:
    layer = norm.build(kind, 5, dtype=torch.float64, momentum=0.3, **(STARTED if "renorm" in kind else {}))
    torch.manual_seed(3)
    for name, tensor in layer.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor))
    return layer


def _train(layer: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Several steps, so that running statistics act on later outputs."""
    outputs, gradients = [], []
    for batch, probe in batches:
        x = batch.clone().requires_grad_()
        y = layer(x)
        (y * probe).sum().backward()
        outputs.append(y.detach())
        gradients.append(x.grad)
    weights = {f"grad.{name}": parameter.grad for name, parameter in layer.named_parameters()}
    return {"y": torch.cat(outputs, 1), "dx": torch.cat(gradients, 1)} | weights | layer.state_dict()


def _on_rank(
    rank: int, world_size: int, kind: str, batches: list[tuple[Tensor, Tensor]], split: tuple[int, ...]
) -> dict[str, Tensor]:
    return _train(_build(kind), [(part(x, split, rank), part(probe, split, rank)) for x, probe in batches])


@pytest.mark.parametrize(("split", "kind"), each_value(SPLITS, SYNCHRONIZED))
def test_any_split_equals_one_device(pool: Pool, split: tuple[int, ...], kind: str) -> None:
    shape = (sum(split), 5, 4, 3)
    batches = [(torch.randn(shape).double() * 2 + 1, torch.randn(shape).double()) for _ in range(3)]
    expected = _train(_build(kind.removeprefix("sync_")), batches)

    results = pool.run(_on_rank, len(split), kind, batches, split)

    # fp64 sums in another order
    for name in ("y", "dx"):
        assert relative_error(torch.cat([result[name] for result in results]), expected[name]) < 1e-12, name
    for name in ("grad.weight", "grad.bias"):
        assert relative_error(sum(result[name] for result in results), expected[name]) < 1e-12, name
    for result in results:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert relative_error(result[name], expected[name]) < 1e-12, name


def _one_value(rank: int, world_size: int, kind: str) -> None:
    norm.build(kind, 3)(torch.randn(1 if rank == 0 else 0, 3, 1, 1))


@pytest.mark.parametrize("kind", SYNCHRONIZED)
def test_one_value_in_the_whole_group_is_refused(pool: Pool, kind: str) -> None:
    outcomes = pool.outcomes(_one_value, 2, kind)

    assert all(not ok and "more than one value per channel over the whole group" in str(e) for ok, e, _ in outcomes)


def _convert_and_fold(rank: int, world_size: int, kind: str) -> tuple[bool, float]:
    group = dist.new_group([0, 1])
    model, _ = norm.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), kind, group=group)
    model(torch.randn(2, 3, 5, 5))
    model.eval()
    folded, report = norm.fold(model)
    x = torch.randn(2, 3, 5, 5)
    return all(item.into for item in report), relative_error(folded(x).detach(), model(x).detach())


@pytest.mark.parametrize("kind", SYNCHRONIZED)
def test_layers_with_a_process_group_fold(pool: Pool, kind: str) -> None:
    for is_folded, error in pool.run(_convert_and_fold, 2, kind):
        assert is_folded
        # each weight is rounded once
        assert error < 1e-5
