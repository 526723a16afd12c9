"""Which layers of a model normalize by the batch, and how they are made to take all micro-batches together."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.norm.accumulation.formulas import Brought, Formula, formula_of, shared_by
from syncnorm.norm.accumulation.joint_batch_norm import Pass, Shared
from syncnorm.norm.accumulation.joint_call import Visit, call_together
from syncnorm.norm.backends.dispatch import local_row
from syncnorm.norm.backends.memory_layout import dense
from syncnorm.norm.layers.activation_checkpointing import recall, remember
from syncnorm.norm.lockstep.turns import is_in_lockstep, meet
from syncnorm.norm.reading.norm_act import apply_tail
from syncnorm.norm.statistics.freezing import has_frozen_statistics
from syncnorm.norm.statistics.moments import Exchanged, measure_row
from syncnorm.norm.torch_compat import BatchNormBase, NormBase, is_in_backward, saved_tensors_hooks

_FROZEN: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def batch_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers by path whose output or buffers may depend on the whole batch in training."""
    return {path: layer for path, layer in model.named_modules() if _keeps_statistics(layer)}


def _keeps_statistics(layer: nn.Module) -> bool:
    if isinstance(layer, NormBase):
        return True
    if not all(isinstance(getattr(layer, name, None), Tensor) for name in ("running_mean", "running_var")):
        return False
    if layer not in _FROZEN:
        _FROZEN[layer] = has_frozen_statistics(layer)
    return not _FROZEN[layer]


def takes_batch(layer: Any) -> bool:
    """Whether it normalizes by the batch now, or moves its running statistics."""
    if isinstance(layer, BatchNormBase):
        return layer.training or layer.running_mean is None
    return bool(layer.training) and layer.running_mean is not None


@contextmanager
def joined(layers: dict[str, nn.Module]) -> Iterator[Joining]:
    """Within the block, calls of `layers` from a forward in lock-step take all micro-batches together.

    Afterwards they are as before; where activation checkpointing may run them again, once the graph of the results that
    `Joining.lasts_with` was told is gone.
    """
    joining = Joining()
    for path, layer in layers.items():
        joining.add(path, layer)
    try:
        yield joining
    finally:
        joining.is_open = False
        if not joining.is_needed:
            joining.undo()


class Joining:
    """The calls of one forward of all micro-batches."""

    def __init__(self) -> None:
        self.is_open = True
        self.is_needed = False
        """Whether the layers keep their joint forward after the block."""
        self.may_run_again = False
        self.saves_by = saved_tensors_hooks()
        self._layers: list[nn.Module] = []

    def add(self, path: str, layer: nn.Module) -> None:
        before = vars(layer).get("forward")
        own = before.original if isinstance(before, _JointForward) else before
        vars(layer)["forward"] = _JointForward(layer, path, own, self)
        self._layers.append(layer)

    def undo(self) -> None:
        """Give the layers their own forward back, unless another accumulation has taken them over."""
        for layer in self._layers:
            current = vars(layer).get("forward")
            if isinstance(current, _JointForward) and current.joining is self:
                if current.original is None:
                    del vars(layer)["forward"]
                else:
                    vars(layer)["forward"] = current.original

    def lasts_with(self, results: Sequence[object]) -> None:
        """Answer calls from a backward pass, as of activation checkpointing, while the graph of `results` lives."""
        nodes = [result.grad_fn for result in results if isinstance(result, Tensor) and result.grad_fn is not None]
        if not self.may_run_again or not nodes:
            return
        self.is_needed, owner = True, _Owner()
        for node in nodes:
            metadata: dict[str, object] = node.metadata  # type: ignore[assignment]
            metadata["syncnorm"] = owner
        weakref.finalize(owner, self.undo)


class _Owner:
    """Lives as long as a graph."""


@dataclass(frozen=True, eq=False)
class _Answer(Exchanged):
    """What a call of a layer with a formula was answered."""

    weight: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class _Output(Exchanged):
    """What a call of another layer gave."""

    y: Tensor


class _JointForward:
    """Stands in for the forward of a layer."""

    def __init__(self, layer: nn.Module, path: str, original: Callable[..., Any] | None, joining: Joining) -> None:
        self._layer = weakref.ref(layer)
        self.path, self.original, self.joining = path, original, joining

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer = self._layer()
        assert layer is not None
        own = self.original or type(layer).forward.__get__(layer)
        if is_in_backward():
            return self._recall(layer, own, *args, **kwargs)
        if not self.joining.is_open or not takes_batch(layer):
            return own(*args, **kwargs)
        if not is_in_lockstep():
            raise ValueError(
                f"{self.path} must be called by the forward of a micro-batch, got a call from another thread. "
                "norm.accumulated can't follow a model that starts threads, as nn.DataParallel does; use one device a "
                "process."
            )
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
            raise ValueError(
                f"{self.path} ({type(layer).__name__}) must take one tensor for norm.accumulated to give it all "
                "micro-batches together, got other arguments. Choose another norm for this layer, such as sync_batch."
            )
        return self._joint(layer, own, args[0])

    def _joint(self, layer: Any, own: Callable[..., Tensor], x: Tensor) -> Tensor:
        is_saved_elsewhere = saved_tensors_hooks() != self.joining.saves_by
        if is_saved_elsewhere or not torch.is_grad_enabled():
            self.joining.may_run_again = True
        formula = formula_of(layer) if self.original is None else None
        if formula is None:
            return self._together(layer, own, x, is_kept=is_saved_elsewhere)
        for check in ("_check_input_dim", "_check_tensors"):
            if hasattr(layer, check):
                getattr(layer, check)(x)
        return apply_tail(layer, self._by_formula(layer, formula, x, unpacks_twice=not is_saved_elsewhere))

    def _by_formula(self, layer: Any, formula: Formula, x: Tensor, *, unpacks_twice: bool) -> Tensor:
        x = dense(x)
        one = Pass(x, layer.eps, self.joining.saves_by, unpacks_twice=unpacks_twice)
        row = one.measure(x)

        def combine(brought: list[Brought]) -> Sequence[Shared]:
            return [shared_by(layer, formula, brought)] * len(brought)

        shared = meet(layer, self.path, Brought(row, x.numel() // max(x.shape[1], 1)), combine)
        y = one.normalize(x, row, shared)
        remember(layer, x, _Answer(row.detach(), shared.row.detach(), shared.weight, shared.bias), y)
        return y

    def _together(self, layer: nn.Module, own: Callable[..., Tensor], x: Tensor, *, is_kept: bool) -> Tensor:
        visit = Visit()

        def combine(brought: list[Any]) -> Sequence[Tensor]:
            return [call_together(layer, own, brought)] * len(brought)

        y = visit.leave(meet(layer, self.path, (visit, x, visit.enter(x)), combine))
        if is_kept:
            row = measure_row(x.detach())
            remember(layer, x, _Output(row, row, y.detach().clone()), y)
        return y

    def _recall(self, layer: Any, own: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """A call from a backward pass: the part of the forward that activation checkpointing runs again."""
        measure = measure_row if formula_of(layer) is None or self.original else local_row
        known = recall(layer, args[0], measure) if args and isinstance(args[0], Tensor) else None
        if not isinstance(known, _Answer | _Output):
            return own(*args, **kwargs)
        if saved_tensors_hooks() is None:
            raise RuntimeError(
                f"norm.accumulated needs activation checkpointing with use_reentrant=False, but {self.path} was run "
                "again with use_reentrant=True, which differentiates micro-batches one after the other."
            )
        if isinstance(known, _Output):
            return known.y.clone().requires_grad_(
                args[0].requires_grad or any(p.requires_grad for p in layer.parameters())
            )
        x = dense(args[0])
        one = Pass(x, layer.eps, self.joining.saves_by, unpacks_twice=False)
        y = one.normalize(x, one.measure(x), Shared(known.merged, known.weight, known.bias))
        return apply_tail(layer, y)
