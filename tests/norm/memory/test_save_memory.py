"""norm.save_memory: fewer bytes for backward, and the same bits."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from benchmarks.activation_memory import kept_bytes, network
from syncnorm import norm
from syncnorm.norm.backends.dispatch import use_backend
from syncnorm.norm.memory.recorder import current
from syncnorm.norm.memory_savings import keep_all
from syncnorm.norm.torch_compat import saved_tensors_hooks
from tests.helpers.norm.models import ResNet
from tests.helpers.norm.pool import Pool

KINDS = ["sync_batch", "batch", "batch_renorm", "group", "layer", "instance"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "LeakyReLU": nn.LeakyReLU,
    "LeakyReLU in place": lambda: nn.LeakyReLU(inplace=True),
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
    "Hardswish": nn.Hardswish,
    "ELU": nn.ELU,
    "PReLU": nn.PReLU,
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
    "ReLU6": nn.ReLU6,
    "Mish in place": lambda: nn.Mish(inplace=True),
    "CELU": nn.CELU,
    "SELU": nn.SELU,
    "Hardsigmoid": nn.Hardsigmoid,
    "Hardtanh": nn.Hardtanh,
    "Softplus": nn.Softplus,
    "LogSigmoid": nn.LogSigmoid,
    "SiLU in place": lambda: nn.SiLU(inplace=True),
    "Hardswish in place": lambda: nn.Hardswish(inplace=True),
    "ELU in place": lambda: nn.ELU(inplace=True),
}
SHAPE = (4, 3, 32, 32)


def _lean(model: nn.Module) -> nn.Module:
    lean = copy.deepcopy(model)
    norm.save_memory(lean)
    return lean


def _step(model: nn.Module, x: Tensor, run: Callable[[nn.Module, Tensor], Tensor] = nn.Module.__call__) -> list[Tensor]:
    """Output, gradients and buffers of two steps."""
    found = []
    for _ in range(2):
        mine = x.clone().requires_grad_()
        y = run(model, mine)
        y.float().square().sum().backward()
        found += [y.detach(), mine.grad]
    found += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [*found, *model.buffers()]


def _assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_keep_half_and_compute_the_same_bits(kind: str, activation: Callable[[], nn.Module]) -> None:
    plain = network(kind, activation)
    lean, x = _lean(plain), torch.randn(SHAPE)

    assert kept_bytes(lean, x) <= 0.55 * kept_bytes(plain, x)

    _assert_same_bits(_step(lean, x), _step(plain, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", ["batch", "sync_batch", "group"])
def test_same_bits_in_every_dtype_and_layout(
    kind: str, affine: bool, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    conv = nn.Conv2d(3, 8, 3, dtype=dtype).to(memory_format=memory_format)
    layer = norm.build(kind, 8, affine=affine, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(8) + 0.3)
    plain = nn.Sequential(conv, layer, nn.ReLU(), nn.Conv2d(8, 8, 1, dtype=dtype).to(memory_format=memory_format))
    x = (torch.randn(SHAPE) * 3 + 1).to(dtype).to(memory_format=memory_format)

    _assert_same_bits(_step(_lean(plain), x), _step(plain, x))


class _AsBefore(nn.Module):
    """A frozen layer that keeps its input, as F.batch_norm does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer
        return F.batch_norm(x, found.running_mean, found.running_var, found.weight, found.bias, False, 0.0, found.eps)


def _randomized(model: nn.Module) -> nn.Module:
    for buffer in model.buffers():
        if buffer.dim():
            nn.init.uniform_(buffer, 0.5, 2.0)
    return model


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_frozen_blocks_keep_half_and_compute_the_same_bits(activation: Callable[[], nn.Module]) -> None:
    frozen = _randomized(network("frozen_batch", activation))
    before = nn.Sequential(*[_AsBefore(m) if isinstance(m, norm.FrozenBatchNorm) else m for m in copy.deepcopy(frozen)])
    lean, x = _lean(frozen), torch.randn(SHAPE)

    assert kept_bytes(lean, x) <= 0.55 * kept_bytes(before, x)
    if activation is nn.ReLU:
        assert kept_bytes(frozen, x) <= 0.55 * kept_bytes(before, x)  # also without save_memory

    expected = _step(before, x)
    _assert_same_bits(_step(frozen, x), expected)
    _assert_same_bits(_step(lean, x), expected)


@pytest.mark.parametrize("learns", [True, False])
def test_layers_held_in_evaluation(learns: bool) -> None:
    plain = _randomized(network("batch")).eval()
    for layer in plain:
        if isinstance(layer, nn.BatchNorm2d):
            layer.requires_grad_(learns)
    lean, x = _lean(plain), torch.randn(SHAPE)

    assert kept_bytes(lean, x) <= 0.55 * kept_bytes(plain, x)

    _assert_same_bits(_step(lean, x), _step(plain, x))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's, in forward mode
def test_frozen_layer_has_every_derivative() -> None:
    layer = _randomized(norm.FrozenBatchNorm(2)).double()
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(layer, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_frozen_layer_can_be_traced() -> None:
    layer, x = _randomized(norm.FrozenBatchNorm(3)), torch.randn(SHAPE, requires_grad=True)

    for traced in (
        torch.fx.symbolic_trace(layer),
        torch.jit.trace(layer, x),
        torch.export.export(layer, (x,)).module(),
    ):
        torch.testing.assert_close(traced(2 * x), layer(2 * x))


class _Functional(nn.Module):
    """Activations as functions, one of them in place, and an activation module that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 16, 3, padding=1) for c in (3, 16, 16, 16, 16))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(5))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        first, second, third, fourth, fifth = (
            lambda x, conv=conv, bn=bn: bn(conv(x)) for conv, bn in zip(self.convs, self.norms, strict=True)
        )
        x = F.relu(first(x))
        x = torch.relu(second(x))
        x = third(x).relu_()
        x = self.act(fourth(x))
        return self.act(fifth(x))


def test_activations_as_functions() -> None:
    plain = _Functional()
    lean, x = _lean(plain), torch.randn(SHAPE)

    assert kept_bytes(lean, x) < 0.65 * kept_bytes(plain, x)  # the input of the model and its output are kept

    _assert_same_bits(_step(lean, x), _step(plain, x))


def test_residual_network() -> None:
    plain = ResNet()
    lean, x = _lean(plain), torch.randn(SHAPE)

    assert kept_bytes(lean, x) < 0.85 * kept_bytes(plain, x)

    _assert_same_bits(_step(lean, x), _step(plain, x))


def _around(use_reentrant: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, x: checkpoint(model, x, use_reentrant=use_reentrant)


class _Inside(nn.Module):
    def __init__(self, net: nn.Sequential, use_reentrant: bool) -> None:
        super().__init__()
        self.first, self.second, self.use_reentrant = net[:6], net[6:], use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.second(checkpoint(self.first, x, use_reentrant=self.use_reentrant))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("kind", ["sync_batch", "group"])
def test_with_activation_checkpointing(kind: str, use_reentrant: bool) -> None:
    net = network(kind)
    around, x = _lean(net), torch.randn(SHAPE)
    inside, plain_inside = _lean(_Inside(net, use_reentrant)), _Inside(copy.deepcopy(net), use_reentrant)
    expected = _step(net, x)

    assert kept_bytes(inside, x.requires_grad_()) < kept_bytes(plain_inside, x)
    x = x.detach()
    _assert_same_bits(_step(around, x, _around(use_reentrant)), expected)
    _assert_same_bits(_step(copy.deepcopy(inside), x), _step(copy.deepcopy(plain_inside), x))


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_micro_batches_as_one_batch(kind: str) -> None:
    plain = network(kind)
    lean, x = _lean(plain), torch.randn(SHAPE)

    for model in (lean, plain):
        norm.accumulated(model, lambda y, target: (y - target).square().mean(), [(x[:1], 0), (x[1:], 1)]).backward()

    _assert_same_bits([p.grad for p in lean.parameters()], [p.grad for p in plain.parameters()])
    _assert_same_bits([*lean.buffers()], [*plain.buffers()])


def _mixed(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(x)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision(kind: str) -> None:
    plain = network(kind, nn.SiLU)

    _assert_same_bits(_step(_lean(plain), x := torch.randn(SHAPE), _mixed), _step(plain, x, _mixed))


@pytest.mark.parametrize("kind", ["sync_batch", "sync_batch_renorm"])
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_both_backends(backend: Any, kind: str) -> None:
    plain = network(kind)

    with use_backend(backend):
        _assert_same_bits(_step(_lean(plain), x := torch.randn(SHAPE)), _step(plain, x))


def _distributed(rank: int, world_size: int) -> None:
    torch.manual_seed(0)
    plain = network("sync_batch")
    lean = _lean(plain)
    x = torch.randn(3 + 2 * rank, 3, 16, 16)
    runs = [DistributedDataParallel(model, broadcast_buffers=False) for model in (lean, plain)]
    _assert_same_bits(_step(runs[0], x), _step(runs[1], x))


def test_uneven_workers_under_ddp(pool: Pool) -> None:
    pool.run(_distributed, 2)


def test_compiled_without_a_break() -> None:
    torch._dynamo.reset()
    plain = network("sync_batch").double()
    lean, x = _lean(plain), torch.randn(2, 3, 8, 8, dtype=torch.float64)

    found = _step(torch.compile(lean, backend="aot_eager", fullgraph=True), x)

    for mine, theirs in zip(found, _step(plain, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def _gradient_penalty(model: nn.Module, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(model(x).pow(3).sum(), x, create_graph=True)
    return gradient


def test_second_derivative_and_a_graph_that_is_used_twice() -> None:
    plain = network("batch", nn.Tanh).double()
    lean, x = _lean(plain), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    _assert_same_bits(_step(lean, x, _gradient_penalty), _step(plain, x, _gradient_penalty))

    for model in (lean, plain):
        loss = model(x).sum()
        loss.backward(retain_graph=True)
        loss.backward()

    _assert_same_bits([p.grad for p in lean.parameters()], [p.grad for p in plain.parameters()])


def test_tensors_may_be_saved_on_another_device() -> None:
    plain = network("batch")
    lean, x = _lean(plain), torch.randn(SHAPE)

    def offloaded(model: nn.Module, x: Tensor) -> Tensor:
        with save_on_cpu():
            return model(x)

    _assert_same_bits(_step(lean, x, offloaded), _step(plain, x))


class _Overwrites(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.conv, self.bn, self.what = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), what

    def forward(self, x: Tensor) -> Tensor:
        c = self.conv(x)
        y = torch.relu(self.bn(c))
        z = y * y
        {"input": c, "output": y, "nothing": torch.zeros(1)}[self.what].add_(1)
        return z


@pytest.mark.parametrize("what", ["input", "output"])
def test_change_in_place_of_what_backward_needs_is_an_error_as_without(what: str) -> None:
    for model in (_Overwrites(what), _lean(_Overwrites(what))):
        loss = model(torch.randn(SHAPE)).sum()

        if what == "output" and model._forward_hooks:
            loss.backward()  # it is computed again from the input, which stayed
            continue
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_weight_that_moved_before_backward_is_an_error() -> None:
    model = _lean(network("batch"))
    loss = model(torch.randn(SHAPE)).sum()
    with torch.no_grad():
        model[1].weight.add_(1)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_output_that_was_changed_in_place_is_kept() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.conv(x))
            y += x  # a residual
            return F.silu(y)

    plain = Added()

    _assert_same_bits(_step(_lean(plain), x := torch.randn(SHAPE)), _step(plain, x))


def test_nothing_outlives_the_graph() -> None:
    model, seen = _lean(network("sync_batch")), []
    model[4].register_forward_hook(lambda _module, _args, y: seen.append(weakref.ref(y.untyped_storage())))
    y = model(torch.randn(SHAPE))
    gc.collect()

    assert seen[0]() is None
    assert vars(y) == {}
    assert current() is None


def test_forward_that_fails_leaves_nothing_behind() -> None:
    model = _lean(network("batch"))

    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5, 4, 4))

    assert current() is None
    assert saved_tensors_hooks() is None
    _step(model, torch.randn(SHAPE))


def test_model_can_be_copied_pickled_and_be_as_before() -> None:
    model, x = _lean(network("batch")), torch.randn(SHAPE)
    plain_bytes = kept_bytes(network("batch"), x)

    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert kept_bytes(again, x) <= 0.55 * plain_bytes
    norm.save_memory(model)  # twice is as once
    assert len(model._forward_hooks) == 1
    keep_all(model)
    assert not any(vars(model)[name] for name in vars(model) if "hooks" in name and isinstance(vars(model)[name], dict))
    assert kept_bytes(model, x) == plain_bytes


def test_without_gradients_nothing_is_recorded() -> None:
    model, seen = _lean(network("batch")), []
    model[0].register_forward_pre_hook(lambda *_: seen.append(current()))

    with torch.no_grad():
        model(torch.randn(SHAPE))

    assert seen == [None]


def test_report_names_every_layer() -> None:
    model = nn.ModuleDict({kind: norm.build(kind, 8) for kind in norm.KINDS})
    frozen = nn.BatchNorm2d(8)
    norm.statistics.freezing.freeze_statistics(frozen.requires_grad_(False))
    model["held"] = frozen

    found = {saved.path: saved for saved in norm.save_memory(model)}

    assert {path for path, saved in found.items() if saved.keeps == "output"} == {"frozen_batch", "held"}
    assert {path for path, saved in found.items() if saved.keeps == "input"} == {
        "batch", "sync_batch", "batch_renorm", "group", "layer", "instance", "weight_standardization"
    }  # fmt: skip
    assert all("several steps" in saved.note for saved in found.values() if saved.keeps == "all")
