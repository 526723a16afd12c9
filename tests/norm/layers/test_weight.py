from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm.layers.weight import WeightStandardization, is_weight_normalized
from tests.helpers.norm.models import ResNet, trained, vgg
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import relative_error


def _weight_normalized() -> nn.Sequential:
    return norm.convert(vgg(), "weight")[0]


def test_conversion_normalizes_every_weight_and_removes_the_norms() -> None:
    model, replaced = norm.convert(vgg(), "weight")

    assert [is_weight_normalized(model[i]) for i in (0, 4, 10, 13)] == [True] * 4
    assert all(isinstance(model[i], nn.Identity) for i in (1, 5, 11))
    assert len(replaced) == 7
    assert all(model[i].bias is not None for i in (0, 4))


def test_weights_are_the_same_function_after_conversion() -> None:
    plain, x = vgg(), torch.randn(2, 3, 8, 8)
    reference, _ = norm.convert(copy.deepcopy(plain), "none")

    model, _ = norm.convert(plain, "weight")

    # g * v / |v| rounds each weight a few times.
    torch.testing.assert_close(model.eval()(x), reference.eval()(x), rtol=1e-5, atol=1e-6)


def test_gradient_of_the_direction_is_orthogonal_to_it() -> None:
    model = _weight_normalized().double()
    model(torch.randn(2, 3, 8, 8, dtype=torch.float64)).square().sum().backward()

    for i in (0, 4, 10, 13):
        v = model[i].parametrizations.weight.original1
        inner = (v * v.grad).flatten(1).sum(1)
        # Salimans & Kingma sec. 2.2; rounding of a sum as long as the fan-in
        assert inner.abs().max() < 1e-12 * v.grad.abs().max().clamp_min(1)


def test_without_affine_no_bias_is_added() -> None:
    model, _ = norm.convert(vgg(), "weight", affine=False)

    assert model[0].bias is None


def test_data_dependent_initialisation_gives_mean_0_and_variance_1_everywhere() -> None:
    model, x = _weight_normalized().double().eval(), torch.randn(16, 3, 8, 8, dtype=torch.float64) * 3 + 1
    outputs: list[Tensor] = []

    paths = norm.initialize_weight_norm(model, x)
    for path in paths:
        model.get_submodule(path).register_forward_hook(lambda *args: outputs.append(args[2]))
    model(x)

    assert paths == ["0", "4", "10", "13"]
    for y in outputs:
        dims = [0, *range(2, y.dim())]
        # fp64 rounding, through four layers
        torch.testing.assert_close(y.mean(dims), torch.zeros_like(y.mean(dims)), rtol=0, atol=1e-9)
        torch.testing.assert_close(y.var(dims, correction=0), torch.ones_like(y.mean(dims)), rtol=1e-9, atol=0)


def test_initialisation_without_bias_sets_the_length_alone() -> None:
    model, _ = norm.convert(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)), "weight", affine=False)
    x = torch.randn(8, 3, 6, 6)

    norm.initialize_weight_norm(model, x)

    torch.testing.assert_close(model(x).var((0, 2, 3), correction=0), torch.ones(4), rtol=1e-5, atol=1e-5)


def _initialized(rank: int, world_size: int, state: dict[str, Tensor], parts: list[Tensor]) -> dict[str, Tensor]:
    model = _weight_normalized().double().eval()
    model.load_state_dict(state)
    norm.initialize_weight_norm(model, parts[rank])
    return model.state_dict()


def test_initialisation_is_the_same_on_all_workers_and_that_of_the_whole_batch(pool: Pool) -> None:
    model, x = _weight_normalized().double().eval(), torch.randn(7, 3, 8, 8, dtype=torch.float64)
    expected = copy.deepcopy(model)
    norm.initialize_weight_norm(expected, x)

    results = pool.run(_initialized, 2, model.state_dict(), list(x.split((2, 5))))

    for result in results:
        for key, value in expected.state_dict().items():
            # fp64 sums in another order, through four layers
            assert relative_error(result[key], value) < 1e-9, key


def test_initialisation_names_the_layer_with_a_constant_channel() -> None:
    model = _weight_normalized().eval()

    with pytest.raises(ValueError, match=r"8 of 8 channels of 0 are constant"):
        norm.initialize_weight_norm(model, torch.zeros(4, 3, 1, 1).expand(4, 3, 8, 8))


def test_initialisation_of_a_model_without_weight_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="no weight-normalized layer"):
        norm.initialize_weight_norm(vgg(), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(3, 4, 1)])
def test_weight_of_zeros_has_no_direction_and_is_refused(layer: nn.Module) -> None:
    weight = layer.get_parameter("weight")
    with torch.no_grad():
        (weight[:, 1] if isinstance(layer, nn.ConvTranspose2d) else weight[1]).zero_()
    model = nn.ModuleDict({"norm": nn.BatchNorm2d(3), "head": layer})

    with pytest.raises(ValueError, match=r"head can't become weight: .*1 of 4 of .* are zeros"):
        norm.convert(model, "weight")

    assert norm.convert(model, "weight", overrides=[norm.Override("head", "none")])[0]["head"] is layer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["weight", "weight_standardization"])
def test_weight_that_diverged_comes_back_with_revert(kind: str, value: float) -> None:
    model, _ = norm.convert(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), kind)
    with torch.no_grad():
        for parameter in model[0].parametrizations.parameters():
            parameter[0] = value
    expected = model[0].weight if kind == "weight" else model[0].parametrizations.weight.original

    reverted = norm.revert(model)
    reverted = norm.revert(norm.convert(reverted, "weight_standardization")[0])

    torch.testing.assert_close(reverted[0].weight, expected, rtol=0, atol=0, equal_nan=True)


def test_trained_weight_comes_back_with_revert() -> None:
    model = _weight_normalized()
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(2)
    expected = model[0].weight.detach().clone()

    reverted = norm.revert(model)

    assert type(reverted[0]) is nn.Conv2d
    assert torch.equal(reverted[0].weight, expected)


def test_standardized_weights_have_mean_0_and_variance_1() -> None:
    weight = torch.randn(6, 3, 3, 3, dtype=torch.float64) * 2 + 5

    standardized = WeightStandardization()(weight)

    torch.testing.assert_close(standardized.mean((1, 2, 3)), torch.zeros(6).double(), rtol=0, atol=1e-12)
    # eps takes 1e-5 of a variance near 4
    torch.testing.assert_close(standardized.var((1, 2, 3), correction=0), torch.ones(6).double(), rtol=1e-4, atol=0)


def test_standardization_is_of_convolutions_before_a_norm_only() -> None:
    model, _ = norm.convert(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)), "weight_standardization"
    )

    assert isinstance(model[0].parametrizations.weight[0], WeightStandardization)
    assert isinstance(model[1], nn.GroupNorm)
    assert type(model[3]) is nn.Conv2d


def test_every_convolution_of_a_resnet_has_a_norm_behind_and_is_standardized() -> None:
    model, _ = norm.convert(ResNet(), "weight_standardization", num_groups=4)

    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 10
    assert all(hasattr(conv, "parametrizations") for conv in convs)
    assert model.layer1[0].bn1.num_groups == 4


def test_standardized_weight_folds_with_the_batch_norm_behind() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), trained(nn.BatchNorm2d(8))).eval()
    nn.utils.parametrize.register_parametrization(model[0], "weight", WeightStandardization())
    x = torch.randn(2, 3, 8, 8)

    folded, report = norm.fold(model)

    assert [(item.path, item.into) for item in report] == [("0", "0"), ("1", "0")]
    # each weight is rounded once more
    assert relative_error(folded(x).detach(), model(x).detach()) < 1e-5


def test_parametrized_weight_is_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)), nn.BatchNorm1d(3))

    with pytest.raises(ValueError, match=r"^0 can't become weight: .* once: a Linear has parametrizations"):
        norm.convert(model, "weight")
    with pytest.raises(ValueError, match=r"that of a Linear is computed\. Take that off first"):
        norm.convert(model, "selu")


@pytest.mark.parametrize("kind", ["weight", "weight_standardization"])
def test_weight_kinds_fold_to_plain_weights(kind: str) -> None:
    model, x = norm.convert(trained(ResNet()), kind)[0].eval(), torch.randn(2, 3, 8, 8)

    folded, report = norm.fold(model)

    assert not any(hasattr(module, "parametrizations") for module in folded.modules())
    assert {item.path for item in report if item.into is not None} >= {"conv1", "layer1.0.conv1"}
    assert torch.equal(folded(x), model(x))
