"""What belongs to a module besides its computation: hooks, mode, values, and the arguments it is called with."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from syncnorm.norm.torch_compat import HOOK_DICTIONARIES

M = TypeVar("M", bound=nn.Module)


def carry_hooks(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the forward and backward hooks of `source`; handles to them stay valid."""
    for name in (*HOOK_DICTIONARIES, "_is_full_backward_hook"):
        if name in source.__dict__:
            object.__setattr__(target, name, source.__dict__[name])


def copy_without_hooks(module: M) -> M:
    """A deep copy of `module` that has none of its forward and backward hooks."""
    return copy.deepcopy(
        module, {id(module.__dict__[name]): type(module.__dict__[name])() for name in HOOK_DICTIONARIES}
    )


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Within, the code of `model` may run; afterwards the model is as it was, and so are torch's random numbers.

    That covers the values of parameters and buffers, also of an average that the forward moves, and every attribute of
    every module, its mode included. The values are copied for the time being.
    """
    modules = [(module, dict(vars(module)), _tables(module)) for module in model.modules()]
    values = [(tensor, tensor.clone()) for tensor in _values(model)]
    devices = {tensor.device.index for tensor, _ in values if tensor.is_cuda}
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        for module, attributes, tables in modules:
            for now, before in ((vars(module), attributes), *((attributes[name], tables[name]) for name in tables)):
                now.clear()
                now.update(before)
        for tensor, value in values:
            if not torch.equal(tensor, value):  # a needless write would spoil a backward that is still to come
                tensor.copy_(value)


def _tables(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Its parameters, buffers and parts; a scripted module keeps them elsewhere."""
    own = {name: vars(module).get(name) for name in ("_parameters", "_buffers", "_modules")}
    return {name: dict(table) for name, table in own.items() if isinstance(table, dict)}


def _values(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers that hold values, on this worker."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not torch.nn.parameter.is_lazy(tensor) and not tensor.is_meta:
            local = tensor.detach()
            yield local.to_local() if hasattr(local, "to_local") else local  # a shard


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The tensor that a layer was called with, by place or by keyword. For hooks with keyword arguments."""
    found = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if found is None:
        raise TypeError(f"A normalization layer must be called with a tensor, got {len(args) + len(kwargs)} arguments.")
    return found


def call_with(model: nn.Module, inputs: Any) -> Any:
    """What `model` gives for `inputs`: a tensor, a tuple of arguments, or a mapping of keyword arguments.

    A mapping that does not fit the parameters of the model's forward is its one argument.
    """
    if isinstance(inputs, Mapping) and takes_keywords(model, inputs):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def takes_keywords(model: nn.Module, names: Mapping[str, Any]) -> bool:
    """Whether the forward of `model` can be called with these keyword arguments."""
    try:
        _signature(model).bind(**names)
    except TypeError:
        return False
    return True


def required_arguments(model: nn.Module) -> int:
    """How many arguments by place the forward of `model` needs; at least one."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = _signature(model).parameters.values()
    return max(1, sum(each.kind in kinds and each.default is each.empty for each in parameters))


def _signature(model: nn.Module) -> inspect.Signature:
    """That of the forward that takes the arguments, inside a wrapper for data parallel training."""
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    try:
        return inspect.signature(model.forward)
    except ValueError:  # a scripted one shows none
        return inspect.signature(lambda *args, **kwargs: None)  # noqa: ARG005
