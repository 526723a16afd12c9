from __future__ import annotations

import copy
import gc
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from syncnorm import norm
from syncnorm.norm.reading.norm_act import NormAct
from tests.helpers.combinations import each_value
from tests.helpers.norm.accumulation import SPLITS, Splits, data, network, train, train_plainly
from tests.helpers.norm.models import MODELS, ResNet, trained
from tests.helpers.norm.norm_act import BatchNormAct2d
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import relative_error

STEPS = 20
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-6}
KINDS = sorted(name for name, kind in norm.kinds().items() if kind.batch_statistics)
OPTIONS: dict[str, dict[str, Any]] = {
    "ghost_batch": {"ghost_size": 3},  # chunks that do not end where micro-batches end
    "batch_renorm": {"warmup_steps": 0, "r_max_steps": 8, "d_max_steps": 8},
    "sync_batch_renorm": {"warmup_steps": 0, "r_max_steps": 8, "d_max_steps": 8},
}


def _assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Gradients by the largest of the network: that of a bias before a normalization is 0 but for rounding. In fp32
    they may differ by 5 times as much: one batch itself is as far from fp64."""
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for name, value in expected.items() if name.startswith("grad."))
    for name, value in expected.items():
        if name.startswith("grad."):
            noise = 5 if value.dtype == torch.float32 else 1
            assert float((found[name] - value).abs().max()) < noise * tolerance * largest, name
        else:
            assert relative_error(found[name], value) < tolerance, name


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}


def _compared(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    sizes: tuple[int, ...],
    loss_fn: Any = cross_entropy,
    plain: nn.Module | None = None,
) -> None:
    """Asserts that micro-batches of `sizes` give gradients and buffers of one batch. plain: takes that, in place of a
    copy of `model`."""
    one = plain or copy.deepcopy(model)
    torch.manual_seed(3)
    loss_fn(one(x), y).backward()

    torch.manual_seed(3)
    pairs = list(zip(torch.split(x, sizes), torch.split(y, sizes), strict=True))
    norm.accumulated(model, loss_fn, pairs).backward()

    _assert_close(_gradients(model) | model.state_dict(), _gradients(one) | one.state_dict(), 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(2, 2, 2, 2), (3, 5, 0), (1, 7)])
def test_micro_batches_equal_one_batch(kind: str, sizes: tuple[int, ...]) -> None:
    model = network("resnet", kind, torch.float64, **OPTIONS.get(kind, {}))
    x, y = data("resnet", 1, torch.float64)

    _compared(model, x[0], y[0], sizes)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_of_networks_equals_one_batch(name: str) -> None:
    build, shape = MODELS[name]
    model = trained(build()).double()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    x = torch.randn(6, *shape[1:], dtype=torch.float64)

    _compared(model, x, torch.randint(4, (6,)), (1, 3, 2))


@pytest.mark.parametrize(("splits", "name"), each_value(SPLITS, ["resnet", "unet"]))
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_twenty_steps_on_any_number_of_workers_equal_one_device(
    pool: Pool, splits: Splits, name: str, dtype: torch.dtype
) -> None:
    x, target = data(name, STEPS, dtype)
    build = name, "sync_batch", dtype
    expected = train_plainly(build, x, target)

    results = pool.run(train, len(splits), build, x, target, splits)

    for result in results:
        _assert_close(result, expected, TOLERANCE[dtype])


def _losses(rank: int, world_size: int, splits: Splits) -> float:
    x = torch.arange(8.0, dtype=torch.float64).split([sum(split) for split in splits])[rank].split(splits[rank])
    scale = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(scale.weight)
    return float(norm.accumulated(scale, lambda out, _: out.mean(), [(part[:, None], None) for part in x]).detach())


def test_every_worker_is_given_the_mean_of_all_samples(pool: Pool) -> None:
    assert pool.run(_losses, 3, ((1, 2), (5,), (0,))) == pytest.approx([3.5] * 3)


def _without_any(rank: int, world_size: int) -> None:
    x = torch.randn(2, 3)
    norm.accumulated(nn.Linear(3, 3), mse_loss, [(x, x)] if rank else [])


def test_a_worker_without_a_micro_batch_is_an_error_on_all(pool: Pool) -> None:
    outcomes = pool.outcomes(_without_any, 2)

    for succeeded, error, _ in outcomes:
        assert not succeeded
        assert str(error).startswith("every worker must give at least one micro-batch, got [0, 1].")


class _Busy(nn.Module):
    """A layer called several times, branches, and a part under activation checkpointing."""

    def __init__(self, *, use_reentrant: bool | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.shared = norm.SyncBatchNorm(6)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.plain, self.ghost = nn.BatchNorm2d(6), norm.GhostBatchNorm(6, ghost_size=3)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(6, 10)
        self.use_reentrant = use_reentrant

    def part(self, x: Tensor) -> Tensor:
        x = self.shared(self.second(self.dropout(torch.relu(x))))
        return torch.relu(self.plain(x)) + self.ghost(self.dropout(x)) + self.shared(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.first(x))
        for _ in range(2):
            if self.use_reentrant is None:
                x = self.part(x)
            else:
                x = checkpoint(self.part, x, use_reentrant=self.use_reentrant)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("use_reentrant", [None, False])
def test_repeated_calls_branches_and_checkpointing_equal_one_batch(use_reentrant: bool | None) -> None:
    model, plain = _Busy(use_reentrant=use_reentrant).double(), _Busy().double()
    plain.load_state_dict(trained(model).state_dict())
    x = torch.randn(8, 3, 6, 6, dtype=torch.float64)

    _compared(model, x, torch.randint(10, (8,)), (3, 5), plain=plain)


def test_dropout_under_checkpointing_draws_the_same_again() -> None:
    x, y = torch.randn(8, 3, 6, 6, dtype=torch.float64), torch.randint(10, (8,))
    found = []

    for use_reentrant in (None, False):
        torch.manual_seed(0)
        model = _Busy(use_reentrant=use_reentrant, dropout=0.5).double()
        norm.accumulated(model, cross_entropy, [(x[:4], y[:4]), (x[4:], y[4:])]).backward()
        found.append(_gradients(model))

    _assert_close(found[1], found[0], 1e-9)


def test_micro_batches_draw_different_dropout_masks_and_the_next_step_others() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(1))
    seen: list[Tensor] = []
    model[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.ones(64, 1)

    for _ in range(2):
        norm.accumulated(model, lambda out, _: out.mean(), [(x, x), (x, x)])

    assert all(not torch.equal(seen[i], seen[j]) for i in range(4) for j in range(i))


def test_reentrant_checkpointing_is_refused() -> None:
    x = torch.randn(4, 3, 6, 6, requires_grad=True)
    y = torch.randint(10, (4,))
    loss = norm.accumulated(_Busy(use_reentrant=True), cross_entropy, [(x[:2], y[:2]), (x[2:], y[2:])])

    with pytest.raises(RuntimeError, match="use_reentrant=False, but shared was run again"):
        loss.backward()


@pytest.mark.parametrize("use_reentrant", [None, False])
def test_layers_are_as_before_once_the_graph_is_gone(use_reentrant: bool | None) -> None:
    model, x, y = _Busy(use_reentrant=use_reentrant), torch.randn(4, 3, 6, 6), torch.randint(10, (4,))
    loss = norm.accumulated(model, cross_entropy, [(x[:2], y[:2]), (x[2:], y[2:])])

    loss.backward()
    del loss
    gc.collect()

    assert not any("forward" in vars(module) for module in model.modules())


class _Forking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.left(x)
        return self.right(self.right(x))


def test_different_paths_are_refused_by_name() -> None:
    model, x = _Forking(), torch.ones(4, 3)

    with pytest.raises(ValueError, match="micro-batch 0 is in left; micro-batch 1 is in right"):
        norm.accumulated(model, mse_loss, [(x, x), (-x, x)])
    with pytest.raises(ValueError, match="micro-batch 0 is at its end; micro-batch 1 is in 0"):
        norm.accumulated(nn.Sequential(model.left, _Skipping(model.left)), mse_loss, [(x, x), (-x, x)])

    assert not any("forward" in vars(module) for module in model.modules())


class _Skipping(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.right = layer
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x if self.calls == 1 else self.right(x)


class _Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() < 0:
            raise KeyError("no such class")
        return x


def test_the_error_of_one_forward_ends_the_others() -> None:
    model, x = nn.Sequential(nn.BatchNorm1d(3), _Failing(), nn.BatchNorm1d(3)), torch.ones(4, 3)
    model[0].weight.data.zero_()
    threads = set[int]()

    for _ in range(5):
        model[0].bias.data.fill_(1)
        norm.accumulated(model, mse_loss, [(x, x), (x, x), (x, x)])
        model[0].bias.data.fill_(-1)
        with pytest.raises(KeyError, match="no such class"):
            norm.accumulated(model, mse_loss, [(x, x), (x, x), (x, x)])
        threads |= {thread.ident or 0 for thread in threading.enumerate() if thread.name == "lockstep"}

    assert 3 <= len(threads) <= 8  # those of before are used again


def test_one_value_per_channel_in_all_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"BatchNorm1d\(3\) needs more than one value per channel over all micro"):
        norm.accumulated(nn.BatchNorm1d(3), mse_loss, [(torch.ones(1, 3), torch.ones(1, 3))])


def test_single_samples_are_enough_together() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)

    _compared(nn.BatchNorm1d(3).double(), x, torch.randn(4, 3, dtype=torch.float64), (1, 1, 1, 1), mse_loss)


def test_layers_in_eval_mode_and_frozen_ones_take_no_part() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), norm.FrozenBatchNorm(3), nn.BatchNorm1d(3)).double()
    model[0].eval()
    x = torch.randn(6, 3, dtype=torch.float64)

    _compared(model, x, torch.randn(6, 3, dtype=torch.float64), (2, 4), mse_loss)


class _Activated(nn.BatchNorm1d):
    """As BatchNormAct2d of timm: more than the formula."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


@pytest.mark.parametrize(
    "layer",
    [
        lambda: _Activated(3),
        lambda: nn.BatchNorm1d(3, momentum=None),
        lambda: nn.BatchNorm1d(3, affine=False, track_running_stats=False),
        lambda: norm.SyncBatchNorm(3, momentum=None),
        lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.InstanceNorm1d(1, track_running_stats=True), nn.Flatten()),
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 3)), nn.BatchNorm1d(3)),
    ],
)
def test_other_layers_equal_one_batch(layer: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), layer(), nn.Linear(3, 3)).double()
    x = torch.randn(6, 3, dtype=torch.float64)

    _compared(model, x, torch.randn(6, 3, dtype=torch.float64), (2, 1, 3), mse_loss)


def test_the_reference_backend_and_half_precision_take_part() -> None:
    from syncnorm.norm.backends.dispatch import use_backend

    x, y = data("resnet", 1, torch.float64)
    with use_backend("reference"):
        _compared(network("resnet", "sync_batch", torch.float64), x[0], y[0], (3, 5))


def test_autocast_holds_in_every_forward() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    seen: list[torch.dtype] = []
    model[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    x = torch.randn(4, 3)

    with torch.autocast("cpu", torch.bfloat16):
        norm.accumulated(model, lambda out, _: out.float().mean(), [(x, None), (x, None)]).backward()

    assert seen == [torch.bfloat16] * 2


def test_gradients_are_the_same_bits_whatever_ran_before() -> None:
    model, other = network("resnet", "sync_batch", torch.float32), network("unet", "sync_batch", torch.float32)
    x, y = data("resnet", 1, torch.float32)
    pairs = list(zip(x[0].split(2), y[0].split(2), strict=True))
    found = []

    for used in ([], [2, 3], [4, 1, 3], [2]):
        for count in used:
            norm.accumulated(other, lambda out, _: out.sin().mean(), [(x[0], None)] * count).backward()
        model.zero_grad()
        norm.accumulated(model, cross_entropy, pairs).backward()
        found.append({name: value.clone() for name, value in _gradients(model).items()})

    for later in found[1:]:
        assert all(torch.equal(later[name], value) for name, value in found[0].items())


def test_the_drift_is_that_of_the_whole_batch() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1, momentum=0.0))
    x = torch.tensor([[1.0], [2.0], [3.0], [6.0]])

    with norm.observe(model):
        norm.accumulated(model, mse_loss, [(x[:1], x[:1]), (x[1:], x[1:])])

    assert norm.snapshot(model)["0"].drift == pytest.approx(3, rel=1e-4)


def test_without_gradients_only_the_buffers_move() -> None:
    model, one = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    x = torch.randn(6, 3)
    one(x)

    with torch.no_grad():
        loss = norm.accumulated(model, mse_loss, [(x[:2], x[:2]), (x[2:], x[2:])])

    assert not loss.requires_grad
    torch.testing.assert_close(model.state_dict(), one.state_dict())


def test_second_derivatives_are_refused() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.randn(4, 3)
    loss = norm.accumulated(model, mse_loss, [(x[:2], x[:2]), (x[2:], x[2:])])

    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        return x


def _refused() -> dict[str, tuple[nn.Module, str]]:
    compiled = ResNet()
    compiled.layer1.compile()
    scripted = nn.Sequential(torch.jit.script(nn.BatchNorm1d(3)))
    return {
        "compiled": (compiled, "layer1 does not allow: it runs through torch.compile"),
        "optimized": (torch.compile(nn.BatchNorm1d(3)), "does not allow: it runs through torch.compile"),
        "scripted": (scripted, "0 does not allow: it is TorchScript"),
        "counting": (nn.Sequential(nn.BatchNorm1d(3), _Counting()), "each micro-batch has changed 1.calls"),
    }


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("what", ["compiled", "optimized", "scripted", "counting"])
def test_models_that_can_not_take_part_are_refused_by_name(what: str) -> None:
    model, match = _refused()[what]
    x = torch.randn(4, 3)

    with pytest.raises(ValueError, match=match):
        norm.accumulated(model, mse_loss, [(x, x), (x, x)])


def test_a_loss_of_each_sample_is_refused() -> None:
    x = torch.randn(4, 3)

    with pytest.raises(
        ValueError, match=r"loss_fn must return one number, the mean over the samples, got shape \(4,\)"
    ):
        norm.accumulated(nn.Linear(3, 3), lambda out, _: out.mean(1), [(x, x)])


def test_a_layer_called_from_another_thread_is_refused() -> None:
    class Threaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            found: list[Any] = []

            def call() -> None:
                try:
                    found.append(self.norm(x))
                except ValueError as error:
                    found.append(error)

            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
            if isinstance(found[0], Exception):
                raise found[0]
            return found[0]

    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="norm must be called by the forward of a micro-batch"):
        norm.accumulated(Threaded(), mse_loss, [(x, x), (x, x)])


@pytest.mark.parametrize("kind", ["sync_batch", "batch"])
def test_layers_with_an_activation_inside_take_pictures_of_different_sizes(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4, act=nn.ReLU(inplace=True)), nn.AdaptiveAvgPool2d(1))
    converted, _ = norm.convert(model.double(), kind)
    conv, layer = converted[0], converted[1]
    assert isinstance(layer, NormAct)
    xs = [torch.randn(2, 3, size, size).double() for size in (4, 6, 3)]
    target = torch.randn(2, 4, 1, 1).double()
    flat = torch.cat([conv(x).transpose(0, 1).flatten(1) for x in xs], 1)  # (C, positions of all)
    normalized = F.batch_norm(flat.T, None, None, layer.weight, layer.bias, training=True, eps=layer.eps).relu().T
    outputs = [
        part.view(4, 2, -1).mean(2).T[..., None, None]
        for part in normalized.split([2 * x[0, 0].numel() for x in xs], 1)
    ]
    mse_loss(torch.cat(outputs), target.repeat(3, 1, 1, 1)).backward()
    expected = _gradients(converted)
    converted.zero_grad()

    norm.accumulated(converted, mse_loss, [(x, target) for x in xs]).backward()

    _assert_close(_gradients(converted), expected, TOLERANCE[torch.float64])
    torch.testing.assert_close(layer.running_mean, 0.1 * flat.mean(1), rtol=0, atol=1e-10)


class Checkpointed(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.block, x, use_reentrant=False)
        return y


def test_layer_with_an_activation_inside_runs_again_in_checkpointing() -> None:
    block = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4, act=nn.SiLU()))
    model = nn.Sequential(Checkpointed(block), nn.Flatten(), nn.Linear(64, 3))
    converted, _ = norm.convert(model.double(), "sync_batch")

    _compared(converted, torch.randn(5, 3, 4, 4).double(), torch.randint(3, (5,)), (2, 3))
