"""Refuses exchanges between workers in a user's training_step that an uneven last batch would break.

A loss that gathers over workers (SimCLR, CLIP) needs shares of one size: with others gloo aborts the process and NCCL
hangs. That would happen at the end of the first epoch, so such an exchange is refused at the first step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

_BY_SHAPE = ("allgather", "_allgather_base", "gather", "alltoall", "alltoall_base", "reduce_scatter")
_BY_SHAPE_OPS = ("all_gather_into_tensor", "all_to_all_single", "reduce_scatter_tensor")
"""Functions of torch.distributed._functional_collectives, which bypass the methods of a process group."""


@contextmanager
def refused(name: str, shares: Sequence[int] | None, samples: int) -> Iterator[None]:
    """Within the block, exchanges that the last batch would break raise ValueError, unless norm layers call them.

    name: of the user's class. shares: samples of each rank in the last batch; None: all have as many. samples: of this
    worker now. Refused is what is as long as the batch.
    """
    if shares is None:
        yield
        return
    functional = torch.ops._c10d_functional
    with ExitStack() as stack:
        for owner, names in ((dist.ProcessGroup, _BY_SHAPE), (functional, _BY_SHAPE_OPS)):
            for method in names:
                check = partial(_check, method.strip("_"), name, shares, samples)
                stack.enter_context(_preceded(owner, method, check))
        yield


@contextmanager
def _preceded(owner: Any, name: str, check: Callable[[Any], None]) -> Iterator[None]:
    """Within the block, `check` runs before each call of `owner.name`, with its arguments."""
    original = getattr(owner, name)
    kept = vars(owner)[name]  # what binds to an instance, which `original` does not

    def call(*args: Any, **kwargs: Any) -> Any:
        check((args, kwargs))
        return original(*args, **kwargs)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def _check(method: str, name: str, shares: Sequence[int], samples: int, arguments: Any) -> None:
    if _is_of_norm() or not _is_as_long(arguments, samples):
        return
    each = ", ".join(map(str, shares[:8])) + (", …" if len(shares) > 8 else "")
    raise ValueError(
        f"model.class_path: {name}.training_step exchanges tensors between workers ({method}), but the last batch of "
        f"an epoch gives them {each} samples, and such an exchange needs shares of one size. Leave "
        "data.last_batch out, or choose a data.batch_size that divides the training data."
    )


def _is_as_long(arguments: Any, samples: int) -> bool:
    """Whether a tensor grows with the samples of the batch. A single number is the same on all ranks."""
    found = (leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor))
    return any(leaf.ndim > 0 and leaf.numel() > 1 and leaf.shape[0] % samples == 0 for leaf in found)


def _is_of_norm() -> bool:
    """Whether a normalization layer calls: those weight by count, and take part with an empty share too."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("syncnorm.norm."):
            return True
        if module == "syncnorm.trainer.training.strategy":
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False
