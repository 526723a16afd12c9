from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from syncnorm.trainer.contract.spec import DataSpec
from syncnorm.trainer.data import Data, DataInfo, build_data
from syncnorm.trainer.data.digits import Images
from syncnorm.trainer.data.loader import Batch, Loader, train_loader, val_loader
from syncnorm.trainer.training.tasks.loss import task_loss


def _digits(**init_args: Any) -> Data:
    return build_data(DataSpec(name="digits", batch_size=1, init_args=init_args), seed=0)


def _few(samples: int, **settings: Any) -> Data:
    x = torch.arange(samples).float()[:, None, None, None].expand(-1, 1, 8, 8)
    images = Images(x, torch.arange(samples) % 10, shift=1)
    return Data(DataInfo("classification", 10, (1, 8, 8)), images, Images(x, torch.arange(samples) % 10), **settings)


def _epoch(loader: Loader, epoch: int) -> list[Batch]:
    loader.set_epoch(epoch)
    return list(loader)


def _assert_same(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for batch, wanted in zip(batches, expected, strict=True):
        assert torch.equal(batch.x, wanted.x)
        assert torch.equal(batch.y, wanted.y)
        assert batch.weight == wanted.weight


@pytest.mark.parametrize(("num_workers", "position"), [(0, 0), (0, 2), (0, 5), (2, 2)])
def test_resumed_loader_gives_the_rest_bit_for_bit(num_workers: int, position: int) -> None:
    settings: dict[str, Any] = {"global_batch": 6, "rank": 1, "world_size": 2, "seed": 5}
    whole = _epoch(train_loader(_few(30), **settings), 3)
    interrupted = train_loader(_few(30, num_workers=num_workers), **settings)
    interrupted.set_epoch(3)
    batches = iter(interrupted)
    for _ in range(position):
        next(batches)
    state = interrupted.state_dict()
    resumed = train_loader(_few(30, num_workers=num_workers), **settings)

    resumed.load_state_dict(state)
    resumed.set_epoch(3)

    assert state == {"epoch": 3, "batch": position}
    _assert_same(list(resumed), whole[position:])


def test_state_after_a_pass_is_its_end_and_the_next_pass_is_whole() -> None:
    loader = train_loader(_few(10), global_batch=4)

    first = list(loader)
    state = loader.state_dict()
    second = list(loader)

    assert state == {"epoch": 0, "batch": 3}
    _assert_same(second, first)


def test_turning_to_another_epoch_starts_it_anew() -> None:
    loader = train_loader(_few(10), global_batch=4)
    batches = iter(loader)
    next(batches)

    loader.sampler.set_epoch(1)

    assert loader.state_dict() == {"epoch": 1, "batch": 0}


def test_augmentation_depends_on_epoch_and_sample_but_not_on_the_world_size() -> None:
    data = _digits(augment=True)
    alone = _epoch(train_loader(data, global_batch=64, seed=1), 2)
    ranks = [_epoch(train_loader(data, global_batch=64, seed=1, rank=rank, world_size=3), 2) for rank in range(3)]

    joined = [torch.cat([batch.x for batch in shares]) for shares in zip(*ranks, strict=True)]

    for batch, whole in zip(joined, alone, strict=True):
        assert torch.equal(batch, whole.x)


def test_augmentation_differs_between_epochs() -> None:
    data = Data(_few(40).info, _few(40).train, _few(40).val, shuffle=False)
    loader = train_loader(data, global_batch=40)

    first, second = (_epoch(loader, epoch)[0].x for epoch in (0, 1))

    assert not torch.equal(first, second)


def test_validation_takes_every_sample_once_in_order_unchanged() -> None:
    data = _few(11)

    ranks = [list(val_loader(data, global_batch=8, rank=rank, world_size=4)) for rank in range(4)]

    labels = [batch.y.tolist() for shares in zip(*ranks, strict=True) for batch in shares]
    assert labels == [[0, 1], [2, 3], [4, 5], [6, 7], [8], [9], [0], []]
    assert all(torch.equal(batch.x[0, 0], batch.x[0, 0, :1, :1].expand(8, 8)) for batch in ranks[0])


def test_empty_share_has_the_shapes_and_types_of_the_data() -> None:
    last = list(train_loader(_few(9), global_batch=8, rank=3, world_size=4))[-1]

    assert (last.x.shape, last.x.dtype) == ((0, 1, 8, 8), torch.float32)
    assert (last.y.shape, last.y.dtype) == ((0,), torch.int64)
    assert last.weight == 0.0


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_weighted_gradients_of_uneven_ranks_average_to_that_of_the_whole_batch(world_size: int) -> None:
    torch.manual_seed(0)
    data = _digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()

    def gradient(batch: Batch) -> Tensor:
        model.zero_grad()
        (task_loss(data.info, model(batch.x.double()), batch.y) * batch.weight).backward()
        grad = model[1].weight.grad
        assert grad is not None
        return grad.clone()

    # 1438 samples in batches of 359 leave a last one of 2
    whole = [gradient(batch) for batch in train_loader(data, global_batch=359)]
    ranks = [
        [gradient(batch) for batch in train_loader(data, global_batch=359, rank=rank, world_size=world_size)]
        for rank in range(world_size)
    ]

    for expected, *shares in zip(whole, *ranks, strict=True):
        averaged = torch.stack(shares).mean(0)
        torch.testing.assert_close(averaged, expected, rtol=1e-10, atol=1e-10)  # fp64


def test_batches_read_by_worker_processes_are_the_same() -> None:
    here = _epoch(train_loader(_few(20), global_batch=6, seed=2), 1)

    there = _epoch(train_loader(_few(20, num_workers=2), global_batch=6, seed=2), 1)

    _assert_same(there, here)


def test_reading_does_not_draw_from_the_global_generator() -> None:
    before = torch.get_rng_state()

    _epoch(train_loader(_digits(augment=True), global_batch=100), 0)

    assert torch.equal(torch.get_rng_state(), before)


def test_next_pass_is_whole_though_nobody_ran_into_the_end_of_the_last_one() -> None:
    loader = train_loader(build_data(DataSpec(name="digits", batch_size=500), 0), global_batch=500)

    first = [batch.x.shape[0] for batch in itertools.islice(loader, len(loader))]
    second = [batch.x.shape[0] for batch in loader]

    assert first == second == [500, 500, 438]
