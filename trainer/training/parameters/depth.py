"""Numbers the layers of a network from its input to its output, for a learning rate that falls with the distance."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def layer_numbers(network: nn.Module) -> dict[str, int]:
    """The layer of every parameter, by its name; 0 is the first.

    Models of timm number their layers themselves (`group_matcher`), also inside of other modules. Elsewhere layers
    count in the order in which they were registered: each element of a Sequential, ModuleList or ModuleDict is one,
    such as a block with all that is in it, and so is each child of other modules. What holds vectors only, such as a
    normalization, is part of the layer before it, and so are a module's own parameters, such as a class token.
    See: Bao et al. 2021 (BEiT), arXiv:2106.08254; He et al. 2021 (MAE), arXiv:2111.06377, appendix A.1.
    """
    numbers, begun = dict[str, int](), 0
    for names, is_layer in _parts(network, ""):
        begun += is_layer
        numbers |= dict.fromkeys(names, max(0, begun - 1))
    return numbers


def _parts(module: nn.Module, prefix: str) -> Iterator[tuple[list[str], bool]]:
    """Names of parameters that belong together, and whether a layer begins with them."""
    if hasattr(module, "group_matcher"):
        group_parameters = importlib.import_module("timm.models").group_parameters
        found = group_parameters(module, module.group_matcher(coarse=False))  # type: ignore[operator]
        yield from (([prefix + name for name in found[number]], True) for number in sorted(found))
        return
    yield [prefix + name for name, _ in module.named_parameters(recurse=False)], False
    for name, child in module.named_children():
        path = f"{prefix}{name}."
        if _is_opened(child, is_element=isinstance(module, _CONTAINERS)):
            yield from _parts(child, path)
        else:
            yield [path + own for own, _ in child.named_parameters()], _holds_matrices(child)


def _is_opened(child: nn.Module, *, is_element: bool) -> bool:
    """Whether it is no layer itself but holds layers: a container, or a network such as a backbone.

    A block of a network has small containers, too, as for a shortcut. So a child is a network if it has a container of
    several layers, and an element of a container only if it has one of several blocks of one class.
    """
    if isinstance(child, _CONTAINERS) or hasattr(child, "group_matcher"):
        return True
    containers = (inner for inner in child.modules() if isinstance(inner, _CONTAINERS))
    elements = ([each for each in container.children() if _holds_matrices(each)] for container in containers)
    if is_element:
        return any(_repeats_a_block(each) for each in elements)
    return any(len(each) > 1 for each in elements)


def _repeats_a_block(elements: list[nn.Module]) -> bool:
    blocks = (type(each) for each in elements if any(each.children()) and not isinstance(each, _CONTAINERS))
    return any(count > 1 for count in Counter(blocks).values())


def _holds_matrices(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())
