"""Parts of a model that are compiled: their normalization is an operator in a graph, and no layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from syncnorm.norm.torch_compat import OpOverload

_OPERATORS = ("batch_norm", "group_norm", "instance_norm")


@dataclass(frozen=True)
class CompiledPart:
    """A scripted, traced or exported module at `path`, with normalization inside."""

    path: str
    module: nn.Module

    @property
    def message(self) -> str:
        what = "scripted or traced" if isinstance(self.module, torch.jit.ScriptModule) else "exported"
        return f"{self.path or 'The model'} is {what}, so its normalization is part of a graph, and no layer."

    @property
    def fix(self) -> str:
        return "Do this to the model before you script, trace or export it."


def compiled_parts(model: nn.Module) -> Iterator[CompiledPart]:
    """The outermost compiled modules of `model` that normalize channels."""
    inside: list[str] = []
    for path, module in model.named_modules():
        if any(not outer or path.startswith(f"{outer}.") for outer in inside):
            continue
        if any(operator in name for name in _operators(module) for operator in _OPERATORS):
            yield CompiledPart(path, module)
            inside.append(path)


def _operators(module: nn.Module) -> Iterator[str]:
    """The operators in the graph of a compiled module."""
    if isinstance(module, torch.jit.ScriptModule):
        graph = getattr(module, "inlined_graph", None)  # one without a forward has none
        yield from () if graph is None else (name for name in _OPERATORS if graph.findAllNodes(f"aten::{name}"))
    elif isinstance(module, fx.GraphModule):
        yield from (str(node.target) for node in module.graph.nodes if isinstance(node.target, OpOverload))
