"""norm.tiled: k tiles equal one picture."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm.tiling.receptive_field import measure
from tests.helpers.norm.unet import UNet

KINDS = ["group", "layer", "instance", "filter_response", "evo_s0", "weight_standardization"]


def network(dims: int, kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model, _ = norm.convert(UNet(dims, **options), kind)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, -1, 1)
    return model.eval()


def picture(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bright at one end and dark at the other, so that statistics differ between tiles."""
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=dtype)
    for axis in range(2, x.dim()):
        x = x + torch.linspace(-2, 2, shape[axis], dtype=dtype).view(-1, *[1] * (x.dim() - 1 - axis))
    return x


def test_there_is_a_case_for_each_kind_with_statistics_of_the_sample() -> None:
    assert sorted(KINDS) == sorted(name for name, kind in norm.KINDS.items() if kind.sample_statistics)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((44, 52), 8),
        ((44, 52), 20),
        ((44, 52), (32, 16)),
        ((20, 16, 28), 8),
        ((20, 16, 28), 12),
        ((20, 16, 28), (16, 64, 4)),
    ],
)
def test_tiles_equal_the_picture(kind: str, shape: tuple[int, ...], tile: Any) -> None:
    model, x = network(len(shape), kind), picture(2, 2, *shape)
    with torch.no_grad():
        whole = model(x)

    y = norm.tiled(model, x, tile=tile)

    torch.testing.assert_close(y, whole, rtol=0, atol=1e-5)  # fp32


@pytest.mark.parametrize("kind", ["group", "layer", "instance"])
def test_tiles_of_a_channels_last_picture_equal_it(kind: str) -> None:
    model = network(2, kind).to(memory_format=torch.channels_last)
    x = picture(2, 2, 44, 52).to(memory_format=torch.channels_last)
    with torch.no_grad():
        whole = model(x)

    y = norm.tiled(model, x, tile=20)

    torch.testing.assert_close(y, whole, rtol=0, atol=1e-5)  # fp32


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_by_themselves_would_not_equal_the_picture(kind: str) -> None:
    model, x = network(2, kind), picture(2, 2, 44, 52)
    halo = measure(model, x, (20, 20), x.device).reach[0]

    with torch.no_grad():
        alone = model(x[..., : 20 + halo, : 20 + halo])[..., :20, :20]
        whole = model(x)[..., :20, :20]

    assert float((alone - whole).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_in_double_precision_only_rounding_is_left(kind: str) -> None:
    model, x = network(2, kind).double(), picture(1, 2, 44, 52, dtype=torch.float64)

    y = norm.tiled(model, x, tile=16)

    torch.testing.assert_close(y, model(x).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["batch", "sync_batch", "frozen_batch", "batch_renorm", "weight", "none"])
def test_kinds_without_statistics_of_the_sample_simply_run(kind: str) -> None:
    model, x = network(2, kind), picture(2, 2, 44, 52)

    y = norm.tiled(model, x, tile=16)

    torch.testing.assert_close(y, model(x).detach(), rtol=0, atol=1e-5)


def test_a_signal_of_one_dimension_and_a_large_mean() -> None:
    model, x = network(1, "group"), picture(2, 2, 100) + 1e3

    y = norm.tiled(model, x, tile=16)

    torch.testing.assert_close(y, model(x).detach(), rtol=0, atol=1e-4)  # fp32 at 1000


def test_several_outputs_of_several_resolutions_keep_their_structure() -> None:
    model, x = network(2, "instance", deep=True), picture(1, 2, 44, 52)
    with torch.no_grad():
        whole = model(x)

    found = norm.tiled(model, x, tile=16)

    assert found["sides"][0].shape == (1, 3, 22, 26)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)


def _two_convolutions(first: nn.Module, second: nn.Module) -> list[nn.Module]:
    return [first, nn.GroupNorm(2, 4), nn.ReLU(), second]


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([*_two_convolutions(nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 5, 2, 2)), nn.InstanceNorm2d(4)], (45, 38)),
        (_two_convolutions(nn.Conv2d(2, 4, 3, padding=1), nn.PixelShuffle(2)), (40, 33)),
        ([nn.AvgPool2d(3), nn.GroupNorm(1, 2), nn.Upsample(scale_factor=3, mode="bilinear")], (45, 36)),
        (
            _two_convolutions(
                nn.Conv2d(2, 4, 7, padding=3, padding_mode="reflect"), nn.Conv2d(4, 1, 3, padding=4, dilation=4)
            ),
            (41, 47),
        ),
        ([nn.ZeroPad2d((4, 0, 4, 0)), nn.Conv2d(2, 4, 5), nn.GroupNorm(2, 4)], (41, 47)),
    ],
    ids=["strides", "larger-output", "pooling", "reflection", "one-sided"],
)
def test_networks_of_other_geometry(layers: list[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*layers).eval(), picture(2, 2, *shape)

    y = norm.tiled(model, x, tile=12)

    torch.testing.assert_close(y, model(x).detach(), rtol=0, atol=1e-5)


def test_the_reach_is_that_of_the_kernels() -> None:
    chain = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 5, padding=2, dilation=1), nn.GroupNorm(1, 1))
    strided = nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 3, padding=1), nn.ConvTranspose2d(1, 1, 2, 2))
    x = torch.zeros(1, 1, 64, 64)

    assert measure(chain, x, (16, 64), x.device).reach == (3, 0)
    # The first reads 1 to the left of an even position, the second 2: 3, rounded up to the stride.
    assert measure(strided, x, (16, 16), x.device).reach == (4, 4)


def test_with_a_smaller_halo_than_the_reach_the_result_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the measured one is needed: the error is not too strict."""
    model, x = network(2, "group"), picture(1, 2, 64, 64)
    reach = measure(model, x, (16, 16), x.device).reach

    with pytest.raises(ValueError, match=rf"halo must be at least \({reach[0]}, {reach[1]}\).* got \(4, 4\)"):
        norm.tiled(model, x, tile=16, halo=4)
    monkeypatch.setattr("syncnorm.norm.tiling.tiled._halo", lambda *_: (4, 4))

    assert float((norm.tiled(model, x, tile=16, halo=4) - model(x)).detach().abs().max()) > 1e-5


class Excitation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)


class TokenNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.flatten(2), 2).reshape(x.shape)


class Roll(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, 2)


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (nn.AdaptiveAvgPool2d(1), r"can't run 1 \(AdaptiveAvgPool2d\): adaptive_avg_pool2d pools the whole picture"),
        (Excitation(), r"1 \(Excitation\) \(mean\) sees all of its 32 positions"),
        (Attention(), r"1.attention \(MultiheadAttention\) .* sees all of its 32 positions"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "sees all of its 32 positions .* circular padding"),
        (Roll(), "sees all of its 32 positions"),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), r"1 \(Upsample\): with align_corners=True"),
        (nn.Upsample(scale_factor=1.5), r"1 \(Upsample\): it interpolates by a factor of 1.5"),
        (nn.Conv2d(4, 4, 3), "a side of 8 gives 6 positions in 1 .*padding=0"),
        (TokenNorm(), r"1 \(TokenNorm\) normalizes a tensor of shape \(1, 4, 64\)"),
        (nn.LayerNorm([4, 32, 32]), r"takes an input of the size of a tile, \(8, 8\)"),
        (nn.Flatten(), "needs outputs .* got"),
        (nn.BatchNorm2d(4, track_running_stats=False), "1 is in training mode or normalizes by the batch"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_depends_on_the_whole_picture_is_refused_by_name(layer: nn.Module, sentence: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), layer).eval()

    with pytest.raises(ValueError, match=sentence):
        norm.tiled(model, torch.randn(1, 4, 32, 32), tile=8)


def test_convolutions_that_shrink_are_noticed_where_the_tile_hides_them() -> None:
    """4 positions become 2, as with a stride of 2."""
    with pytest.raises(ValueError, match="proportional to the input's, but output 0 has 30 positions for 32"):
        norm.tiled(nn.Sequential(nn.Conv2d(4, 4, 3)).eval(), torch.randn(1, 4, 32, 32), tile=4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tile": 10}, r"an input of the size of a tile, \(10, 10\): Sizes of tensors must match .* total stride"),
        ({"tile": 0}, "tile must be a whole number of at least 1"),
        ({"tile": (8, 8, 8)}, "or 2 of them"),
        ({"tile": 8, "halo": -1}, "halo must be a whole number of at least 0"),
        ({"tile": 8, "halo": 25}, "halo must be a multiple of the network's total stride"),
        ({"tile": 4}, "at most 512 tiles"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        norm.tiled(network(2, "group"), torch.randn(1, 2, 96, 96), **arguments)


def test_training_mode_and_other_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="is for inference"):
        norm.tiled(network(2, "group").train(), torch.randn(1, 2, 32, 32), tile=8)
    with pytest.raises(ValueError, match="1, 2 or 3 spatial dimensions, got"):
        norm.tiled(network(2, "group"), torch.randn(32, 32), tile=8)
    with pytest.raises(ValueError, match=r"norm.tiled stops forwards .* runs through torch.compile"):
        norm.tiled(torch.compile(network(2, "group")), torch.randn(1, 2, 32, 32), tile=8)


def test_tiles_that_take_different_paths_are_refused() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.GroupNorm(1, 2), nn.GroupNorm(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return (self.left if float(x.mean()) <= 0 else self.right)(x)

    x = torch.ones(1, 2, 32, 32)
    x[..., :8, :8] = -1

    with pytest.raises(ValueError, match="a tile comes to another one than left"):
        norm.tiled(Fork().eval(), x, tile=8)


def test_a_picture_of_one_tile_is_run_whole() -> None:
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1)).eval(), torch.randn(1, 2, 20, 20)

    torch.testing.assert_close(norm.tiled(model, x, tile=32), model(x).detach(), rtol=0, atol=0)


def test_the_model_and_its_threads_are_left_as_they_were() -> None:
    model, x = network(2, "group"), picture(1, 2, 64, 64)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    norm.tiled(model, x, tile=4)

    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert sum(thread.name == "lockstep" for thread in threading.enumerate()) <= 64


def test_half_precision_under_autocast_equals_the_picture() -> None:
    model, x = network(2, "group"), picture(1, 2, 44, 52)

    with torch.autocast("cpu", torch.bfloat16):
        y, whole = norm.tiled(model, x, tile=16), model(x).detach()

    assert y.dtype == whole.dtype == torch.bfloat16
    torch.testing.assert_close(y, whole, rtol=0, atol=5e-2)  # bf16
