"""Residual networks (He et al. 2015, arXiv:1512.03385), CIFAR-style and ImageNet-style.

No convolution has a bias, whatever the kind of norm, as in torchvision. Attributes are named as there (conv1, bn1, …,
downsample, layer1, …, fc), except that each activation has a module of its own: act1, act2, act3.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm.trainer.contract.catalog.model_args import ResNetArgs
from syncnorm.trainer.models.building_blocks import Layers, act_then_norm, add_norm_act, initialize, norm_then_act

_IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class ZeroPadShortcut(nn.Module):
    """Shortcut A of the paper (sec. 3.3): every `stride`-th pixel, new channels filled with zeros. No parameters.

    Shape: (N, C, H, W) -> (N, c_out, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = c_out - c_in

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.pad(x_NCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class _Block(nn.Module):
    """A residual branch and its shortcut.

    norm.placement before: act(bn(conv(…)) + shortcut), as in the paper.
    after: bn(act(conv(…) + shortcut)): each norm that has an activation right behind it moves past that activation.
    """

    downsample: nn.Module | None

    def __init__(self, layers: Layers, downsample: nn.Module | None) -> None:
        super().__init__()
        self.downsample = downsample
        self.norm_first = layers.norm_first
        self.in_order = norm_then_act if layers.norm_first else act_then_norm

    def _join(self, branch: Tensor, x: Tensor, norm: nn.Module, act: nn.Module) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.norm_first:
            out: Tensor = act(norm(branch) + shortcut)
        else:
            out = norm(act(branch + shortcut))
        return out


class BasicBlock(_Block):
    """Two 3x3 convolutions."""

    expansion = 1
    bn1: nn.Module
    act1: nn.Module
    bn2: nn.Module
    act2: nn.Module

    def __init__(self, layers: Layers, c_in: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__(layers, downsample)
        self.conv1 = layers.conv(c_in, planes, 3, stride=stride, bias=False)
        add_norm_act(self, layers, "1", planes)
        self.conv2 = layers.conv(planes, planes, 3, bias=False)
        add_norm_act(self, layers, "2", planes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        branch = self.in_order(self.conv1(x_NCHW), self.bn1, self.act1)
        return self._join(self.conv2(branch), x_NCHW, self.bn2, self.act2)


class Bottleneck(_Block):
    """1x1, 3x3, 1x1 convolutions; the stride is on the 3x3 one, as in torchvision ("ResNet v1.5")."""

    expansion = 4
    bn1: nn.Module
    act1: nn.Module
    bn2: nn.Module
    act2: nn.Module
    bn3: nn.Module
    act3: nn.Module

    def __init__(self, layers: Layers, c_in: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__(layers, downsample)
        self.conv1 = layers.conv(c_in, planes, 1, bias=False)
        add_norm_act(self, layers, "1", planes)
        self.conv2 = layers.conv(planes, planes, 3, stride=stride, bias=False)
        add_norm_act(self, layers, "2", planes)
        self.conv3 = layers.conv(planes, planes * self.expansion, 1, bias=False)
        add_norm_act(self, layers, "3", planes * self.expansion)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        branch = self.in_order(self.conv1(x_NCHW), self.bn1, self.act1)
        branch = self.in_order(self.conv2(branch), self.bn2, self.act2)
        return self._join(self.conv3(branch), x_NCHW, self.bn3, self.act3)


class ResNet(nn.Module):
    """Residual network of depth 6n+2 for small images, or 18, 34, 50 for large ones.

    CIFAR-style: a 3x3 convolution, three stages of n basic blocks, shortcut A (no parameters), as in sec. 4.2.
    ImageNet-style: a 7x7 convolution and max pooling, four stages, shortcut B (1x1 convolution and norm).

    Shape: (N, C, H, W) -> (N, num_classes).
    """

    bn1: nn.Module
    act1: nn.Module

    def __init__(self, args: ResNetArgs, layers: Layers, in_channels: int, num_classes: int) -> None:
        super().__init__()
        large = args.depth in _IMAGENET_BLOCKS
        blocks = _IMAGENET_BLOCKS.get(args.depth, ((args.depth - 2) // 6,) * 3)
        block = Bottleneck if args.depth >= 50 and large else BasicBlock
        self.in_order = norm_then_act if layers.norm_first else act_then_norm
        self.conv1 = layers.conv(in_channels, args.width, 7 if large else 3, stride=2 if large else 1, bias=False)
        add_norm_act(self, layers, "1", args.width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        channels = args.width
        self.stages = len(blocks)
        for stage, count in enumerate(blocks):
            planes = args.width * 2**stage
            stride = 1 if stage == 0 else 2
            self.add_module(
                f"layer{stage + 1}",
                _stage(layers, block, c_in=channels, planes=planes, stride=stride, count=count, projects=large),
            )
            channels = planes * block.expansion
        self.avgpool = layers.global_pool()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.maxpool(self.in_order(self.conv1(x_NCHW), self.bn1, self.act1))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        out: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return out


def _stage(
    layers: Layers,
    block: type[BasicBlock | Bottleneck],
    *,
    c_in: int,
    planes: int,
    stride: int,
    count: int,
    projects: bool,
) -> nn.Sequential:
    c_out = planes * block.expansion
    downsample: nn.Module | None = None
    if c_in != c_out or stride != 1:
        downsample = _projection(layers, c_in, c_out, stride) if projects else ZeroPadShortcut(c_in, c_out, stride)
    first = block(layers, c_in, planes, stride, downsample)
    return nn.Sequential(first, *(block(layers, c_out, planes, 1, None) for _ in range(count - 1)))


def _projection(layers: Layers, c_in: int, c_out: int, stride: int) -> nn.Module:
    """Shortcut B: a 1x1 convolution and a norm."""
    return nn.Sequential(layers.conv(c_in, c_out, 1, stride=stride, bias=False), layers.batch_norm(c_out))
