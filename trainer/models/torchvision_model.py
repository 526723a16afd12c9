"""torchvision's models by name, for the classes of the data."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.models.pretrained import explained_weights

PREFIX = "torchvision/"
_PACKAGES = {"detection": "detection", "segmentation": "segmentation"}
"""Task by the package below torchvision.models; models of other packages are refused, those of none classify."""
_ANCHORS = ("anchor_sizes", "anchor_ratios")
_ON_PYRAMIDS = {"faster_rcnn": "FasterRCNN", "mask_rcnn": "MaskRCNN", "retinanet": "RetinaNet", "fcos": "FCOS"}
_DETECTORS = {**_ON_PYRAMIDS, "keypoint_rcnn": "KeypointRCNN", "ssd": "SSD", "ssdlite": "SSD"}
"""Classes of detectors by their module."""


def from_torchvision(name: str, init_args: Mapping[str, Any], info: DataInfo) -> nn.Module:
    """torchvision's model `name`, without trained weights unless init_args ask for them.

    init_args are those of torchvision, and three of ours for detectors: `anchor_sizes` by level, `anchor_ratios`, and
    `backbone`, a resnet in place of the one in the name of the model, such as resnet18.
    Raises: ValueError naming the spec path if torchvision is missing, has no such model, or refuses init_args, and if
    the model is for another task.
    """
    models = _models(name)
    build = _builder(models, name)
    _require_task(name, build, info)
    if info.task == "detection":
        _require_known(name, build, init_args)
    if backbone := init_args.get("backbone"):
        build = _on_backbone(name, build, backbone)
    is_detector = info.task == "detection"
    own = {key: value for key, value in init_args.items() if key not in (*_ANCHORS, "backbone")}
    outputs = info.num_classes + is_detector  # torchvision's detectors have a background, class 0
    settings = {"num_classes": outputs, **_no_weights(build), **_anchors(name, build, init_args), **own}
    try:
        with explained_weights(f"torchvision.{name}", init_args):
            return build(**settings)
    except TypeError as error:
        raise ValueError(f"model.init_args must fit torchvision's {name}: {error}") from error


def _models(name: str) -> Any:
    try:
        return importlib.import_module("torchvision.models")
    except Exception as error:  # a torchvision that does not match torch raises RuntimeError
        raise ValueError(
            f"model.name: torchvision/{name} needs torchvision, which can't be imported here: {error}. "
            "Install the extra: pip install 'syncnorm[vision]'."
        ) from error


def _builder(models: Any, name: str) -> Callable[..., nn.Module]:
    known = models.list_models()
    if name not in known:
        near = ", ".join(get_close_matches(name, known, n=8, cutoff=0.4)) or "none alike"
        raise ValueError(f"model.name: torchvision has no model {name!r}; it has {near}.")
    found: Callable[..., nn.Module] = models.get_model_builder(name)
    return found


def _require_task(name: str, build: Callable[..., Any], info: DataInfo) -> None:
    package = build.__module__.removeprefix("torchvision.models.").partition(".")
    does = _PACKAGES.get(package[0], "unknown") if package[1] else "classification"
    suits = info.task == does or (does == "classification" and (info.task == "classification" or info.is_vector))
    if not suits:
        is_known = does in (*_PACKAGES.values(), "classification")
        what = f"does {does}" if is_known else f"is of torchvision.models.{package[0]}, which no data here is for"
        raise ValueError(f"model.name: torchvision/{name} {what}, but the data is for {info.task}. Use another model.")
    if info.shape[0] != 3:
        raise ValueError(
            f"model.name: torchvision/{name} takes images with 3 channels, got samples of shape {info.shape}. Set "
            "channels: 3 in data.init_args."
        )


def _require_known(name: str, build: Callable[..., Any], init_args: Mapping[str, Any]) -> None:
    """torchvision's detectors take any argument and leave those aside that they don't know. Raises: ValueError."""
    module = importlib.import_module(build.__module__)
    transform = importlib.import_module("torchvision.models.detection.transform").GeneralizedRCNNTransform
    takers = (build, getattr(module, _DETECTORS[module.__name__.rpartition(".")[2]]), transform)
    known = {one for taker in takers for one in inspect.signature(taker).parameters} - {"kwargs"}
    if unknown := sorted(init_args.keys() - known - {*_ANCHORS, "backbone"}):
        near = get_close_matches(unknown[0], known, n=3, cutoff=0.4)
        raise ValueError(
            f"model.init_args must fit torchvision's {name}: there is no argument {unknown[0]!r}"
            f"{'; near are ' + ', '.join(near) if near else ''}."
        )


def _on_backbone(name: str, build: Callable[..., Any], backbone: str) -> Callable[..., nn.Module]:
    """What builds the same detector on the feature pyramid of another resnet."""
    module = build.__module__.rpartition(".")[2]
    utils = importlib.import_module("torchvision.models.detection.backbone_utils")
    if module not in _ON_PYRAMIDS or not name.endswith("_resnet50_fpn") or not hasattr(utils.resnet, str(backbone)):
        raise ValueError(
            f"model.init_args.backbone is for detectors named …_resnet50_fpn, and must be a resnet of torchvision such "
            f"as resnet18, got {backbone!r} for {name}."
        )
    detector = getattr(importlib.import_module(build.__module__), _DETECTORS[module])
    pyramid: dict[str, Any] = {"weights": None, "trainable_layers": 5, "norm_layer": nn.BatchNorm2d}
    if module in ("retinanet", "fcos"):  # as torchvision builds them: from the second stage on, with two levels more
        more = importlib.import_module("torchvision.ops.feature_pyramid_network").LastLevelP6P7(256, 256)
        pyramid |= {"returned_layers": [2, 3, 4], "extra_blocks": more}

    def build_detector(num_classes: int, **more: Any) -> nn.Module:
        made: nn.Module = detector(utils.resnet_fpn_backbone(backbone_name=backbone, **pyramid), num_classes, **more)
        return made

    build_detector.__module__ = build.__module__
    return build_detector


def _no_weights(build: Callable[..., Any]) -> dict[str, None]:
    """Detectors and segmenters fetch a trained backbone unless they are told not to."""
    return {name: None for name in ("weights", "weights_backbone") if name in inspect.signature(build).parameters}


def _anchors(name: str, build: Callable[..., Any], init_args: Mapping[str, Any]) -> dict[str, Any]:
    given = [key for key in _ANCHORS if key in init_args]
    if not given:
        return {}
    argument = "rpn_anchor_generator" if "rcnn" in name else "anchor_generator"
    if "anchor_sizes" not in given or not build.__module__.endswith(("faster_rcnn", "mask_rcnn", "retinanet")):
        raise ValueError(
            f"model.init_args.{given[0]} is for Faster R-CNN, Mask R-CNN and RetinaNet, with anchor_sizes as a list of "
            f"sizes for each level of features, got {dict(init_args)} for {name}."
        )
    generator = importlib.import_module("torchvision.models.detection.anchor_utils").AnchorGenerator
    sizes = tuple(tuple(level) for level in init_args["anchor_sizes"])
    ratios = tuple(init_args.get("anchor_ratios", (0.5, 1.0, 2.0)))
    return {argument: generator(sizes, (ratios,) * len(sizes))}
