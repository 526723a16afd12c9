"""What Python of a module a graph would leave out: values that a step changes, and those it reads."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

_OF_A_MOMENT = {"current_epoch", "global_step", "logger", "loggers", "lr_schedulers", "optimizers", "print", "trainer"}
"""What Lightning gives a module, and a graph would keep as it was when the step was captured."""

_USES = ast.BinOp | ast.BoolOp | ast.UnaryOp | ast.Compare | ast.If | ast.IfExp | ast.FormattedValue


def python_state(module: nn.Module) -> dict[str, Any]:
    """Tensors, plain values and the length of each container that the attributes of `module` and its parts hold.

    Metrics are left out: what they count is repeated after each replay.
    """
    return {
        f"{path}.{name}".lstrip("."): found
        for path, part in module.named_modules()
        if not isinstance(part, Metric)
        for name, value in (vars(part) | part._buffers).items()
        if (found := _plain(value)) is not _NOTHING
    }


_NOTHING = object()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, Tensor | bool | int | float | str):
        return value
    return len(value) if isinstance(value, list | dict | set | deque) else _NOTHING


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The attributes that are not what they were. A tensor that was changed in place is the same one.

    >>> changed({"steps": 1, "rate": 0.1}, {"steps": 2, "rate": 0.1})
    ['steps']
    """
    return [name for name, value in after.items() if name not in before or not _is_same(before[name], value)]


def _is_same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor) or isinstance(after, Tensor):
        return before is after
    return before is after or bool(before == after)


def reads_of_a_moment(module: LightningModule) -> list[str]:
    """What its training_step, and the methods that this calls, read of the step they are in, such as `self.trainer`.

    Found in the source, where there is one. A `batch_idx` that is only passed on counts for nothing.
    """
    found: set[str] = set()
    methods, known = ["training_step"], set[str]()
    while methods:
        name = methods.pop()
        method = getattr(type(module), name, None)
        if name in known or not inspect.isfunction(method) or method is getattr(LightningModule, name, None):
            continue
        known.add(name)
        for node in _statements(method):
            methods += _methods_called(node)
            found |= set(_reads(node))
    return sorted(found)


def _statements(method: Callable[..., Any]) -> list[ast.AST]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(method))))
    except (OSError, TypeError, SyntaxError):  # there is no source, or it can't be taken out of its class
        return []
    return list(ast.walk(tree))


def _methods_called(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_of_self(node.func):
        yield node.func.attr
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "self":
        yield "forward"


def _reads(node: ast.AST) -> Iterator[str]:
    if _is_of_self(node) and isinstance(node, ast.Attribute) and node.attr in _OF_A_MOMENT:
        yield f"self.{node.attr}"
    if isinstance(node, _USES):
        names = (each.id for each in ast.iter_child_nodes(node) if isinstance(each, ast.Name))
        yield from (name for name in names if name == "batch_idx")


def _is_of_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
