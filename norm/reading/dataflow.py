"""The data flow of a model, from torch.fx: which module reads which module's output."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from syncnorm.norm.modules import preserved
from syncnorm.norm.reading.norm_act import NormAct, is_identity
from syncnorm.norm.reading.readers import read_source

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_FORWARDS_OF_CONTAINERS = [container.forward for container in _CONTAINERS]


class _Tracer(fx.Tracer):
    """Stops at modules without children, at torch's own, parametrized ones included, and at normalization layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if next(m.children(), None) is None or isinstance(m, NormAct) or _is_norm(m, module_qualified_name):
            return True
        return type_before_parametrizations(m).__module__.startswith("torch.nn") and not isinstance(m, _CONTAINERS)


def _is_norm(module: nn.Module, path: str) -> bool:
    """Whether it is a normalization layer of known behaviour, such as timm's, which have an activation inside."""
    try:
        return read_source(module, path) is not None
    except ValueError:
        return False


@dataclass(frozen=True)
class Flow:
    """Who reads whom. Modules that are only used where nothing can be traced have no neighbours.

    untraced: module paths whose own forward could not be followed, with the reason. read: the tensors that a
    forward takes from a module to use them itself.
    """

    calls: dict[nn.Module, list[fx.Node]] = field(default_factory=dict)
    modules: dict[fx.Node, nn.Module] = field(default_factory=dict)
    graphs: list[fx.Graph] = field(default_factory=list)
    untraced: dict[str, str] = field(default_factory=dict)
    read: list[Tensor] = field(default_factory=list)

    def before(self, module: nn.Module, passes: Callable[[nn.Module], bool] = is_identity) -> nn.Module | None:
        """The module whose output `module` reads, if each is called once and nobody else reads that output.

        passes: modules that hand their input on, and are looked through.
        """
        node = self.only_call(module)
        source = input_of(node) if node is not None else None
        if source is None or len(source.users) != 1:
            return None
        found = self.modules.get(source)
        if found is None or self.only_call(found) is None:
            return None
        return self.before(found, passes) if passes(found) else found

    def after(self, module: nn.Module, passes: Callable[[nn.Module], bool] = is_identity) -> nn.Module | None:
        """The only module that reads the output of `module`, if each is called once. passes: as in `before`."""
        node = self.only_call(module)
        if node is None or len(node.users) != 1:
            return None
        reader = next(iter(node.users))
        found = self.modules.get(reader)
        if found is None or self.only_call(found) is None or input_of(reader) is not node:
            return None
        return self.after(found, passes) if passes(found) else found

    def readers(self, module: nn.Module) -> list[fx.Node]:
        """Every node that reads an output of `module`, over all its calls."""
        return [user for node in self.calls.get(module, []) for user in node.users]

    def reads_tensors_of(self, module: nn.Module) -> bool:
        """Whether a forward uses a parameter or buffer of `module` itself, other than by calling the module."""
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        return any(tensor is other for tensor in own for other in self.read)

    def why_unknown(self, path: str) -> str:
        """Why the calls of the module at `path` are not known: the innermost module around it that can't be traced."""
        around = [prefix for prefix in self.untraced if not prefix or f"{path}.".startswith(f"{prefix}.")]
        if not around:
            return "it is not used"
        innermost = max(around, key=len)
        return f"{innermost or 'the model'}: {self.untraced[innermost]}"

    def nodes(self) -> Iterator[fx.Node]:
        """Every node of every part that could be traced."""
        for graph in self.graphs:
            yield from graph.nodes

    def only_call(self, module: nn.Module) -> fx.Node | None:
        """The node that calls `module`, if there is one alone."""
        nodes = self.calls.get(module, [])
        return nodes[0] if len(nodes) == 1 else None


def input_of(node: fx.Node) -> fx.Node | None:
    """The node whose output is the first argument of `node`, by place or by keyword."""
    first = next(iter((*node.args, *node.kwargs.values())), None)
    return first if isinstance(first, fx.Node) else None


def trace(model: nn.Module, *, omit_optional: bool = False) -> Flow:
    """The data flow of `model`; where a module can't be traced, that of its parts.

    A container inside an untraced module is not followed, only what is in it: its owner may call the parts one by one.
    One with a forward of its own is followed, such as torchvision's IntermediateLayerGetter, a ModuleDict.
    A module used at several places is not followed either, if one of them may be untraced.
    The code of the model runs, on stand-ins for tensors, and whatever it changes is put back.

    omit_optional: as in a call without the arguments whose default is None. Otherwise each is taken to be given.
    """
    with preserved(model):
        return _traced(model, _without_optional if omit_optional else _Tracer().trace)


def optional_arguments(module: nn.Module) -> dict[str, None]:
    """The arguments of its forward whose default is None."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except ValueError:  # a scripted forward shows none
        return {}
    return {each.name: None for each in parameters if each.default is None}


def _without_optional(module: nn.Module) -> fx.Graph:
    """The graph of a call without optional arguments, or, where that is no call, of one with them."""
    try:
        return _Tracer().trace(module, concrete_args=optional_arguments(module))
    except Exception:  # as in `_regions`
        return _Tracer().trace(module)


def _traced(model: nn.Module, trace_one: Callable[[nn.Module], fx.Graph]) -> Flow:
    flow = Flow()
    for prefix, graph in _regions(model, "", flow.untraced, trace_one):
        flow.graphs.append(graph)
        for node in graph.nodes:
            path = ".".join(part for part in (prefix, str(node.target)) if part)
            if node.op == "get_attr":
                owner, _, name = path.rpartition(".")
                value = getattr(model.get_submodule(owner), name, None)
                flow.read.extend([value] if isinstance(value, Tensor) else [])
            if node.op == "call_module":
                module = model.get_submodule(path)
                flow.calls.setdefault(module, []).append(node)
                flow.modules[node] = module
    if flow.untraced:
        seen: set[nn.Module] = set()
        for _, module in model.named_modules(remove_duplicate=False):
            if module in seen:
                flow.calls.pop(module, None)
            seen.add(module)
    return flow


def _regions(
    module: nn.Module, prefix: str, untraced: dict[str, str], trace_one: Callable[[nn.Module], fx.Graph]
) -> Iterator[tuple[str, fx.Graph]]:
    try:
        yield prefix, trace_one(module)
    except Exception as error:  # tracing runs user code on proxies for tensors, which may raise anything
        untraced[prefix] = f"{type(error).__name__}: {error}".splitlines()[0]
        yield from _parts(module, prefix, untraced, trace_one)


def _parts(
    module: nn.Module, prefix: str, untraced: dict[str, str], trace_one: Callable[[nn.Module], fx.Graph]
) -> Iterator[tuple[str, fx.Graph]]:
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        is_bare = isinstance(child, _CONTAINERS) and type(child).forward in _FORWARDS_OF_CONTAINERS
        follow = _parts if is_bare else _regions
        if next(child.children(), None) is not None:
            yield from follow(child, path, untraced, trace_one)
