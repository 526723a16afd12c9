"""Frozen batch normalization of torchvision, Hugging Face and Detectron2, through convert, fold and audit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm import KINDS
from syncnorm.norm.statistics.frozen_layers import frozen_form
from tests.helpers.norm.frozen_layers import LIBRARIES, LOOKALIKES, DetrFrozenBatchNorm2d, FrozenFeatures, randomized

RUNNING_KINDS = [name for name, kind in KINDS.items() if kind.running_statistics]
# One rounding of scale and shift to the dtype each; variances near eps make the outputs some hundred times the inputs.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def backbone(library: str) -> nn.Module:
    """Layers in containers, one of them at two places."""
    make, _ = LIBRARIES[library]
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), make(8), nn.ReLU())
    shared = make(8)
    body = nn.Sequential(nn.Conv2d(8, 8, 1), shared, nn.ReLU(), nn.Conv2d(8, 8, 1), shared)
    return randomized(nn.Sequential(stem, body))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    difference, largest = (actual - expected).detach().abs().max(), expected.detach().abs().max()
    return float(difference.double() / largest.double())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", RUNNING_KINDS)
def test_kinds_with_running_statistics_take_a_frozen_layer_over(library: str, kind: str, dtype: torch.dtype) -> None:
    make, eps = LIBRARIES[library]
    layer = randomized(make(8)).to(dtype)
    x = torch.randn(2, 8, 5, 5, dtype=dtype)

    converted, replaced = norm.convert(copy.deepcopy(layer), kind)

    assert [item.path for item in replaced] == [""]
    assert float(converted.eps) == eps  # type: ignore[arg-type]
    assert {tensor.dtype for tensor in converted.state_dict().values()} <= {dtype, torch.int64}
    assert relative_error(converted.eval()(x), layer.eval()(x)) <= TOLERANCE[dtype]
    for name, tensor in layer.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"fixup"}))  # which needs residual blocks
def test_convert_then_revert_is_exact(library: str, kind: str) -> None:
    model, x = backbone(library).eval(), torch.randn(2, 3, 9, 9)
    expected = model(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}

    converted, replaced = norm.convert(model, kind)
    paths = {path for item in replaced for path in (item.path, *item.also)}
    reverted = norm.revert(copy.deepcopy(converted))

    assert {"0.1", "1.1", "1.4"} <= paths
    assert torch.equal(reverted(x), expected)
    assert reverted.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in reverted.state_dict().items())


def test_statistics_load_in_both_directions(library: str) -> None:
    model, x = backbone(library), torch.randn(2, 3, 9, 9)
    for kind in RUNNING_KINDS:
        converted, _ = norm.convert(copy.deepcopy(model), kind)
        other, _ = norm.convert(randomized(backbone(library)), kind)

        other.load_state_dict(model.state_dict())  # strict, although there is no counter
        back = backbone(library)
        back.load_state_dict(norm.plain_state_dict(converted))

        assert relative_error(other.eval()(x), model.eval()(x)) <= 1e-6, kind
        assert relative_error(back.eval()(x), model.eval()(x)) <= 1e-6, kind


def test_frozen_batch_norm_loads_a_state_without_counter(library: str) -> None:
    layer = randomized(LIBRARIES[library][0](8))
    target = norm.build("frozen_batch", 8)

    target.load_state_dict(layer.state_dict())

    assert torch.equal(target.get_buffer("running_var"), layer.get_buffer("running_var"))
    with torch.device("meta"):
        empty = norm.build("frozen_batch", 8)
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert not any(tensor.is_meta for tensor in empty.state_dict().values())


def test_removed_layers_become_layers_that_change_nothing(library: str) -> None:
    model, x = backbone(library), torch.randn(2, 3, 9, 9)
    converted, _ = norm.convert(copy.deepcopy(model), "none")

    model.load_state_dict(norm.plain_state_dict(converted))

    assert relative_error(model.eval()(x), converted.eval()(x)) <= 1e-6


def test_overrides_match_frozen_layers(library: str) -> None:
    model = nn.ModuleDict({"backbone": backbone(library), "head": nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))})

    _, replaced = norm.convert(model, "sync_batch", overrides=[{"match": "backbone.*", "kind": "frozen_batch"}])

    assert {item.path: item.after for item in replaced} == {
        "backbone.0.1": "FrozenBatchNorm",
        "backbone.1.1": "FrozenBatchNorm",
        "head.1": "SyncBatchNorm",
    }


def test_fold_absorbs_frozen_layers(library: str) -> None:
    make, _ = LIBRARIES[library]
    blocks = [nn.Conv2d(3, 8, 3, bias=False), make(8), nn.ReLU(), nn.Conv2d(8, 8, 1), make(8)]
    model, x = randomized(nn.Sequential(*blocks)).eval(), torch.randn(2, 3, 9, 9)

    folded, report = norm.fold(model)

    assert [(item.path, item.kind, item.into) for item in report] == [
        ("1", "frozen_batch", "0"),
        ("4", "frozen_batch", "3"),
    ]
    # fp32: each weight is rounded once.
    assert relative_error(folded(x), model(x)) <= 1e-5


def test_audit_counts_frozen_layers_and_warns_of_nothing(library: str) -> None:
    model = randomized(nn.Sequential(nn.Conv2d(3, 8, 3), LIBRARIES[library][0](8)))

    found = norm.audit(model, torch.randn(1, 3, 9, 9), batch_size=1, workers=4)

    eps_is_zero = LIBRARIES[library][1] == 0
    assert [item.code for item in found] == (["eps_too_small"] if eps_is_zero else [])
    assert norm.snapshot(model)["1"].frozen


def test_audit_tells_a_new_layer_from_one_that_was_merged_into_its_scale(library: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), LIBRARIES[library][0](8))

    def codes() -> list[str]:
        found = norm.audit(model, torch.randn(1, 3, 9, 9), batch_size=1, workers=4)
        return [item.code for item in found if item.code != "eps_too_small"]

    assert codes() == ["frozen_without_statistics"]

    model[1].get_buffer("weight").copy_(torch.rand(8) + 0.5)  # as Detectron2 loads the networks of Caffe2

    assert codes() == []


@pytest.mark.parametrize("lookalike", LOOKALIKES)
def test_a_lookalike_with_another_formula_is_left_alone(lookalike: type[nn.Module]) -> None:
    model = randomized(nn.Sequential(nn.Conv2d(3, 8, 3), lookalike(8), nn.BatchNorm2d(8)))

    converted, replaced = norm.convert(copy.deepcopy(model), "group")
    folded, report = norm.fold(model)
    found = norm.audit(model, torch.randn(8, 3, 9, 9), batch_size=32, workers=1)

    assert [item.path for item in replaced] == ["2"]
    assert type(converted[1]) is type(folded[1]) is lookalike  # type: ignore[index]
    assert [item.path for item in report] == ["2"]
    assert ("unknown_frozen_layer", "1", "info") in [(item.code, item.path, item.severity) for item in found]


def test_a_layer_of_another_name_is_no_frozen_batch_norm() -> None:
    assert frozen_form(FrozenFeatures(8)) is None


def test_recognition_leaves_the_layer_its_hooks_and_its_mode() -> None:
    layer, calls = DetrFrozenBatchNorm2d(4).half().train(), []
    layer.register_forward_hook(lambda *_: calls.append(1))
    before = {name: value.clone() for name, value in layer.state_dict().items()}

    assert frozen_form(layer) is not None

    assert (calls, layer.training) == ([], True)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_layers_without_memory_are_recognized() -> None:
    with torch.device("meta"):
        layer = DetrFrozenBatchNorm2d(4)

        assert frozen_form(layer) is not None
