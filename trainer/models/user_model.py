"""Models that are not built in: a class or function by path, and timm's by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from lightning.pytorch import LightningModule
from torch import nn

from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.models.pretrained import explained_weights
from syncnorm.trainer.user_code.class_path import find, instantiate


def is_lightning_module(class_path: str) -> bool | None:
    """Whether it names a class of LightningModules, or a function annotated to return one. None: a function that does
    not say.

    Raises: ValueError naming the spec path.
    """
    target: Any = find("model", class_path)
    made = target if inspect.isclass(target) else _annotated_result(target)
    if inspect.isclass(made) and issubclass(made, LightningModule):
        return True
    is_network = inspect.isclass(made) and issubclass(made, nn.Module) and made is not nn.Module
    return False if made is target or is_network else None  # a function that says nn.Module, or Any, may return either


def _annotated_result(function: Any) -> Any:
    try:
        return get_type_hints(function).get("return")
    except (NameError, TypeError, AttributeError):  # names that are imported for type checkers alone
        return None


def fill_of(info: DataInfo) -> dict[str, Any]:
    """Arguments that a model of the user's gets from the data where its constructor has such parameters and init_args
    leaves them out: `{class_path: torchvision.models.resnet50}` has as many outputs as there are classes; a detector
    has one more, for the background."""
    outputs = info.num_classes + (info.task == "detection")
    return {"num_classes": outputs, "in_channels": info.shape[0], "in_chans": info.shape[0]}


def by_class_path(class_path: str, init_args: Mapping[str, Any], fill: Mapping[str, Any]) -> nn.Module:
    """The user's nn.Module or LightningModule. fill: as in `fill_of`. Raises: ValueError naming the spec path."""
    with explained_weights(class_path, init_args):
        model = instantiate("model", class_path, init_args, fill=fill)
    if any(base.__module__.startswith("pytorch_lightning.") for base in type(model).__mro__):
        raise ValueError(f"model.class_path: {class_path} must derive from lightning.pytorch, not pytorch_lightning.")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model.class_path must give an nn.Module, but {class_path} gave a {type(model).__name__}.")
    return model


def from_timm(name: str, init_args: Mapping[str, Any], info: DataInfo) -> nn.Module:
    """timm's model `name` for the classes and channels of the data.

    Raises: ValueError naming the spec path if timm is missing, has no such model, or refuses init_args.
    """
    try:
        timm = importlib.import_module("timm")
    except Exception as error:  # a torchvision that does not match torch raises RuntimeError
        raise ValueError(
            f"model.name: timm/{name} needs timm, which can't be imported here: {error}. "
            "Install the extra: pip install 'syncnorm[vision]'."
        ) from error
    if name not in timm.list_models():
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:8]) or "none alike"
        raise ValueError(f"model.name: timm has no model {name!r}; it has {near}.")
    settings = {"num_classes": info.num_classes, "in_chans": info.shape[0], **init_args}
    try:
        with explained_weights(f"timm.{name}", init_args):
            model: nn.Module = timm.create_model(name, **settings)
    except TypeError as error:
        raise ValueError(f"model.init_args must fit timm's {name}: {error}") from error
    return model
