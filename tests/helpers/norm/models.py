"""Small models of the usual families, and how to bring their normalization into a trained state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class BasicBlock(nn.Module):
    """A residual block with torchvision's attribute names: one ReLU used twice, downsample may be None."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        projects = stride != 1 or c_in != c_out
        self.downsample = (
            nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)) if projects else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """A residual block of three convolutions with torchvision's attribute names."""

    def __init__(self, c_in: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        c_out = 4 * planes
        self.conv1 = nn.Conv2d(c_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        projects = stride != 1 or c_in != c_out
        self.downsample = (
            nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)) if projects else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Two stages of `block`, 10 classes."""

    def __init__(self, block: type[BasicBlock | Bottleneck] = BasicBlock, c_in: int = 3) -> None:
        super().__init__()
        wide = 8 if block is BasicBlock else 32
        self.conv1 = nn.Conv2d(c_in, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(block(8, 8), block(wide, 8))
        self.layer2 = nn.Sequential(block(wide, 16, 2), block(2 * wide, 16))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Lstm(nn.Module):
    """A convolution with BatchNorm1d over a sequence, an LSTM with LayerNorm, a head with BatchNorm1d on (N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm1d(8)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x_NCL: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x_NCL)))
        out, _ = self.lstm(x.transpose(1, 2))
        return self.head(self.norm(out[:, -1]))


class Shared(nn.Module):
    """One normalization used at two places, in containers in containers."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.BatchNorm2d(4)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), shared)
        self.body = nn.ModuleDict({"a": nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3), shared), nn.BatchNorm2d(4))})
        self.alias = shared

    def forward(self, x: Tensor) -> Tensor:
        return self.body["a"](self.stem(x)).mean((2, 3))


def vgg() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


MODELS = {
    "resnet": (ResNet, (4, 3, 8, 8)),
    "bottleneck": (lambda: ResNet(Bottleneck), (4, 3, 8, 8)),
    "vgg": (vgg, (4, 3, 8, 8)),
    "lstm": (Lstm, (4, 3, 9)),
    "shared": (Shared, (4, 3, 8, 8)),
}


def trained(model: nn.Module) -> nn.Module:
    """`model` with statistics and affine parameters away from where they start."""
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            layer.running_mean.copy_(torch.randn_like(layer.running_mean) * 0.3)
            layer.running_var.copy_(torch.rand_like(layer.running_var) + 0.5)
            layer.num_batches_tracked.fill_(7)
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.3)
    return model


class UNet(nn.Module):
    """Two levels with a shortcut; channels of the decoder's first convolution come from both."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_double_conv(3, 6), _double_conv(6, 12)])
        self.pool = nn.MaxPool2d(2)
        self.rise = nn.ConvTranspose2d(12, 6, 2, 2)
        self.up = _double_conv(12, 6)
        self.head = nn.Conv2d(6, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.down[0](x)
        deep = self.down[1](self.pool(shortcut))
        return self.head(self.up(torch.cat([shortcut, self.rise(deep)], 1)))


def _double_conv(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(),
        nn.Conv2d(c_out, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(),
    )  # fmt: skip
