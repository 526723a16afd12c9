"""What to say where a library could not get the weights that `weights` or `pretrained` in init_args ask for."""

from __future__ import annotations

import importlib
import re
import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

_NAMES = ("weights", "weights_backbone", "pretrained", "pretrained_backbone")
_HUB = "huggingface_hub."
_LIBRARIES = ("torchvision.", "timm.")


@contextmanager
def explained_weights(what: str, init_args: Mapping[str, Any]) -> Iterator[None]:
    """Within the block a model is built. what: import path of its class, or of its library.

    Raises: ValueError naming the field, in place of what torch.hub, huggingface_hub and torchvision raise for weights
    that are not here or have another head; what else is raised is passed on.
    """
    try:
        yield
    except Exception as error:
        given = [name for name in _NAMES if init_args.get(name)]
        if not given and not what.startswith(_LIBRARIES):
            raise
        field = f"model.init_args.{given[0]}" if given else "model.init_args"
        if (head := re.match(r"The parameter 'num_classes' expected value (\d+) but got (\d+)", str(error))) and given:
            raise ValueError(
                f"{field}: the weights of {what} have a head for {head[1]} classes, but the data has {head[2]}. Leave "
                "it out and name the file of the weights in model.init_from, with the head in drop."
            ) from error
        if (cause := _unreachable(error)) is None:
            raise
        by_default = "" if given else " It fetches weights by default: set weights_backbone to null for none."
        raise ValueError(
            f"{field}: the pretrained weights of {what} are not in the cache of this worker ({_cache(cause)}), and "
            f"can't be fetched: {_first_line(cause)}{by_default} Without internet, put them there, or name a file in "
            "model.init_from."
        ) from error


def _unreachable(error: BaseException) -> BaseException | None:
    """The error of a download among its causes."""
    now: BaseException | None = error
    while now is not None:
        if isinstance(now, urllib.error.URLError) or type(now).__module__.startswith(_HUB):
            return now
        now = now.__cause__ or now.__context__
    return None


def _cache(error: BaseException) -> str:
    if isinstance(error, urllib.error.URLError):
        return f"{torch.hub.get_dir()}/checkpoints"
    constants = importlib.import_module("huggingface_hub.constants")

    return str(constants.HF_HUB_CACHE)


def _first_line(error: BaseException) -> str:
    line = str(error).strip().split("\n", 1)[0][:300]
    return line if line.endswith(".") else f"{line}."
