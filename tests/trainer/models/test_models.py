from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from syncnorm import norm
from syncnorm.norm.kind import KINDS
from syncnorm.trainer.contract.spec import ModelSpec, NormSpec
from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.models import build_model

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.Tanh)

# name, init_args, shape of a sample
MODELS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("resnet", {"depth": 8, "width": 4}, (1, 8, 8)),
    ("resnet", {"depth": 18, "width": 4}, (3, 32, 32)),
    ("resnet", {"depth": 50, "width": 4}, (3, 32, 32)),
    ("vgg", {"width": 4}, (1, 8, 8)),
    ("mlp", {"hidden": [8, 8], "dropout": 0.5}, (1, 8, 8)),
    ("mlp", {"hidden": [8]}, (5,)),
    ("cnn", {"channels": [4, 8]}, (2, 16)),
    ("cnn", {"channels": [4, 8], "convs_per_stage": 2, "dropout": 0.1}, (1, 8, 8)),
    ("cnn", {"channels": [4, 8]}, (1, 8, 8, 8)),
    ("lstm", {"hidden": 8, "layers": 2}, (1, 8, 8)),
    ("unet", {"width": 4, "depth": 2}, (1, 16, 24)),
    ("unet", {"width": 4, "depth": 1, "dims": 3}, (1, 8, 8, 4)),
]
IDS = [f"{name}-{len(shape) - 1}d-{index}" for index, (name, _, shape) in enumerate(MODELS)]
# lstm has no activations beside its gates, and refuses the placement `after`.
PLACED = [(*model, placement) for model in MODELS for placement in ("before", "after") if model[0] != "lstm"]
PLACED_IDS = [
    f"{name}-{len(shape) - 1}d-{placement}-{index}" for index, (name, _, shape, placement) in enumerate(PLACED)
]


def _build(
    name: str, init_args: dict[str, Any], shape: tuple[int, ...], *, classes: int = 10, **norm: Any
) -> nn.Module:
    info = DataInfo("segmentation" if name == "unet" else "classification", classes, shape)
    return build_model(ModelSpec(name=name, init_args=init_args), NormSpec(**norm), info)


def _parameters(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


@pytest.mark.parametrize(
    ("name", "init_args", "shape", "placement"),
    [*PLACED, ("lstm", {"hidden": 8, "layers": 2}, (1, 8, 8), "before")],
    ids=[*PLACED_IDS, "lstm"],
)
def test_model_gives_class_scores_and_gradients_for_any_batch_size(
    name: str, init_args: dict[str, Any], shape: tuple[int, ...], placement: str
) -> None:
    model = _build(name, init_args, shape, placement=placement)
    spatial = shape[1:] if name == "unet" else ()

    out = model(torch.randn(4, *shape))
    out.square().mean().backward()
    empty = model.eval()(torch.randn(0, *shape))

    assert out.shape == (4, 10, *spatial)
    assert empty.shape == (0, 10, *spatial)
    assert all(param.grad is not None for param in model.parameters())


@pytest.mark.parametrize(("name", "init_args", "shape"), MODELS, ids=IDS)
def test_model_exports_with_a_dynamic_batch(name: str, init_args: dict[str, Any], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = _build(name, init_args, shape).eval()
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)

    exported = torch.export.export(model, (torch.randn(2, *shape),), dynamic_shapes=dynamic)

    x = torch.randn(5, *shape)
    torch.testing.assert_close(exported.module()(x), model(x))  # fp32 defaults: the same operations


@pytest.mark.parametrize(("name", "init_args", "shape"), MODELS, ids=IDS)
def test_each_activation_has_a_module_of_its_own(name: str, init_args: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = _build(name, init_args, shape, affine=False)
    calls: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, ACTIVATIONS):
            module.register_forward_hook(lambda module, *_: calls.append(module))

    model(torch.randn(2, *shape))

    assert len(set(calls)) == len(calls)
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@pytest.mark.parametrize(("name", "init_args", "shape", "placement"), PLACED, ids=PLACED_IDS)
def test_norms_stand_on_the_asked_side_and_modules_run_in_the_order_of_their_registration(
    name: str, init_args: dict[str, Any], shape: tuple[int, ...], placement: str
) -> None:
    model = _build(name, init_args, shape, placement=placement)
    kinds: list[str] = []
    for module in model.modules():
        if isinstance(module, NORMS + ACTIVATIONS):
            module.register_forward_hook(lambda module, *_: kinds.append("n" if isinstance(module, NORMS) else "a"))

    model(torch.randn(2, *shape))

    registered = "".join(
        "n" if isinstance(m, NORMS) else "a" for m in model.modules() if isinstance(m, NORMS + ACTIVATIONS)
    )
    assert sorted(kinds) == sorted(registered)
    assert kinds[0] == ("n" if placement == "before" else "a")
    if name != "resnet":
        assert "".join(kinds) == registered == ("na" if placement == "before" else "an") * (len(kinds) // 2)


def test_norm_settings_reach_every_layer() -> None:
    model = _build("resnet", {"depth": 18, "width": 4}, (3, 32, 32), eps=1e-3, momentum=None, affine=False)

    norms = [module for module in model.modules() if isinstance(module, NORMS)]

    assert len(norms) == 20
    assert {(norm.eps, norm.momentum, norm.affine) for norm in norms} == {(1e-3, None, False)}


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)  # He et al. 2015, table 6
def test_cifar_resnet_has_the_parameters_of_the_paper(depth: int, millions: float) -> None:
    model = _build("resnet", {"depth": depth}, (3, 32, 32))

    assert round(_parameters(model) / 1e6, 2 if depth < 110 else 1) == millions


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_imagenet_resnet_has_the_parameters_and_names_of_torchvision(depth: int, parameters: int) -> None:
    model = _build("resnet", {"depth": depth}, (3, 32, 32), classes=1000)

    keys = set(model.state_dict())
    assert _parameters(model) == parameters
    assert {
        "conv1.weight",
        "bn1.weight",
        "layer4.0.downsample.0.weight",
        "layer4.0.downsample.1.bias",
        "fc.bias",
    } < keys
    assert {key.split(".")[2] for key in keys if key.startswith("layer1.0.")} >= {"conv1", "bn1", "conv2", "bn2"}


@pytest.mark.parametrize(
    ("depth", "parameters"), [(11, 9_220_480), (13, 9_404_992), (16, 14_714_688), (19, 20_024_384)]
)
def test_vgg_has_the_convolutions_of_the_paper(depth: int, parameters: int) -> None:
    model = _build("vgg", {"depth": depth}, (3, 32, 32), kind="none", affine=False)

    # The paper has biases and no norm. The sum of 9 * c_in * c_out + c_out over the 3x3 convolutions of table 1.
    assert _parameters(model.get_submodule("features")) == parameters


def test_unet_in_3d_has_the_parameters_of_the_paper() -> None:
    build = partial(_build, "unet", {"dims": 3, "width": 64, "depth": 3}, (3, 8, 8, 8), classes=3, affine=False)

    biases = sum(64 * 2**level * (1 / 2 + 1) for level in range(4)) + sum(2 * 64 * 2**level for level in range(3))

    # Çiçek et al. 2016, sec. 2: they count biases of all convolutions, and not the norm's scale and shift.
    assert _parameters(build(kind="none")) == 19_069_955
    assert _parameters(build(kind="sync_batch")) == 19_069_955 - biases


PLAIN = [
    ("vgg", {"width": 4}, (1, 8, 8)),
    ("cnn", {"channels": [4, 8]}, (1, 8, 8)),
    ("mlp", {"hidden": [8, 8]}, (5,)),
    ("unet", {"width": 4, "depth": 1}, (1, 8, 8)),
    ("unet", {"width": 4, "depth": 1, "dims": 3}, (1, 8, 8, 8)),
]


def _biases_before_norms(model: nn.Module) -> set[bool]:
    """Whether the layers right before a norm have a bias."""
    leaves = [module for module in model.modules() if not list(module.children())]
    return {before.bias is not None for before, module in pairwise(leaves) if isinstance(module, NORMS)}


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_said_to_center_if_a_shift_of_a_channel_does_nothing(kind: str) -> None:
    torch.manual_seed(0)
    layer, other = (norm.build(kind, 4, dims=1).double().train() for _ in range(2))
    x_NCL = torch.randn(8, 4, 16, dtype=torch.float64)
    shift_C1 = torch.tensor([[1.0], [-2.0], [3.0], [0.5]], dtype=torch.float64)

    torch.manual_seed(1)  # noisy_batch draws
    plain = layer(x_NCL)
    torch.manual_seed(1)
    shifted = other(x_NCL + shift_C1)

    assert KINDS[kind].centers == torch.allclose(plain, shifted, rtol=1e-10, atol=1e-10)  # fp64


@pytest.mark.parametrize("kind", ["sync_batch", "instance", "group", "none"])
@pytest.mark.parametrize(("name", "init_args", "shape"), PLAIN)
def test_layer_before_a_norm_has_a_bias_unless_the_norm_subtracts_it(
    name: str, init_args: dict[str, Any], shape: tuple[int, ...], kind: str
) -> None:
    override = [{"match": "*", "kind": "group"}]

    assert _biases_before_norms(_build(name, init_args, shape, kind=kind)) == {not KINDS[kind].centers}
    assert _biases_before_norms(_build(name, init_args, shape, kind=kind, overrides=override)) == {True}


def test_unet_in_2d_has_the_channels_of_the_paper() -> None:
    model = _build("unet", {"width": 64, "depth": 4}, (1, 16, 16), classes=2, affine=False)

    convs = [(m.in_channels, m.out_channels) for m in model.modules() if isinstance(m, nn.Conv2d)]
    ups = [(m.in_channels, m.out_channels) for m in model.modules() if isinstance(m, nn.ConvTranspose2d)]
    down = [(1, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 1024)]
    up = [(1024, 512), (512, 512), (512, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64)]
    assert convs == [*down, (1024, 1024), *up, (64, 2)]  # Ronneberger et al. 2015, fig. 1
    assert ups == [(1024, 512), (512, 256), (256, 128), (128, 64)]


def test_lstm_with_layer_norm_follows_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    model = _build("lstm", {"hidden": 3}, (1, 2, 4)).double()
    cell = model.get_submodule("cells.0")
    for name, width in (("norm_x", 12), ("norm_h", 12), ("norm_c", 3)):
        setattr(cell, name, nn.LayerNorm(width, dtype=torch.float64))
    x = torch.randn(5, 1, 2, 4, dtype=torch.float64)

    out = model(x)

    def norm(v: torch.Tensor) -> torch.Tensor:
        return (v - v.mean(1, keepdim=True)) / (v.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    w_x, w_h, b = cell.weight_x.weight, cell.weight_h.weight, cell.bias  # type: ignore[union-attr]
    h = c = torch.zeros(5, 3, dtype=torch.float64)
    for row in (x[:, 0, 0], x[:, 0, 1]):
        f, i, o, g = (norm(h @ w_h.T) + norm(row @ w_x.T) + b).split(3, dim=1)  # type: ignore[operator, union-attr]
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(norm(c))
    torch.testing.assert_close(out, model.get_submodule("fc")(h), rtol=1e-10, atol=1e-10)  # fp64


def test_shortcut_a_takes_every_second_pixel_and_pads_channels() -> None:
    model = _build("resnet", {"depth": 8, "width": 2}, (1, 8, 8))
    x = torch.randn(1, 2, 8, 8)

    out = model.get_submodule("layer2.0.downsample")(x)

    torch.testing.assert_close(out[:, :2], x[:, :, ::2, ::2], rtol=0, atol=0)
    assert out.shape == (1, 4, 4, 4)
    assert not out[:, 2:].any()


@pytest.mark.parametrize(
    ("name", "init_args", "info", "norm", "message"),
    [
        (
            "resnet",
            {},
            DataInfo("segmentation", 3, (1, 8, 8)),
            {},
            "resnet does classification, regression and multilabel, but the data is for seg",
        ),
        ("unet", {}, DataInfo("classification", 3, (1, 8, 8)), {}, "unet does segmentation, but the data is for class"),
        ("vgg", {}, DataInfo("classification", 3, (16,)), {}, r"vgg takes samples with a channel and 2 spatial"),
        ("unet", {}, DataInfo("segmentation", 3, (1, 12, 8)), {}, r"sides must be multiples of 8, got \(12, 8\)"),
        ("unet", {"dims": 3}, DataInfo("segmentation", 3, (1, 8, 8)), {}, r"model.init_args.dims must be that of"),
        ("lenet", {}, DataInfo("classification", 3, (1, 8, 8)), {}, "model.name must be one of cnn, lstm, mlp"),
    ],
)
def test_model_that_does_not_suit_the_data_is_refused(
    name: str, init_args: dict[str, Any], info: DataInfo, norm: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(ModelSpec(name=name, init_args=init_args), NormSpec(**norm), info)


def test_lstm_has_no_norm_after_an_activation() -> None:
    with pytest.raises(ValueError, match=r"norm.placement: lstm normalizes what enters its gates"):
        _build("lstm", {}, (1, 8, 8), placement="after")


def test_width_left_out_is_that_of_the_paper() -> None:
    small, large = _build("resnet", {"depth": 8}, (3, 8, 8)), _build("resnet", {"depth": 18}, (3, 32, 32))

    assert small.get_submodule("conv1").out_channels == 16
    assert large.get_submodule("conv1").out_channels == 64


def test_model_compiles_into_one_graph() -> None:
    model = _build("resnet", {"depth": 8, "width": 4}, (1, 8, 8)).eval()
    x = torch.randn(2, 1, 8, 8)

    compiled = torch.compile(model, fullgraph=True, backend="eager")

    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)
