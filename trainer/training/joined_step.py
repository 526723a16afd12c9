"""The training_step of a user's module for all micro-batches of a step, which are normalized as one batch."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from syncnorm.norm.accumulation.accumulated import run_together
from syncnorm.trainer.data.sampler import share_bounds
from syncnorm.trainer.training.batch_size import CURRENT_PART, Part


def join_micro_batches(module: LightningModule, micro_batches: int) -> None:
    """Let training_step run on each of so many parts of its batch, and give the mean of their losses over samples.

    What it logs is a mean over samples, too, with the part's own number of them unless it names another.
    """
    step: Any = module.training_step
    log: Any = module.log

    @functools.wraps(step)  # Lightning looks at its signature
    def joined(batch: Any, *args: Any, **kwargs: Any) -> Any:
        samples = _samples(type(module).__name__, batch)
        count = min(micro_batches, samples)
        bounds = [share_bounds(samples, number, count) for number in range(count)]
        parts = [Part(number, end - start) for number, (start, end) in enumerate(bounds)]
        batches = [_part(batch, start, end, samples) for start, end in bounds]

        def run(number: int) -> Any:
            CURRENT_PART.set(parts[number])  # in the context of this micro-batch
            return step(batches[number], *args, **kwargs)

        outputs = run_together(module, [partial(copy_context().run, run, number) for number in range(count)])
        return _mean(type(module).__name__, outputs, [(end - start) / samples for start, end in bounds])

    @functools.wraps(log)
    def log_by_samples(*args: Any, batch_size: int | None = None, **kwargs: Any) -> None:
        part = CURRENT_PART.get()
        log(*args, batch_size=part.samples if part and batch_size is None else batch_size, **kwargs)

    module.training_step = joined  # type: ignore[method-assign]
    module.log = log_by_samples  # type: ignore[method-assign]


def _part(batch: Any, start: int, end: int, samples: int) -> Any:
    """The samples from `start` to `end`: of tensors, and of lists with one entry, such as a name, for each sample."""

    def is_one_each(node: Any) -> bool:
        return isinstance(node, list) and len(node) == samples and not any(map(_is_tensor, tree_leaves(node)))

    def cut(leaf: Any) -> Any:
        return leaf[start:end] if _is_tensor(leaf) or is_one_each(leaf) else leaf

    return tree_map(cut, batch, is_leaf=is_one_each)


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def _samples(name: str, batch: Any) -> int:
    tensors = [leaf for leaf in tree_leaves(batch) if _is_tensor(leaf)]
    lengths = sorted({len(tensor) if tensor.ndim else 0 for tensor in tensors})
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(
            "train.accumulate_statistics: exact cuts the batches of a LightningModule along the first dimension of "
            f"their tensors, which must be the samples of all of them, but {name} got lengths {lengths}. Call "
            "norm.accumulated in your training_step instead, and leave train.accumulate out."
        )
    return lengths[0]


def _mean(name: str, outputs: Sequence[Any], shares: Sequence[float]) -> Any:
    """The loss of all, in the form of the last one's output."""
    losses: list[Any] = [output.get("loss") if isinstance(output, Mapping) else output for output in outputs]
    if not all(isinstance(loss, Tensor) for loss in losses):
        raise ValueError(
            f"with train.accumulate_statistics: exact, {name}.training_step must return a loss for every micro-batch, "
            "got none for some. Return a loss of 0 times an output where a micro-batch is not to count."
        )
    loss = torch.stack([each * share for each, share in zip(losses, shares, strict=True)]).sum()
    return {**outputs[-1], "loss": loss} if isinstance(outputs[-1], Mapping) else loss
