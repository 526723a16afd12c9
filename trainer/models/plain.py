"""Networks without shortcuts: fully connected, plain convolutional, and VGG in its CIFAR form."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import nn

from syncnorm.trainer.contract.catalog.model_args import CnnArgs, MlpArgs, VggArgs
from syncnorm.trainer.models.building_blocks import Layers, initialize

# Convolutions per stage: configurations A, B, D, E of Simonyan & Zisserman 2014, table 1.
_VGG_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def mlp(args: MlpArgs, layers: Layers, shape: Sequence[int], num_classes: int) -> nn.Sequential:
    """Linear, norm and activation for each entry of `hidden`, and a linear output. (N, *shape) -> (N, num_classes)."""
    hidden = nn.Sequential()
    for c_in, c_out in pairwise((prod(shape), *args.hidden)):
        hidden.extend([nn.Linear(c_in, c_out, bias=layers.bias), *layers.norm_act(c_out), *_dropout(args.dropout)])
    return _named(flatten=nn.Flatten(), hidden=hidden, fc=nn.Linear(args.hidden[-1], num_classes))


def cnn(args: CnnArgs, layers: Layers, shape: Sequence[int], num_classes: int) -> nn.Sequential:
    """3x3 convolutions in stages, each half the size of the one before, in 1, 2 or 3 dimensions.

    A stage is only halved while its shortest side is 4 or more, so that a norm never meets a single pixel.
    (N, C, *spatial) -> (N, num_classes).
    """
    stages = [(channels, args.convs_per_stage) for channels in args.channels]
    features = _conv_stages(layers, shape, stages)
    head = nn.Sequential(*_dropout(args.dropout), nn.Linear(args.channels[-1], num_classes))
    model = _classifier(layers, features, head)
    with torch.no_grad():
        for parameter in features.parameters():
            if parameter.ndim > 1:
                parameter.mul_(args.init_gain)
    return model


def vgg(args: VggArgs, layers: Layers, shape: Sequence[int], num_classes: int) -> nn.Sequential:
    """VGG (arXiv:1409.1556): its 3x3 convolutions, then average pooling and one linear layer.

    The paper's three large linear layers are left out, as is usual for small images. A stage is only halved while its
    shortest side is 4 or more; 32x32 images end at 2x2, 8x8 ones as well. (N, C, H, W) -> (N, num_classes).
    """
    widths = [args.width * factor for factor in (1, 2, 4, 8, 8)]
    features = _conv_stages(layers, shape, list(zip(widths, _VGG_STAGES[args.depth], strict=True)))
    return _classifier(layers, features, nn.Linear(widths[-1], num_classes))


def _conv_stages(layers: Layers, shape: Sequence[int], stages: Sequence[tuple[int, int]]) -> nn.Sequential:
    """For each (channels, convolutions) a stage; a pool between two stages where there is room for it."""
    features, c_in, side = nn.Sequential(), shape[0], min(shape[1:])
    for stage, (channels, convs) in enumerate(stages):
        if stage and side >= 4:
            features.append(layers.halve())
            side //= 2
        for _ in range(convs):
            features.extend([layers.conv(c_in, channels, 3, bias=layers.bias), *layers.norm_act(channels)])
            c_in = channels
    return features


def _classifier(layers: Layers, features: nn.Module, head: nn.Module) -> nn.Sequential:
    model = _named(features=features, avgpool=layers.global_pool(), flatten=nn.Flatten(), fc=head)
    initialize(model)
    return model


def _named(**modules: nn.Module) -> nn.Sequential:
    model = nn.Sequential()
    for name, module in modules.items():
        model.add_module(name, module)
    return model


def _dropout(share: float) -> list[nn.Module]:
    return [nn.Dropout(share)] if share else []
