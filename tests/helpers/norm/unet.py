"""A U-Net of any dimension with BatchNorm, to be converted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOLS: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def conv_block(dims: int, c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(CONVS[dims](c_in, c_out, 3, padding=1), NORMS[dims](c_out), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Halves the resolution twice. Gives 3 channels, and with `deep` those of half the resolution, too."""

    def __init__(self, dims: int, c_in: int = 2, width: int = 4, *, deep: bool = False) -> None:
        super().__init__()
        self.deep = deep
        self.down1, self.down2 = conv_block(dims, c_in, width), conv_block(dims, width, 2 * width)
        self.pool = POOLS[dims](2)
        self.bottom = conv_block(dims, 2 * width, 4 * width)
        self.up2 = TRANSPOSED[dims](4 * width, 2 * width, 2, 2)
        self.mix2 = conv_block(dims, 4 * width, 2 * width)
        self.up1 = TRANSPOSED[dims](2 * width, width, 2, 2)
        self.mix1 = conv_block(dims, 2 * width, width)
        self.head, self.side_head = CONVS[dims](width, 3, 1), CONVS[dims](2 * width, 3, 1)

    def forward(self, x: Tensor) -> Any:
        first = self.down1(x)
        second = self.down2(self.pool(first))
        half = self.mix2(torch.cat([second, self.up2(self.bottom(self.pool(second)))], 1))
        y = self.head(self.mix1(torch.cat([first, self.up1(half)], 1)))
        return {"main": y, "sides": [self.side_head(half)]} if self.deep else y
