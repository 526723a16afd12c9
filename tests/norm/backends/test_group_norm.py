"""Group, layer and instance normalization of channels_last tensors: the numbers of torch, and the format kept."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm.backends.by_sample.group_norm import group_norm
from syncnorm.norm.backends.dispatch import use_backend
from syncnorm.norm.native import build as kernels
from syncnorm.norm.native.extension import is_possible, node
from tests.helpers.norm.memory import resident_bytes
from tests.helpers.norm.splits import relative_error

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no C compiler")

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
# Channels below, at and above a vector; rows below, at and above a block and a piece.
SHAPES = [
    (3, 6, 5, 5),
    (2, 16, 8, 8),
    (2, 40, 13, 11),
    (1, 4, 64, 65),
    (5, 32, 3, 3),
    (2, 6, 3, 4, 5),
    (1, 18, 9, 17, 33),
]
CHANNELS_A_GROUP = {"layer": lambda C: C, "group": lambda C: C // 2, "instance": lambda _: 1}
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 4e-3}


def by_rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * 3 + 2).to(dtype).to(memory_format=FORMATS[len(shape)])


def is_kernel(y: Tensor) -> bool:
    """Whether our node of the graph made it, and not torch's: that in C++ or that in Python, as the test wants."""
    if y.grad_fn is None:
        return False
    return y.grad_fn.name() == (
        "_GroupNormBackward" if node() is None else "torch::autograd::CppNode<syncnorm::GroupNorm>"
    )


IN_CPP = pytest.param("in C++", marks=pytest.mark.skipif(not is_possible(), reason="no C++ compiler"))


@pytest.fixture(params=[IN_CPP, "in Python"], autouse=True)
def _node(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SYNCNORM_NODE", "1" if request.param == "in C++" else "0")
    node.cache_clear()
    assert (node() is None) == (request.param == "in Python")
    yield
    node.cache_clear()


def gradients(y: Tensor, dy: Tensor, *inputs: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, dy, create_graph=create_graph)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", CHANNELS_A_GROUP)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_output_and_gradients_are_those_of_torch_in_float64(
    shape: tuple[int, ...], kind: str, dtype: torch.dtype
) -> None:
    G, C = shape[1] // CHANNELS_A_GROUP[kind](shape[1]), shape[1]
    x, dy = by_rows(*shape, dtype=dtype).requires_grad_(), by_rows(*shape, dtype=dtype)
    affine = [torch.randn(C, dtype=torch.promote_types(dtype, torch.float32)).requires_grad_() for _ in range(2)]
    exact = [tensor.detach().double().contiguous().requires_grad_() for tensor in (x, *affine)]

    y = group_norm(x, G, *affine, 1e-5)
    found = (y, *gradients(y, dy, x, *affine))

    assert is_kernel(y)
    y64 = F.group_norm(exact[0], G, exact[1], exact[2], 1e-5)
    for actual, expected in zip(found, (y64, *gradients(y64, dy.double(), *exact)), strict=True):
        assert relative_error(actual.detach(), expected.detach()) < TOLERANCE[dtype]
    for tensor in found[:2]:
        assert tensor.is_contiguous(memory_format=FORMATS[len(shape)])
        assert tensor.dtype == dtype


@pytest.mark.parametrize("kind", CHANNELS_A_GROUP)
def test_large_mean_costs_no_more_accuracy_than_in_torch(kind: str) -> None:
    G = 16 // CHANNELS_A_GROUP[kind](16)
    x, dy = torch.randn(2, 16, 40, 60) + 1e4, torch.randn(2, 16, 40, 60)
    results = []
    for given in (x.double(), x, x.to(memory_format=torch.channels_last)):
        leaf = given.detach().requires_grad_()
        y = group_norm(leaf, G, None, None, 1e-5)
        results.append((y, *gradients(y, dy.to(y.dtype), leaf)))

    exact, torch_s, ours = results
    for expected, of_torch, actual in zip(exact, torch_s, ours, strict=True):
        assert relative_error(actual.detach(), expected.detach()) <= max(
            1.5 * relative_error(of_torch.detach(), expected.detach()), 1e-6
        )


def test_constant_background_in_front_costs_no_accuracy() -> None:
    x = torch.randn(1, 16, 100, 100) + 1e3
    x[:, :, :3] = 0  # a shift by these would leave little of the others
    x = x.to(memory_format=torch.channels_last)

    assert relative_error(group_norm(x, 16, None, None, 1e-5), F.group_norm(x.double(), 16)) < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_value_that_is_not_finite_stays_in_its_group(value: float) -> None:
    x = by_rows(2, 6, 5, 5)
    x[1, 2, 3, 3] = value

    is_finite = torch.isfinite(group_norm(x, 3, None, None, 1e-5)).flatten(2).all(2)

    assert (~is_finite).nonzero().tolist() == [[1, 2], [1, 3]]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(2, 24, 60, 60), (1, 24, 20, 30, 20), (9, 32, 16, 16)])
def test_bits_do_not_depend_on_threads_nor_on_other_samples(shape: tuple[int, ...]) -> None:
    x, dy, weight = by_rows(*shape).requires_grad_(), by_rows(*shape), torch.randn(shape[1]).requires_grad_()
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        y = group_norm(x, 8, weight, None, 1e-5)
        found.append((y, *gradients(y, dy, x, weight)))

    alone = group_norm(x[:1].contiguous(memory_format=FORMATS[len(shape)]), 8, weight, None, 1e-5)

    for other in found[1:]:
        assert all(torch.equal(mine, its) for mine, its in zip(found[0], other, strict=True))
    assert torch.equal(alone, found[0][0][:1])


def test_second_derivatives_are_those_of_torch() -> None:
    x = by_rows(2, 6, 3, 3, dtype=torch.float64).requires_grad_()
    weight, bias = (torch.randn(6, dtype=torch.float64).requires_grad_() for _ in range(2))

    assert is_kernel(group_norm(x, 3, weight, bias, 1e-5))
    torch.autograd.gradcheck(lambda *given: group_norm(given[0], 3, *given[1:], 1e-5), (x, weight, bias))
    torch.autograd.gradgradcheck(lambda *given: group_norm(given[0], 3, *given[1:], 1e-5), (x, weight, bias))


def test_gradients_that_nobody_needs_are_left_out() -> None:
    x, layer = by_rows(2, 8, 5, 5), norm.GroupNorm(2, 8)
    layer.weight.requires_grad_(False)

    y = layer(x)
    y.sum().backward()

    assert is_kernel(y)
    assert layer.weight.grad is None
    assert layer.bias.grad.tolist() == [50] * 8


def test_expanded_gradient_and_one_in_another_format() -> None:
    x, dy = by_rows(2, 8, 5, 5).requires_grad_(), torch.randn(2, 8, 5, 5)
    y = group_norm(x, 2, None, None, 1e-5)
    expected = gradients(F.group_norm(x, 2), dy, x)

    (found,) = gradients(y, dy, x)

    torch.testing.assert_close(found, *expected)
    assert found.stride() == x.stride()
    torch.testing.assert_close(
        *gradients(group_norm(x, 2, None, None, 1e-5).sum(), torch.ones(()), x), x * 0, atol=1e-5, rtol=0
    )


def test_saved_input_that_comes_back_in_another_format() -> None:
    x, dy = by_rows(2, 8, 5, 5).requires_grad_(), by_rows(2, 8, 5, 5)
    expected = gradients(group_norm(x, 2, None, None, 1e-5), dy, x)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.contiguous()):
        found = gradients(group_norm(x, 2, None, None, 1e-5), dy, x)

    torch.testing.assert_close(found, expected)


# What the kernels do not take, torch does, with its bits.


class Wrapped(Tensor):
    pass


OTHERS = {
    "contiguous": lambda: torch.randn(2, 8, 5, 5),
    "half": lambda: by_rows(2, 8, 5, 5, dtype=torch.float16),
    "one position": lambda: by_rows(2, 8, 1, 1),
    "empty": lambda: by_rows(0, 8, 5, 5),
    "strided": lambda: by_rows(2, 8, 5, 10)[..., ::2],
    "vectors": lambda: torch.randn(4, 8),
    "meta": lambda: by_rows(2, 8, 5, 5).to("meta"),
    "subclass": lambda: by_rows(2, 8, 5, 5).as_subclass(Wrapped),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_inputs_go_to_torch(name: str) -> None:
    x = OTHERS[name]()
    layer = nn.GroupNorm(2, 8, device=x.device, dtype=x.dtype)
    ours = norm.GroupNorm(2, 8, device=x.device, dtype=x.dtype)

    y = ours(x)

    assert not is_kernel(y)
    assert type(y) is type(x)
    assert y.device.type == "meta" or torch.equal(y, layer(x))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(7), r"weight to be a vector of size equal to the number of channels"),
        (torch.ones(8, dtype=torch.float64), "mixed dtype"),
    ],
)
def test_weight_that_does_not_fit_is_refused_as_by_torch(weight: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        group_norm(by_rows(2, 8, 5, 5), 2, weight, None, 1e-5)


def test_groups_that_do_not_divide_the_channels_are_refused_as_by_torch() -> None:
    with pytest.raises(RuntimeError, match="divisible"):
        group_norm(by_rows(2, 8, 5, 5), 3, None, None, 1e-5)


@pytest.mark.parametrize("weight", [torch.rand(32)[::4], torch.rand(8).bfloat16(), torch.randn(8).neg()])
def test_affine_in_any_layout(weight: Tensor) -> None:
    x = by_rows(2, 8, 5, 5, dtype=weight.dtype)

    torch.testing.assert_close(
        group_norm(x, 2, weight, weight, 1e-5).double(),
        F.group_norm(x.double(), 2, weight.double(), weight.double()),
        **({"rtol": 2e-2, "atol": 2e-2} if weight.dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}),
        check_dtype=False,
    )


def test_ten_thousand_calls_keep_nothing() -> None:
    x, dy = by_rows(2, 8, 16, 16).requires_grad_(), by_rows(2, 8, 16, 16)
    weight = torch.ones(8, requires_grad=True)

    def step() -> None:
        torch.autograd.grad(group_norm(x, 2, weight, None, 1e-5), (x, weight), dy)
        group_norm(x, 2, weight, None, 1e-5)  # a graph that nobody runs

    for _ in range(1000):
        step()
    before = resident_bytes()
    for _ in range(10000):
        step()

    assert resident_bytes() - before < 10000 * x.nbytes / 10
    assert sys.getrefcount(x) < 20


def test_graph_of_a_module_that_keeps_its_output_goes_with_it() -> None:
    layer = norm.GroupNorm(2, 8)
    layer.last = layer(by_rows(2, 8, 5, 5))
    found = weakref.ref(layer)

    del layer

    gc.collect()
    assert found() is None


def test_backend_reference_is_torch() -> None:
    x = by_rows(2, 8, 5, 5).requires_grad_()

    with use_backend("reference"):
        assert not is_kernel(group_norm(x, 2, None, None, 1e-5))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("layer", [norm.GroupNorm(2, 8), norm.InstanceNorm(8)])
def test_what_has_to_see_each_operation_sees_torch(layer: nn.Module) -> None:
    x = by_rows(2, 8, 5, 5)
    expected = layer(x)

    transformed = [
        torch.func.vjp(layer, x)[0],
        torch.jit.trace(layer, x)(x),
        torch.export.export(layer, (x,)).module()(x),
        torch.fx.experimental.proxy_tensor.make_fx(layer)(x)(x),
    ]

    for found in transformed:
        torch.testing.assert_close(found, expected)


def test_autocast_gives_the_dtypes_of_torch() -> None:
    x, ours, plain = by_rows(2, 8, 5, 5), norm.GroupNorm(2, 8), nn.GroupNorm(2, 8)

    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            assert ours(given).dtype == plain(given).dtype


# The layers that a conversion builds.


@pytest.mark.parametrize("kind", ["group", "layer", "instance", "weight_standardization"])
def test_layers_of_a_conversion_use_the_kernels(kind: str) -> None:
    model, _ = norm.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), kind)

    y = model[:2].to(memory_format=torch.channels_last)(by_rows(2, 3, 9, 9))

    assert is_kernel(y)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_group_norm_is_the_one_of_torch_to_everybody_else() -> None:
    plain, ours = nn.GroupNorm(2, 8), norm.build("group", 8, num_groups=2)

    assert isinstance(ours, nn.GroupNorm)
    assert repr(ours) == repr(plain)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    assert norm.convert(nn.Sequential(ours), "layer")[1][0].as_json()["from"] == "GroupNorm"
    assert isinstance(copy.deepcopy(ours), norm.GroupNorm)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_scripted_group_norm_is_that_of_torch() -> None:
    layer, x = norm.build("group", 8), by_rows(2, 8, 5, 5)

    scripted = torch.jit.script(nn.Sequential(layer).eval())

    torch.testing.assert_close(scripted(x), layer(x))


@pytest.mark.parametrize("kind", ["group", "layer", "instance"])
def test_save_memory_keeps_one_tensor_and_the_bits(kind: str) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), norm.build(kind, 8), nn.ReLU(), nn.Conv2d(8, 2, 3))
    plain.to(memory_format=torch.channels_last)
    saving = copy.deepcopy(plain)
    norm.save_memory(saving)
    x = by_rows(2, 3, 9, 9)
    kept: list[int] = []

    for model in (plain, saving):
        large: set[int] = set()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, large=large: large.add(t.data_ptr()) or t, lambda t: t):
            loss = model(x).square().mean()
        kept.append(len(large))
        loss.backward()

    assert kept[1] < kept[0]
    for mine, its in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(mine.grad, its.grad)
