"""A copy of a model whose modules may hold anything."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.overrides import TorchFunctionMode


def deep_copy(model: nn.Module) -> nn.Module:
    """A deep copy, but for process groups and for attributes that can't be copied, such as locks and open files.

    Tensors with a history, as of weights that a hook computes anew or of samples kept in a list, are copied without it.

    >>> model = nn.Linear(2, 1)
    >>> model.kept = [model.weight * 2]
    >>> deep_copy(model).kept[0].requires_grad
    False
    """
    memo = {id(value): value for value in _attributes(model) if isinstance(value, ProcessGroup)}
    with _WithoutHistory():
        try:
            return copy.deepcopy(model, dict(memo))
        except Exception:  # whatever an attribute's own code raises
            for value in _attributes(model):
                if not _can_be_copied(value, dict(memo)):
                    memo[id(value)] = value
            return copy.deepcopy(model, memo)


def _attributes(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        yield from vars(module).values()


def _can_be_copied(value: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, memo)
    except Exception:
        return False
    return True


class _WithoutHistory(TorchFunctionMode):
    """Within, copy.deepcopy takes any tensor; torch's own refuses one with a history."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].grad_fn is None:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        return memo.setdefault(id(tensor), tensor.detach().clone())
