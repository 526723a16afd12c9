"""What holds for every kind in the registry."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm import KINDS

SHAPES = {1: (6, 8, 5), 2: (6, 8, 4, 3), 3: (6, 8, 3, 2, 2)}

every_kind = pytest.mark.parametrize("kind", KINDS)
every_dims = pytest.mark.parametrize("dims", [1, 2, 3])


def _step(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@every_kind
@every_dims
def test_shape_and_dtype_are_kept_and_gradients_are_finite(kind: str, dims: int) -> None:
    layer = norm.build(kind, 8, dims=dims)

    y, dx = _step(layer, torch.randn(SHAPES[dims]))

    assert y.shape == dx.shape == SHAPES[dims]
    assert y.isfinite().all()
    assert dx.isfinite().all()
    # eps_l is only used on one position
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in layer.named_parameters() if n != "eps_l")


@every_kind
def test_features_without_positions_are_taken(kind: str) -> None:
    layer, x = norm.build(kind, 8, dims=1), torch.randn(6, 8)

    if kind == "instance":
        with pytest.raises(ValueError, match="needs more than one position per channel"):
            layer(x)
        return

    assert layer(x).shape == x.shape


@every_kind
def test_eval_is_deterministic_and_leaves_no_trace(kind: str) -> None:
    layer, x = norm.build(kind, 8), torch.randn(SHAPES[2])
    layer(x)
    layer.eval()
    state = {key: value.clone() for key, value in layer.state_dict().items()}

    first, second = layer(x), layer(x)

    assert torch.equal(first, second)
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())


@every_kind
def test_one_sample_depends_on_the_others_only_where_the_traits_say_so(kind: str) -> None:
    layer = norm.build(kind, 8, **({"ghost_size": 6} if kind == "ghost_batch" else {}))
    x = torch.randn(SHAPES[2])
    changed = torch.cat([x[:1], x[1:] * 5 + 1])

    torch.manual_seed(1)
    first = layer(x)[0]
    torch.manual_seed(1)
    second = layer(changed)[0]

    # One sample alone is summed in another order at most.
    assert torch.allclose(first, second, atol=1e-6) != KINDS[kind].batch_statistics


@every_kind
def test_in_eval_no_sample_depends_on_the_others(kind: str) -> None:
    layer, x = norm.build(kind, 8).eval(), torch.randn(SHAPES[2])

    torch.testing.assert_close(layer(x)[:2], layer(x[:2]))


@every_kind
def test_traits_match_the_layer(kind: str) -> None:
    layer = norm.build(kind, 8)

    assert KINDS[kind].running_statistics == hasattr(layer, "running_mean")
    assert KINDS[kind].synchronizes == hasattr(layer, "process_group")


@every_kind
def test_state_dict_round_trip(kind: str) -> None:
    trained, fresh, x = norm.build(kind, 8), norm.build(kind, 8), torch.randn(SHAPES[2])
    trained(x)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.rand_like(parameter))

    fresh.load_state_dict(trained.state_dict())

    assert torch.equal(fresh.eval()(x), trained.eval()(x))


@every_kind
def test_kinds_with_running_statistics_share_the_state_dict_of_batch_norm(kind: str) -> None:
    if KINDS[kind].running_statistics:
        assert norm.build(kind, 8).state_dict().keys() == nn.BatchNorm2d(8).state_dict().keys()


@every_kind
@pytest.mark.parametrize("value", [0.0, 3.0, -1e4])
def test_constant_input_gives_no_nan(kind: str, value: float) -> None:
    y, dx = _step(norm.build(kind, 8), torch.full(SHAPES[2], value))

    assert y.isfinite().all()
    assert dx.isfinite().all()


@every_kind
def test_without_affine_there_is_no_scale_and_shift(kind: str) -> None:
    layer = norm.build(kind, 8, affine=False)

    assert getattr(layer, "weight", None) is None
    assert getattr(layer, "bias", None) is None
    assert layer(torch.randn(SHAPES[2])).shape == SHAPES[2]


@every_kind
def test_affine_starts_as_nothing(kind: str) -> None:
    torch.manual_seed(1)
    with_affine = norm.build(kind, 8)(x := torch.randn(SHAPES[2]))
    torch.manual_seed(1)
    without = norm.build(kind, 8, affine=False)(torch.randn(SHAPES[2]))

    assert x is not None
    torch.testing.assert_close(with_affine, without)


@every_kind
def test_float64_is_computed_in_float64(kind: str) -> None:
    if kind == "noisy_batch":
        pytest.skip("draws other noise in another dtype")
    x = torch.randn(SHAPES[2], dtype=torch.float64) * 1e-3 + 1
    torch.manual_seed(1)
    wide = norm.build(kind, 8, dtype=torch.float64)(x)
    torch.manual_seed(1)
    narrow = norm.build(kind, 8)(x.float())

    assert wide.dtype == torch.float64
    # float32 keeps 1e-7 of 1, which is 1e-4 of the spread of the input.
    torch.testing.assert_close(wide.float(), narrow, rtol=1e-2, atol=1e-3)


@every_kind
def test_bfloat16_is_near_float32(kind: str) -> None:
    x = torch.randn(SHAPES[2]).bfloat16()
    if kind == "noisy_batch":
        pytest.skip("draws other noise in another dtype")

    y = norm.build(kind, 8, dtype=torch.bfloat16)(x)

    assert y.dtype == torch.bfloat16
    # 8 bits of mantissa
    torch.testing.assert_close(y.float(), norm.build(kind, 8)(x.float()), rtol=2e-2, atol=2e-2)


@every_kind
def test_bfloat16_input_with_float32_parameters(kind: str) -> None:
    y = norm.build(kind, 8)(torch.randn(SHAPES[2]).bfloat16())

    assert y.dtype == torch.bfloat16


@every_kind
def test_gradients_are_those_of_the_formula(kind: str) -> None:
    layer = norm.build(kind, 4, dtype=torch.float64)
    x = torch.randn(5, 4, 3, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(1)  # the noise of noisy_batch
        names = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(layer, names, x)

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


@every_kind
def test_second_derivatives_are_right(kind: str) -> None:
    layer = norm.build(kind, 2, dtype=torch.float64)
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return layer(x)

    assert torch.autograd.gradgradcheck(run, (x,))


@every_kind
def test_layers_can_be_copied(kind: str) -> None:
    layer, x = norm.build(kind, 8).eval(), torch.randn(SHAPES[2])

    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@every_kind
def test_empty_batch_in_eval_is_empty(kind: str) -> None:
    layer = norm.build(kind, 8).eval()

    assert layer(torch.randn(0, 8, 4, 3)).shape == (0, 8, 4, 3)


@every_kind
def test_channels_last_is_the_same_function(kind: str) -> None:
    x = torch.randn(SHAPES[2])
    torch.manual_seed(1)
    expected = norm.build(kind, 8)(x)
    torch.manual_seed(1)
    y = norm.build(kind, 8)(x.contiguous(memory_format=torch.channels_last))

    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@every_kind
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripting_works_or_says_what_to_do_instead(kind: str) -> None:
    x = torch.randn(SHAPES[2])
    model: nn.Module = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    expected = model.eval()(x)
    layer = norm.build(kind, 8).eval()

    if isinstance(layer, nn.GroupNorm) or type(layer).__module__.startswith("torch."):  # scripted as torch's
        torch.testing.assert_close(torch.jit.script(nn.Sequential(layer))(x), layer(x))
    else:
        with pytest.raises(NotImplementedError, match=rf"can't compile {type(layer).__name__}. For inference, script"):
            torch.jit.script(nn.Sequential(layer))

    converted, _ = norm.convert(model, "none" if kind == "fixup" else kind)
    torch.testing.assert_close(torch.jit.script(norm.revert(converted))(x), expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "instance"])
def test_dynamic_shapes_can_be_exported(kind: str) -> None:
    layer, dims = norm.build(kind, 8).eval(), {name: torch.export.Dim(name, min=2, max=64) for name in "nhw"}
    example, other = torch.randn(3, 8, 4, 5), torch.randn(2, 8, 6, 3)

    program = torch.export.export(layer, (example,), dynamic_shapes=({0: dims["n"], 2: dims["h"], 3: dims["w"]},))

    torch.testing.assert_close(program.module()(other), layer(other), rtol=1e-5, atol=1e-5)


@every_kind
def test_memory_format_is_kept(kind: str) -> None:
    x = torch.randn(SHAPES[2]).contiguous(memory_format=torch.channels_last)

    y = norm.build(kind, 8)(x)

    assert y.is_contiguous(memory_format=torch.channels_last)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"norm\.kind must be one of none, batch, .*; got 'bacth'"):
        norm.build("bacth", 8)


@every_kind
def test_unknown_option_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"{kind} has no option 'groups'; it has: "):
        norm.build(kind, 8, groups=2)


@every_kind
def test_options_are_checked(kind: str) -> None:
    for name, option in KINDS[kind].options.items():
        assert option.problem(option.default) is None
        with pytest.raises(ValueError, match=f"Option {name} of {kind} must be "):
            norm.build(kind, 8, **{name: [1]})
