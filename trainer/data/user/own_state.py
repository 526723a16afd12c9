"""A loader that keeps a state of its own, such as torchdata's StatefulDataLoader, resumed at the batch that counts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len
from torch.utils.data import DataLoader

from syncnorm.trainer.random_state import kept_random_state, random_state, with_random_state


def has_own_state(loader: object) -> bool:
    return isinstance(loader, DataLoader) and hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def resume_by_own_state(loader: object, taken: Callable[[], int] | None) -> object:
    """`loader` itself, whose state is that after the batches that training has taken.

    taken: how many these are, of the pass under way; None: all that were read. Lightning reads one ahead where it
    can't know which one is the last (lightning 2.6.6), and a state that counts it would leave it out after a stop.
    """
    add_base(loader, _OwnState)
    loader.taken = taken  # type: ignore[attr-defined]
    return loader


def add_base(loader: Any, base: type) -> None:
    """Change its class, because a loader made anew would not be the user's."""
    kind = type(loader)
    loader.__class__ = type(kind.__name__, (base, kind), {"__module__": kind.__module__})


class _OwnState(DataLoader[Any]):
    taken: Callable[[], int] | None
    order: Any = None
    _read = 0
    _is_over = False
    _before: dict[str, Any] | None = None
    """The state before the last batch was read, where that may be one too many."""
    _resumed: dict[str, Any] | None = None

    def __iter__(self) -> Any:
        resumed, self._resumed = self._resumed, None
        # A pass that began before the stop drew its numbers then.
        with kept_random_state() if resumed else nullcontext():
            batches = iter(super().__iter__())
        if resumed and resumed["is_over"]:
            _draw_a_seed(self)  # as the pass that now begins would have
        self._read = resumed["batch"] if resumed and not resumed["is_over"] else 0
        return self._counted(batches, resumed and resumed["random"])

    def _counted(self, batches: Iterator[Any], drawn_from: dict[str, Any] | None) -> Iterator[Any]:
        """drawn_from: the random numbers that the first of these batches was read ahead with."""
        reads_ahead, self._is_over = sized_len(self) is None, False
        while True:
            if reads_ahead:
                self._before = {"own": copy.deepcopy(super().state_dict()), "random": drawn_from or random_state()}  # type: ignore[misc]
            try:
                with with_random_state(drawn_from) if drawn_from else nullcontext():
                    batch = next(batches)
            except StopIteration:
                self._is_over = True
                return
            self._read, drawn_from = self._read + 1, None
            yield batch

    def state_dict(self) -> dict[str, Any]:
        taken = self._read if self.taken is None else min(self._read, self.taken())
        is_ahead = taken < self._read
        now = self._before if is_ahead and self._before else {"own": super().state_dict(), "random": None}  # type: ignore[misc]
        return now | {
            "batch": taken,
            "is_over": self._is_over and not is_ahead,
            "epoch": self.order.of_epoch if self.order else None,
            "drawn_from": self.order.drawing if self.order else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state["own"])  # type: ignore[misc]
        self._resumed = state
        if self.order is not None:
            self.order.seek(state["epoch"], 0, state["drawn_from"])  # its own state leaves the batches out


def _draw_a_seed(loader: Any) -> None:
    """As each pass of a DataLoader does."""
    torch.empty((), dtype=torch.int64).random_(generator=getattr(loader, "generator", None))
