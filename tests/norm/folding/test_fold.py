from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from syncnorm import norm
from syncnorm.norm.layers.evo_norm import EvoNormS0
from syncnorm.norm.reading.norm_act import with_tail
from tests.helpers.norm.models import MODELS, ResNet, trained, vgg
from tests.helpers.norm.norm_act import BatchNormAct2d, FrozenBatchNormAct2d

# Folding rounds each weight once to fp32; the sums behind are as long as the fan-in.
TOLERANCE = 1e-5

Pattern = tuple[Callable[[], nn.Module], tuple[int, ...]]

FOLDABLE: dict[str, Pattern] = {
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 6, 3, padding=1), nn.BatchNorm1d(6)), (2, 3, 9)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)), (2, 3, 7, 7)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(3, 6, 3), nn.BatchNorm3d(6)), (2, 3, 5, 5, 5)),
    "grouped conv": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (2, 4, 7, 7)),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)), (4, 5)),
    "transposed conv": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2), nn.BatchNorm2d(6)), (2, 4, 5, 5)),
    "grouped transposed conv": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)),
        (2, 4, 5, 5),
    ),
    "without affine": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)), (2, 3, 7, 7)),
    "batch norm, then conv": (
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, stride=2)),
        (2, 4, 7, 7),
    ),
    "batch norm, then grouped conv": (
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)),
        (2, 4, 7, 7),
    ),
    "batch norm, then conv with reflected padding": (
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")),
        (2, 4, 7, 7),
    ),
    "batch norm, then linear": (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 6)), (4, 5)),
    "batch norm on both sides": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)),
        (2, 3, 7, 7),
    ),
    "EvoNorm without its activation": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 1), EvoNormS0(6, activation=False)),
        (2, 3, 7, 7),
    ),
    "through dropout": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Dropout(), nn.BatchNorm1d(6)), (4, 5)),
}


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return float(((actual - expected).abs().max() / expected.abs().max()).detach())


@pytest.mark.parametrize("name", FOLDABLE)
def test_folded_equals_unfolded(name: str) -> None:
    make, shape = FOLDABLE[name]
    model, x = trained(make()).eval(), torch.randn(shape)
    expected = model(x)

    folded, report = norm.fold(model)

    assert report
    assert all(item.into is not None and item.reason is None for item in report)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules())
    assert _relative_error(folded(x), expected) < TOLERANCE
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_compute_the_same(name: str) -> None:
    make, shape = MODELS[name]
    model, x = trained(make()).eval(), torch.randn(shape)

    folded, report = norm.fold(model)

    assert report
    # Several layers behind one another, each with its rounding.
    assert _relative_error(folded(x), model(x)) < 3 * TOLERANCE


def test_resnet_and_vgg_fold_completely() -> None:
    for model in (ResNet(), vgg()):
        _, report = norm.fold(model)

        assert all(item.into is not None for item in report)


def test_sync_batch_norm_folds() -> None:
    model, _ = norm.convert(trained(ResNet()), "sync_batch")
    x = torch.randn(2, 3, 8, 8)

    folded, report = norm.fold(model)

    assert all(item.kind == "sync_batch" and item.into for item in report)
    assert _relative_error(folded(x), model.eval()(x)) < 3 * TOLERANCE


class _TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return out + self.bn(out)


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.conv(x)))


class _DataDependent(nn.Module):
    """Its own forward can't be traced; that of its block can."""

    def __init__(self) -> None:
        super().__init__()
        self.block = _Block()
        self.layers = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        taps = [x]
        for layer in self.layers if x.sum() > -1e9 else []:
            taps.append(layer(taps[-1]))
        return torch.cat(taps, 1)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[0].register_forward_hook(_clamp)
    return model


def _clamp(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.clamp(-0.1, 0.1)


class _TiedAutoencoder(nn.Module):
    """Decodes with the weight of its encoder."""

    def __init__(self, by_name: bool = False) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.by_name = by_name

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv._parameters["weight"] if self.by_name else self.conv.weight
        return F.conv_transpose2d(self.bn(self.conv(x)), weight)


class _ReadsScale(nn.Module):
    """Returns its scale beside its features, as some losses want it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * self.bn.weight.abs().sum()


class _BatchNormAct(nn.BatchNorm2d):
    """Torch's own fusion folds such a layer and loses its activation."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


NOT_FOLDABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "activation between": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        "needs a convolution or linear layer directly before",
    ),
    "zero padding behind": (
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)),
        "without zero padding",
    ),
    "zero padding behind, by name": (
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding="same")),
        "without zero padding",
    ),
    "transposed conv behind": (
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 4, 3)),
        "a ConvTranspose2d",
    ),
    "second reader": (_TwoReaders, "it reads no module of its own"),
    "convolution called twice": (_Twice, "it reads no module of its own"),
    "hook between": (_hooked, "a Conv2d with hooks"),
    "no running statistics": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        "no running statistics",
    ),
    "activation inside": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), _BatchNormAct(4)), "may do more than normalize"),
    "group": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), "depend on the sample"),
    "weight of the convolution used again": (_TiedAutoencoder, "the Conv2d's tensors are used elsewhere"),
    "weight of the convolution used again, through a name": (
        lambda: _TiedAutoencoder(by_name=True),
        "the Conv2d's tensors are used elsewhere",
    ),
    "weight of the normalization used again": (_ReadsScale, "its own tensors are used elsewhere"),
    "linear, then 2-D": (lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm2d(3)), "works on the last"),
    "2-D, then linear": (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Linear(6, 3)), "read by a Linear"),
    "activation inside, then convolution": (
        lambda: nn.Sequential(nn.ReLU(), with_tail(nn.BatchNorm2d(3), {"act": nn.SiLU()}), nn.Conv2d(3, 4, 1)),
        "is read by no module of its own",
    ),
}


@pytest.mark.parametrize("name", NOT_FOLDABLE)
def test_what_is_not_exact_stays_with_the_reason(name: str) -> None:
    make, reason = NOT_FOLDABLE[name]
    model, x = trained(make()).eval(), torch.randn(2, 3, 6, 6)

    folded, report = norm.fold(model)

    assert len(report) == 1
    assert report[0].into is None
    assert reason in (report[0].reason or "")
    assert torch.equal(folded(x), model(x))


def test_untraceable_model_folds_inside_its_parts_only() -> None:
    model, x = trained(_DataDependent()).eval(), torch.randn(2, 3, 4, 4)

    folded, report = norm.fold(model)

    by_path = {item.path: item for item in report}
    assert by_path["block.bn"].into == "block.conv"
    assert "data flow is not known" in (by_path["layers.1"].reason or "")
    assert _relative_error(folded(x), model(x)) < TOLERANCE


def test_fold_is_computed_in_float64() -> None:
    # A variance so small that a float32 scale would lose digits of the shift.
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)).eval()
    model[1].running_var.fill_(1e-8)
    model[1].running_mean.fill_(1000.0)

    folded, _ = norm.fold(model.double())
    x = torch.randn(4, 5, dtype=torch.float64)

    assert _relative_error(folded(x), model(x)) < 1e-12


def test_the_copy_is_in_eval_mode_and_the_model_is_left_alone() -> None:
    model = trained(vgg()).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}

    folded, _ = norm.fold(model)

    assert not any(module.training for module in folded.modules())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


LINEAR: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "2-D": (lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm2d(8)), (2, 8, 4, 5)),
    "3-D": (lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm3d(8)), (2, 8, 2, 4, 5)),
    "2-D in front": (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8), nn.Linear(8, 5)), (2, 8, 4, 8)),
}


@pytest.mark.parametrize("kind", ["batch", "sync_batch", "frozen_batch"])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_layer_and_normalization_of_maps_never_fold(name: str, kind: str) -> None:
    make, shape = LINEAR[name]
    model, x = trained(make()).eval(), torch.randn(shape)
    model, _ = norm.convert(model, kind)

    folded, report = norm.fold(model)

    assert [item.into for item in report] == [None]
    assert "works on the last" in (report[0].reason or "")
    assert torch.equal(folded(x), model(x))


def test_normalization_between_convolution_and_a_reader_of_another_weight_folds() -> None:
    model, x = trained(_TiedAutoencoder()).eval(), torch.randn(2, 3, 8, 8)
    model = nn.Sequential(model, nn.Conv2d(3, 4, 1), trained(nn.BatchNorm2d(4))).eval()

    folded, report = norm.fold(model)

    assert [(item.path, item.into) for item in report] == [("0.bn", None), ("2", "1")]
    assert _relative_error(folded(x), model(x)) < TOLERANCE


def test_modules_that_share_a_weight_fold_one_by_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model[3].weight = model[0].weight
    model, x = trained(model).eval(), torch.randn(2, 3, 6, 6)

    folded, report = norm.fold(model)

    assert [item.into for item in report] == ["0", "3"]
    assert _relative_error(folded(x), model(x)) < TOLERANCE


@pytest.mark.parametrize("act", [nn.SiLU, lambda: nn.PReLU(6), nn.Identity], ids=["SiLU", "PReLU", "none"])
@pytest.mark.parametrize("layer", [BatchNormAct2d, FrozenBatchNormAct2d])
@pytest.mark.parametrize("kind", ["", "sync_batch", "frozen_batch"])
def test_layer_with_an_activation_inside_leaves_the_activation(
    layer: type[BatchNormAct2d], act: Callable[[], nn.Module], kind: str
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), layer(6, act(), nn.Dropout(0.1)), nn.Conv2d(6, 4, 1), layer(4))
    model, x = trained(model).eval(), torch.randn(2, 3, 7, 7)
    if kind:
        model, _ = norm.convert(model, kind)
    names = {name for name in model.state_dict() if "act" in name}

    folded, report = norm.fold(model)

    assert [item.into for item in report] == ["0", "2"]
    assert _relative_error(folded(x), model(x)) < TOLERANCE
    assert {name for name in folded.state_dict() if "act" in name} == names


@pytest.mark.parametrize(
    "computed", [nn.utils.spectral_norm, lambda conv: prune.random_unstructured(conv, "weight", 0.3)]
)
def test_model_with_a_weight_that_a_hook_computes_folds_around_it(
    computed: Callable[[nn.Module], nn.Module],
) -> None:
    model = nn.Sequential(
        computed(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )
    model, x = trained(model).eval(), torch.randn(2, 3, 7, 7)

    folded, report = norm.fold(model)

    assert [item.into for item in report] == [None, "3"]
    assert "a Conv2d with hooks" in (report[0].reason or "")
    assert _relative_error(folded(x), model(x)) < TOLERANCE


class _Untraced(nn.Module):
    """Branches on a value, so that only its part can be traced."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() < 1e9 else x


class _Tapped(nn.Module):
    """Without `scale` it returns what the convolution gives, with it what the normalization does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        return y if scale is None else self.bn(y) * scale


class _Branching(nn.Module):
    """The argument decides what stands between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.bn = nn.Conv2d(3, 4, 1), nn.Tanh(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, *, plain: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        return self.bn(self.act(y) if plain is None else y)


@pytest.mark.parametrize("wrap", [lambda model: model, _Untraced], ids=["plain", "in a part"])
@pytest.mark.parametrize("make", [_Tapped, _Branching])
def test_layer_whose_neighbours_depend_on_an_argument_stays(
    make: Callable[[], nn.Module], wrap: Callable[[nn.Module], nn.Module]
) -> None:
    model, x = wrap(trained(make())).eval(), torch.randn(2, 3, 6, 6)

    folded, report = norm.fold(model)

    assert [item.into for item in report] == [None]
    assert "depends on an argument of a forward" in (report[0].reason or "")
    assert torch.equal(folded(x), model(x))


class _Masked(nn.Module):
    """An argument that changes nothing between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.bn(self.conv(x))
        return y if mask is None else y * mask


class _Required(nn.Module):
    """An argument with the default None that must be given, as Hugging Face's models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, pixel_values: Tensor | None = None) -> Tensor:
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        return self.bn(self.conv(pixel_values))


@pytest.mark.parametrize("make", [_Masked, _Required])
def test_optional_arguments_elsewhere_do_not_keep_a_layer(make: Callable[[], nn.Module]) -> None:
    model, x = trained(make()).eval(), torch.randn(2, 3, 6, 6)

    folded, report = norm.fold(model)

    assert [item.into for item in report] == ["conv"]
    assert _relative_error(folded(x), model(x)) < TOLERANCE


class _UntracedDecoder(nn.Module):
    """Uses a weight of its part in code that can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Block()])

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks[0](x) if x.sum() < 1e9 else x
        return self.decode(y)

    def decode(self, y: Tensor) -> Tensor:
        return F.conv_transpose2d(y, self.blocks[0].conv.weight)


def test_weight_that_untraced_code_uses_keeps_the_layer() -> None:
    model, x = trained(_UntracedDecoder()).eval(), torch.randn(2, 3, 6, 6)

    folded, report = norm.fold(model)

    assert [item.into for item in report] == [None]
    assert "the Conv2d's tensors are used elsewhere" in (report[0].reason or "")
    assert torch.equal(folded(x), model(x))


def test_power_transform_stays_and_is_named() -> None:
    model, _ = norm.convert(nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU()), "box_cox")
    x = torch.randn(2, 3, 4, 4)

    folded, report = norm.fold(model)

    assert [(item.path, item.kind, item.into) for item in report] == [("1", "box_cox", None)]
    assert "power of each value" in str(report[0].reason)
    assert torch.equal(folded(x), model.eval()(x))
