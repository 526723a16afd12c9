"""U-Net for segmentation, in two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from syncnorm.trainer.contract.catalog.model_args import UnetArgs
from syncnorm.trainer.models.building_blocks import Layers, initialize


class UNet(nn.Module):
    """Encoder and decoder with a shortcut at each resolution; convolutions are zero-padded, so sizes stay.

    2-D: Ronneberger et al. 2015, arXiv:1505.04597. Level l has two 3x3 convolutions of width·2^l channels; going up, a
    2x2 up-convolution halves the channels. The paper's width is 64, its depth 4.
    3-D: Çiçek et al. 2016, arXiv:1606.06650. The first of the two convolutions of a level has half the channels
    ("doubling before pooling"), and the up-convolution keeps them and has no bias. The paper's width is 64 (32 in its
    very first convolution), its depth 3.

    Shape: (N, C, *spatial) -> (N, num_classes, *spatial), each side a multiple of 2^depth.
    """

    def __init__(self, args: UnetArgs, layers: Layers, in_channels: int, num_classes: int) -> None:
        super().__init__()
        widths = [args.width * 2**level for level in range(args.depth + 1)]
        halves = layers.dims == 3
        inputs = [in_channels, *widths]
        self.down = nn.ModuleList(
            _double_conv(layers, c_in, c_out // 2 if halves else c_out, c_out)
            for c_in, c_out in zip(inputs, widths, strict=False)
        )
        self.pool = nn.ModuleList(layers.halve() for _ in range(args.depth))
        rising = widths[-2::-1]
        self.up_conv = nn.ModuleList(layers.up_conv(2 * c, 2 * c if halves else c, bias=not halves) for c in rising)
        self.up = nn.ModuleList(_double_conv(layers, (3 if halves else 2) * c, c, c) for c in rising)
        self.head = layers.conv(widths[0], num_classes, 1, bias=True)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        levels: list[Tensor] = []
        for level, conv in enumerate(self.down):
            x = conv(x if level == 0 else self.pool[level - 1](x))
            levels.append(x)
        for up_conv, conv, shortcut in zip(self.up_conv, self.up, levels[-2::-1], strict=True):
            x = conv(torch.cat([shortcut, up_conv(x)], dim=1))
        out: Tensor = self.head(x)
        return out


def require_divisible(spatial: Sequence[int], depth: int) -> None:
    """Raises: ValueError if `spatial` can't be halved `depth` times."""
    if any(side % 2**depth for side in spatial):
        raise ValueError(
            f"model.init_args.depth: unet halves each side {depth} times, so sides must be multiples of {2**depth}, "
            f"got {tuple(spatial)}. Use a smaller depth or another image size."
        )


def _double_conv(layers: Layers, c_in: int, c_mid: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        layers.conv(c_in, c_mid, 3, bias=layers.bias),
        *layers.norm_act(c_mid),
        layers.conv(c_mid, c_out, 3, bias=layers.bias),
        *layers.norm_act(c_out),
    )
