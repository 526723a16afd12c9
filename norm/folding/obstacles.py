"""Why a layer can't be folded into a neighbour that is linear and as wide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType

from torch import nn

from syncnorm.norm.conversion.edits import original_of
from syncnorm.norm.reading.dataflow import Flow, optional_arguments, trace
from syncnorm.norm.reading.readers import read_source

Passes = Callable[[nn.Module], bool]


class FlowOfCalls:
    """The data flow of a model in every way that it may be called: with its optional arguments, and without."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._paths = {module: path for path, module in model.named_modules()}
        self.given = trace(model)
        has_optional = any(optional_arguments(module) for module in model.modules())
        self._flows = [self.given, *([trace(model, omit_optional=True)] if has_optional else [])]

    def obstacle(self, layer: nn.Module, neighbour: nn.Module, passes: Passes) -> str | None:
        """Why `neighbour` can't take `layer`; None if it can."""
        path, name = self._paths[layer], type(neighbour).__name__
        source = read_source(original_of(layer) or layer, path)
        if isinstance(neighbour, nn.Linear) and source is not None and source.dims in (2, 3):
            return f"it normalizes dimension 1 of {source.dims + 2}, and the Linear next to it works on the last"
        if not all(_are_neighbours(layer, neighbour, flow, passes) for flow in self._flows):
            return f"whether it and the {name} belong together depends on an argument of a forward"
        for module, what in ((layer, "its own tensors are"), (neighbour, f"the {name}'s tensors are")):
            if any(flow.reads_tensors_of(module) for flow in self._flows) or self._is_named_in_untraced_code(module):
                return f"{what} used elsewhere in a forward too, where folding would change them"
        return None

    def _is_named_in_untraced_code(self, module: nn.Module) -> bool:
        path = self._paths[module]
        around = [prefix for prefix in self.given.untraced if not prefix or path.startswith(f"{prefix}.")]
        inside = [(self._model.get_submodule(prefix), path.removeprefix(prefix).split(".")) for prefix in around]
        return any(_names_tensors(owner, [part for part in parts if part]) for owner, parts in inside)


def _are_neighbours(layer: nn.Module, neighbour: nn.Module, flow: Flow, passes: Passes) -> bool:
    """Whether each stands next to the other, or neither is called at all."""
    if layer not in flow.calls and neighbour not in flow.calls:
        return True
    return neighbour in (flow.before(layer, passes), flow.after(layer, passes))


def _names_tensors(owner: nn.Module, path: Sequence[str]) -> bool:
    """Whether the forward of `owner`, or a method it names, names a weight or bias of the module at `path` inside."""
    methods = {name: one for name, one in vars(type(owner)).items() if isinstance(one, FunctionType)}
    names = set(_names(methods["forward"].__code__)) if "forward" in methods else set()
    for name in names & methods.keys():
        names |= set(_names(methods[name].__code__))
    attributes = {part for part in path if not part.isdigit()}  # those of a ModuleList are indices
    return bool(names & {"weight", "bias"}) and attributes <= names


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
