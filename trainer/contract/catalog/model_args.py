"""Arguments of the built-in models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from syncnorm.trainer.contract.catalog.init_args import Activation, Fraction, InitArgs, Positive


class ResNetArgs(InitArgs):
    """Residual network: CIFAR-style of depth 6n+2 (He et al. 2015, sec. 4.2), or ImageNet-style 18, 34, 50."""

    depth: Annotated[int, Field(ge=8, le=1202)] = 14
    """6n+2 (8, 14, 20, …) for small images; 18, 34 or 50 for the ImageNet-style network. Default: 14."""
    width: Positive = 16
    """Channels of the first stage. Default: the paper's, 16 (CIFAR-style) or 64 (ImageNet-style)."""
    activation: Activation = "relu"
    """Activation after each normalization. Default: relu."""

    @model_validator(mode="before")
    @classmethod
    def _width_of_the_paper(cls, value: Any) -> Any:
        if isinstance(value, dict) and "width" not in value and value.get("depth") in (18, 34, 50):
            return {**value, "width": 64}
        return value

    @model_validator(mode="after")
    def _known_depth(self) -> ResNetArgs:
        if self.depth not in (18, 34, 50) and (self.depth < 8 or (self.depth - 2) % 6):
            raise ValueError(f"depth must be 6n+2 (8, 14, 20, …) or one of 18, 34, 50; got {self.depth}")
        return self


class VggArgs(InitArgs):
    """VGG (Simonyan & Zisserman 2014) in its CIFAR form: convolutions, pooling, one linear layer."""

    depth: Literal[11, 13, 16, 19] = 11
    """Layers with weights, as the paper counts them. Default: 11."""
    width: Positive = 64
    """Channels of the first stage. Default: 64, as in the paper."""
    activation: Activation = "relu"
    """Activation after each normalization. Default: relu."""


class MlpArgs(InitArgs):
    """Fully connected network."""

    hidden: Annotated[list[Positive], Field(min_length=1, max_length=32)] = [128, 128]
    """Units of each hidden layer. Default: [128, 128]."""
    activation: Activation = "relu"
    """Activation after each normalization. Default: relu."""
    dropout: Fraction = 0.0
    """Share of the units of each hidden layer that is dropped in training. Default: 0."""


class CnnArgs(InitArgs):
    """Plain convolutional network: 3x3 convolutions, each with norm and activation, pooled between stages."""

    channels: Annotated[list[Positive], Field(min_length=1, max_length=16)] = [32, 64, 128]
    """Channels of each stage; a stage halves the resolution. Default: [32, 64, 128]."""
    convs_per_stage: Annotated[int, Field(ge=1, le=8)] = 1
    """Convolutions in each stage. Default: 1."""
    activation: Activation = "relu"
    """Activation after each normalization. Default: relu."""
    dropout: Fraction = 0.0
    """Share of the features before the output layer that is dropped in training. Default: 0."""
    init_gain: Annotated[float, Field(gt=0, le=1e30)] = 1.0
    """Factor on the initial weights of the convolutions, to see what normalization does about their scale. Default:
    1."""


class LstmArgs(InitArgs):
    """LSTM over the rows of an image, with normalization inside the cell (Ba et al. 2016, sec. 4 of the supplement)."""

    hidden: Positive = 64
    """Units of each layer. Default: 64."""
    layers: Annotated[int, Field(ge=1, le=8)] = 1
    """Layers. Default: 1."""


class UnetArgs(InitArgs):
    """U-Net (Ronneberger et al. 2015; Çiçek et al. 2016 in 3-D) with zero-padded convolutions: same size in and out."""

    dims: Literal[2, 3] = 2
    """2 for images, 3 for volumes. Default: 2."""
    width: Positive = 16
    """Channels at full resolution, doubled at each level. Default: 16."""
    depth: Annotated[int, Field(ge=1, le=6)] = 3
    """How often the resolution is halved. Default: 3."""
    activation: Activation = "relu"
    """Activation after each normalization. Default: relu."""
