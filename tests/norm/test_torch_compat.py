"""What norm relies on in undocumented parts of torch. A new torch that changes one of them fails here first."""

from __future__ import annotations

import ast
import gc
import threading
import weakref
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from syncnorm import norm
from syncnorm.norm import torch_compat
from tests.helpers.norm.pool import Pool


def test_private_names_of_torch_are_used_nowhere_else() -> None:
    root = Path(norm.__file__).parent
    found = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in root.rglob("*.py")
        if path.name != "torch_compat.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if _is_private_torch(node)
    ]

    assert found == []


def _is_private_torch(node: ast.AST) -> bool:
    """`from torch… import _name`, `torch…._name`, or a private method of a process group."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
        return any(part.startswith("_") for part in [*(node.module or "").split("."), *(a.name for a in node.names)])
    if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
        owner = ast.unparse(node.value)
        return owner.split(".")[0] in ("torch", "dist", "nn", "group", "members")
    return False


def test_a_planted_private_name_is_noticed() -> None:
    for line in ("torch._C._current_graph_task_id()", "from torch.nn.modules.batchnorm import _BatchNorm"):
        assert any(_is_private_torch(node) for node in ast.walk(ast.parse(line)))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2)])
def test_batch_norms_of_torch_share_a_base(layer: nn.Module) -> None:
    assert isinstance(layer, torch_compat.BatchNormBase)
    assert issubclass(torch_compat.BatchNormBase, torch_compat.NormBase)


def test_instance_norm_shares_only_the_wider_base() -> None:
    layer = nn.InstanceNorm2d(2)

    assert isinstance(layer, torch_compat.NormBase)
    assert not isinstance(layer, torch_compat.BatchNormBase)


def test_weight_norm_is_told_by_its_parametrization() -> None:
    layer = parametrizations.weight_norm(nn.Linear(2, 2))

    assert isinstance(layer.parametrizations.weight[0], torch_compat.WeightNormParametrization)


def test_operators_in_an_exported_graph_are_told_from_functions() -> None:
    program = torch.export.export(nn.Softplus().eval(), (torch.zeros(1),))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]

    assert [isinstance(target, torch_compat.OpOverload) for target in called] == [True]
    assert not isinstance(torch.relu, torch_compat.OpOverload)


def test_tensors_are_found_in_nested_outputs() -> None:
    assert torch_compat.tree_leaves({"a": [1, (2, 3)], "b": None}) == [1, 2, 3, None]


def test_every_kind_of_hook_has_its_dictionary() -> None:
    module = nn.Identity()
    handles = [
        module.register_forward_hook(lambda *_: None),
        module.register_forward_hook(lambda *_: None, with_kwargs=True),
        module.register_forward_hook(lambda *_: None, always_call=True),
        module.register_forward_pre_hook(lambda *_: None),
        module.register_forward_pre_hook(lambda *_: None, with_kwargs=True),
        module.register_full_backward_hook(lambda *_: None),
        module.register_full_backward_pre_hook(lambda *_: None),
    ]

    assert all(module.__dict__[name] for name in torch_compat.HOOK_DICTIONARIES)
    assert torch_compat.has_forward_hooks(module)
    for handle in handles:
        handle.remove()
    assert not any(module.__dict__[name] for name in torch_compat.HOOK_DICTIONARIES)
    assert not torch_compat.has_forward_hooks(module)


def test_a_backward_pass_is_told_from_a_forward() -> None:
    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: object, x: Tensor) -> Tensor:
            seen.append(torch_compat.is_in_backward())
            return x * 1

        @staticmethod
        def backward(_ctx: object, *grads: Tensor) -> Tensor:
            seen.append(torch_compat.is_in_backward())
            return grads[0]

    Watch.apply(torch.ones(1, requires_grad=True)).sum().backward()

    assert seen == [False, True]


def test_checkpointing_saves_tensors_through_hooks() -> None:
    seen = []

    def block(x: Tensor) -> Tensor:
        seen.append(torch_compat.saved_tensors_hooks() is not None)
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    block(x)
    checkpoint(block, x, use_reentrant=False)

    assert seen == [False, True]


def test_hooks_on_saved_tensors_have_attributes_and_live_as_long_as_the_graph() -> None:
    found = []

    def block(x: Tensor) -> Tensor:
        found.append(weakref.ref(torch_compat.saved_tensors_hooks()[1]))
        return x.sin()

    y = checkpoint(block, torch.ones(2, requires_grad=True), use_reentrant=False)

    vars(found[0]())["mine"] = 1
    assert vars(found[0]())["mine"] == 1
    del y
    gc.collect()
    assert found[0]() is None


def test_functions_whose_forward_runs_are_found_and_live_as_long_as_the_graph() -> None:
    found = []

    def block(x: Tensor) -> Tensor:
        found.extend(weakref.ref(context) for context in torch_compat.running_functions())
        return x.sin()

    assert list(torch_compat.running_functions()) == []
    y = checkpoint(block, torch.ones(2, requires_grad=True), use_reentrant=True)

    assert [ref() is y.grad_fn for ref in found] == [True]
    del y
    gc.collect()
    assert found[0]() is None


def test_forward_mode_is_noticed() -> None:
    assert not torch_compat.is_in_forward_mode()
    with torch.autograd.forward_ad.dual_level():
        assert torch_compat.is_in_forward_mode()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_tracing_is_noticed() -> None:
    seen = [torch_compat.is_traced()]

    def block(x: Tensor) -> Tensor:
        seen.append(torch_compat.is_traced())
        return x.sin()

    torch.jit.trace(block, torch.ones(2), check_trace=False)

    assert seen == [False, True]


def test_versions_count_changes_in_place() -> None:
    x = torch.zeros(2)
    view = x[:1].detach()

    view.add_(1)

    assert torch_compat.version_of(x) == torch_compat.version_of(view) == 1


def test_recording_of_operators_is_noticed() -> None:
    seen = []

    def block(x: Tensor) -> Tensor:
        seen.append(torch_compat.is_under_dispatch_mode())
        return x.sin()

    block(torch.ones(2))
    make_fx(block)(torch.ones(2))

    assert seen == [False, True]


def test_captured_tensors_change_outside_functorch_only() -> None:
    captured = torch.zeros(2)

    def f(x: Tensor, outside: bool) -> Tensor:
        value = torch_compat.unwrapped(x)
        assert torch_compat.is_wrapped_by_functorch(x)
        with torch_compat.outside_functorch() if outside else nullcontext():
            captured.copy_(value)
        return x.sum()

    torch.func.grad(f)(torch.ones(2), True)
    assert captured.tolist() == [1.0, 1.0]
    with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
        torch.func.grad(f)(torch.ones(2), False)


def test_slices_under_vmap_are_noticed() -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append((torch_compat.is_batched(x), torch_compat.unwrapped(x)))
        return x

    torch.func.vmap(f)(torch.ones(2))

    assert seen == [(True, None)]
    assert not torch_compat.is_batched(torch.ones(2))


def test_each_thread_numbers_its_nodes() -> None:
    before = torch_compat.sequence_number()
    found: list[int] = []

    torch_compat.advance_sequence_number(before + 100)
    thread = threading.Thread(target=lambda: found.append(torch_compat.sequence_number()))
    thread.start()
    thread.join()

    assert torch_compat.sequence_number() == before + 101
    assert found == [0]


def test_the_number_of_the_next_node_is_told_without_making_one() -> None:
    expected = torch_compat.sequence_number() + 1

    assert [torch_compat.next_sequence_number() for _ in range(2)] == [expected] * 2
    assert torch_compat.sequence_number() == expected


def test_a_profiler_that_records_is_noticed() -> None:
    before = torch_compat.is_profiled()
    with profile(activities=[ProfilerActivity.CPU]):
        within = torch_compat.is_profiled()

    assert (before, within, torch_compat.is_profiled()) == (False, True, False)


def test_a_weak_reference_keeps_the_address_of_a_storage_taken() -> None:
    x = torch.ones(1000)
    reference = torch_compat.StorageWeakRef(x.untyped_storage())
    assert reference.cdata == torch_compat.StorageWeakRef(x[1:].untyped_storage()).cdata

    del x
    later = [torch.ones(1000) for _ in range(100)]

    assert reference.expired()
    assert all(torch_compat.StorageWeakRef(one.untyped_storage()).cdata != reference.cdata for one in later)


def test_transforms_of_functorch_are_noticed() -> None:
    seen = [torch_compat.is_inside_functorch()]

    def f(x: Tensor) -> Tensor:
        seen.append(torch_compat.is_inside_functorch())
        return x.sum()

    torch.func.grad(f)(torch.ones(2))

    assert seen == [False, True]


def _of_a_group(rank: int, world_size: int) -> tuple[bool, timedelta, Tensor, bytes]:
    group = torch_compat.default_group()
    rows = torch.empty(world_size, 2)
    torch_compat.all_gather_into(rows, torch.full((2,), float(rank)), group)
    store = torch_compat.store_of(group)
    if rank == 0:
        store.set("of test_torch_compat", "here")
    only_gloo = torch_compat.has_only_gloo(group, torch.device("cpu"))
    return only_gloo, torch_compat.cpu_timeout(group), rows, store.get("of test_torch_compat")


def test_a_group_tells_its_backend_its_timeout_and_its_store(pool: Pool) -> None:
    for only_gloo, timeout, rows, value in pool.run(_of_a_group, 2):
        assert only_gloo
        assert timeout > timedelta(0)
        assert rows.tolist() == [[0.0, 0.0], [1.0, 1.0]]
        assert value == b"here"


def _compiled(rank: int, world_size: int) -> Tensor:
    row = torch.full((3,), float(rank))
    return torch_compat.compiled_all_gather(row, torch_compat.default_group())


def test_the_gather_for_compilers_lays_rows_one_behind_the_other(pool: Pool) -> None:
    for gathered in pool.run(_compiled, 2):
        assert gathered.tolist() == [0.0] * 3 + [1.0] * 3


def test_without_a_group_there_is_no_default_one() -> None:
    with pytest.raises(ValueError, match="process group"):
        torch_compat.default_group()
