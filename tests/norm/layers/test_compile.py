from __future__ import annotations

import copy

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch import Tensor, nn

from syncnorm.norm import SyncBatchNorm, convert
from syncnorm.norm.kind import KINDS
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import part, relative_error


def _net() -> nn.Sequential:
    torch.manual_seed(1)
    # Small, for inductor calls a C++ compiler on every worker.
    return nn.Sequential(SyncBatchNorm(3, momentum=None), nn.Tanh())


def _trained(net: nn.Module, run: nn.Module, x: Tensor) -> dict[str, Tensor]:
    for _ in range(2):
        mine = x.clone().requires_grad_()
        y = run(mine)
        y.square().mul(torch.linspace(0, 1, y.shape[-1])).sum().backward()
    found = {f"grad.{name}": parameter.grad for name, parameter in net.named_parameters()}
    return {"y": y.detach(), "dx": mine.grad} | found | net.state_dict()


def _compiled(rank: int, world_size: int, x: Tensor, split: tuple[int, ...], backend: str) -> dict[str, Tensor]:
    torch._dynamo.reset()
    torch._inductor.config.compile_threads = 1  # no pool of compilers beside every worker
    net = _net()
    torch._dynamo.utils.counters.clear()
    found = _trained(net, torch.compile(net, fullgraph=True, backend=backend), part(x, split, rank))
    assert not torch._dynamo.utils.counters["graph_break"]
    return found


# https://github.com/pytorch/pytorch/issues/161302
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_without_a_break_equals_one_device(pool: Pool, backend: str) -> None:
    x = torch.randn(7, 3, 7, 7)
    net = _net()
    expected = _trained(net, net, x)

    results = pool.run(_compiled, 2, x, (3, 4), backend)

    for name in ("y", "dx"):
        assert relative_error(torch.cat([result[name] for result in results]), expected[name]) < 2e-6, name
    for name in (name for name in expected if name.startswith("grad.")):
        assert relative_error(sum(result[name] for result in results), expected[name]) < 5e-6, name
    for name in (name for name in expected if "running" in name or "tracked" in name):
        assert relative_error(results[0][name], expected[name]) < 2e-6, name


def _collectives_in_graph(rank: int, world_size: int) -> list[list[str]]:
    torch._dynamo.reset()
    graphs: list[list[str]] = []

    def note(graph: torch.fx.GraphModule, _: object) -> object:
        names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        graphs.append([name for name in names if "c10d" in name and "wait" not in name])
        return make_boxed_func(graph.forward)

    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    layer = SyncBatchNorm(3)
    run = torch.compile(layer, fullgraph=True, backend=aot_autograd(fw_compiler=note, bw_compiler=note))
    run(torch.randn(4, 3, requires_grad=True)).square().sum().backward()
    return graphs


def test_one_collective_in_the_forward_graph_and_one_in_the_backward(pool: Pool) -> None:
    for forward, backward in pool.run(_collectives_in_graph, 2):
        assert len(forward) == 1
        assert len(backward) == 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fixup"])
def test_every_kind_compiles_without_a_break(kind: str) -> None:
    torch.manual_seed(0)
    plain: nn.Module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    ).double()
    plain, _ = convert(plain, kind)
    net = copy.deepcopy(plain)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    results = []

    for run in (plain, compiled):
        torch.manual_seed(1)  # noisy_batch draws
        y = run(torch.randn(4, 3, 9, 9, dtype=torch.float64))
        y.square().sum().backward()
        results.append(y)

    close = {"rtol": 1e-9, "atol": 1e-9}  # float64; the same operations, but sync_batch's, in another order
    torch.testing.assert_close(results[1], results[0], **close)
    for found, expected in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, **close)
    for found, expected in zip(net.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, expected, **close)
