"""When a step is captured: after enough steps of its signature on every rank, at the same step on all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

WARM_UPS = 11
"""Steps before a capture: DistributedDataParallel measures its first ten, and torch asks for eleven."""
PATIENCE = 200
"""Steps after which ranks that are not ready stop waiting: their batches have too many shapes."""


@dataclass(frozen=True)
class Vote:
    """What a rank says about capturing the step that comes next. problem: why it never can."""

    is_ready: bool
    problem: str | None = None


@dataclass(frozen=True)
class Refusal:
    """Why steps run without a graph."""

    reason: str


class WarmUp:
    """Counts the steps of a rank before the capture, by signature."""

    def __init__(self) -> None:
        self._counts: Counter[Hashable] = Counter()
        self.steps = 0
        """The same on every rank."""

    def add(self, signature: Hashable | None) -> None:
        """signature: None for a step that could not have been replayed."""
        self.steps += 1
        if signature is not None:
            self._counts[signature] += 1

    def is_over(self) -> bool:
        return self.steps >= WARM_UPS

    def has_warmed(self, signature: Hashable | None) -> bool:
        return signature is not None and self._counts[signature] >= WARM_UPS


def decide(votes: Sequence[Vote], steps: int) -> Literal["capture", "wait"] | Refusal:
    """What all ranks do at the step that comes next. steps: those that have warmed up.

    >>> decide([Vote(True), Vote(True)], steps=11)
    'capture'
    >>> decide([Vote(True), Vote(False)], steps=11)  # the other has a batch of another shape
    'wait'
    """
    problem = next((vote.problem for vote in votes if vote.problem), None)
    if problem:
        return Refusal(problem)
    if all(vote.is_ready for vote in votes):
        return "capture"
    if steps >= PATIENCE:
        return Refusal(
            f"no {WARM_UPS} of the first {steps} steps had batches of one shape and with the same values besides "
            "tensors on every worker. Make your batches equally large, and leave names and paths out of them"
        )
    return "wait"
