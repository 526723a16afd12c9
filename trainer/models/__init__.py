"""The model of a job: built in, from timm or torchvision, or a class of the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from syncnorm.trainer.contract.catalog.model_args import CnnArgs, LstmArgs, MlpArgs, ResNetArgs, UnetArgs, VggArgs
from syncnorm.trainer.contract.catalog.names import MODELS
from syncnorm.trainer.contract.spec import ModelSpec, NormSpec
from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.models.building_blocks import Layers
from syncnorm.trainer.models.lstm import LSTMClassifier
from syncnorm.trainer.models.plain import cnn, mlp, vgg
from syncnorm.trainer.models.resnet import ResNet
from syncnorm.trainer.models.torchvision_model import PREFIX as TORCHVISION
from syncnorm.trainer.models.torchvision_model import from_torchvision
from syncnorm.trainer.models.unet import UNet, require_divisible
from syncnorm.trainer.models.user_model import by_class_path, fill_of, from_timm


def build_model(model: ModelSpec, norm: NormSpec, info: DataInfo) -> nn.Module:
    """The model that `model` names, for data as in `info`, with torch's batch normalization wherever it normalizes.

    Built-in models take eps, momentum, affine and placement from `norm`; the kind is applied afterwards by
    `norm.convert`. Here it only says whether the layers before the norms have biases: not where each kind subtracts the
    mean of a channel. `auto` is none of them; see `norm_choice.chosen_norm`.
    Weights are drawn from torch's global generator.

    Raises: ValueError naming the spec path if the model can't be built or does not suit the data.
    """
    if model.class_path is not None:
        return by_class_path(model.class_path, model.init_args, fill_of(info))
    assert model.name is not None  # the spec has one of the two
    if model.name.startswith("timm/"):
        return from_timm(model.name.removeprefix("timm/"), model.init_args, info)
    if model.name.startswith(TORCHVISION):
        return from_torchvision(model.name.removeprefix(TORCHVISION), model.init_args, info)
    if model.name not in MODELS:
        raise ValueError(f"model.name must be one of {', '.join(sorted(MODELS))}; got {model.name!r}")
    args = MODELS[model.name].model_validate(model.init_args)
    return _BUILDERS[model.name](args, norm, info)


def _resnet(args: ResNetArgs, norm: NormSpec, info: DataInfo) -> nn.Module:
    _require("resnet", info, dims=(2,))
    return ResNet(args, Layers(norm, args.activation), info.shape[0], info.num_classes)


def _vgg(args: VggArgs, norm: NormSpec, info: DataInfo) -> nn.Module:
    _require("vgg", info, dims=(2,))
    return vgg(args, Layers(norm, args.activation), info.shape, info.num_classes)


def _mlp(args: MlpArgs, norm: NormSpec, info: DataInfo) -> nn.Module:
    _require("mlp", info, dims=(0, 1, 2, 3))
    return mlp(args, Layers(norm, args.activation, 1), info.shape, info.num_classes)


def _cnn(args: CnnArgs, norm: NormSpec, info: DataInfo) -> nn.Module:
    _require("cnn", info, dims=(1, 2, 3))
    return cnn(args, Layers(norm, args.activation, len(info.shape) - 1), info.shape, info.num_classes)


def _lstm(args: LstmArgs, norm: NormSpec, info: DataInfo) -> nn.Module:
    _require("lstm", info, dims=(2,))
    if norm.placement == "after":
        raise ValueError("norm.placement: lstm normalizes what enters its gates, so it must be before, got after.")
    return LSTMClassifier(args, Layers(norm, dims=1), info.shape[0] * info.shape[2], info.num_classes)


def _unet(args: UnetArgs, norm: NormSpec, info: DataInfo) -> nn.Module:
    _require("unet", info, dims=(2, 3), is_dense=True)
    if args.dims != len(info.shape) - 1:
        raise ValueError(
            f"model.init_args.dims must be that of the data, got {args.dims} for samples of shape {info.shape}. "
            f"Set it to {len(info.shape) - 1}."
        )
    require_divisible(info.shape[1:], args.depth)
    return UNet(args, Layers(norm, args.activation, args.dims), info.shape[0], info.num_classes)


def _require(name: str, info: DataInfo, *, dims: tuple[int, ...], is_dense: bool = False) -> None:
    """is_dense: whether it gives an output for every position."""
    if info.task == "detection":
        raise ValueError(
            f"model.name: {name} finds no objects, but the data is for detection. Use a detector, such as "
            "torchvision/fasterrcnn_resnet50_fpn."
        )
    if (info.task == "segmentation") != is_dense:
        does = "segmentation" if is_dense else "classification, regression and multilabel"
        wanted = "one of cnn, lstm, mlp, resnet, vgg" if is_dense else "unet"
        raise ValueError(f"model.name: {name} does {does}, but the data is for {info.task}. Use {wanted}.")
    if len(info.shape) - 1 not in dims:
        raise ValueError(
            f"model.name: {name} takes samples with a channel and {' or '.join(map(str, dims))} spatial dimensions, "
            f"got shape {info.shape}. Use other data or another model, e.g. cnn or mlp."
        )


_BUILDERS: dict[str, Callable[[Any, NormSpec, DataInfo], nn.Module]] = {
    "resnet": _resnet,
    "vgg": _vgg,
    "mlp": _mlp,
    "cnn": _cnn,
    "lstm": _lstm,
    "unet": _unet,
}
