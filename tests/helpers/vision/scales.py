"""Networks of volumes: one whose output is a list of scores at decreasing resolutions, as of nnU-Net, and one that
weighs channels by what it sees of the whole."""

from __future__ import annotations

from torch import Tensor, nn


class Scales(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, width: int = 4) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv3d(in_channels, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv3d(width, width, 3, 2, padding=1), nn.BatchNorm3d(width), nn.ReLU())
        self.up = nn.ConvTranspose3d(width, width, 2, 2)
        self.heads = nn.ModuleList([nn.Conv3d(width, num_classes, 1), nn.Conv3d(width, num_classes, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        return [self.heads[0](fine + self.up(coarse)), self.heads[1](coarse)]


class Excited(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, num_classes, 3, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y * self.gate(y)
