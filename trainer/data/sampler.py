"""Which samples each worker takes at each step: deterministic, resumable, the same for every number of workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Share(NamedTuple):
    """One worker's part of one global batch.

    weight: factor for the mean loss of this part, world_size * n_r / N. Then the average of the gradients over the
    workers, which is what DDP forms, is the gradient of the mean over all N samples; 1.0 when parts are equal.
    """

    epoch: int
    indices: tuple[int, ...]
    weight: float


def share_bounds(samples: int, rank: int, world_size: int) -> tuple[int, int]:
    """Start and end of a rank's contiguous part when `samples` are spread as evenly as possible."""
    base, extra = divmod(samples, world_size)
    start = rank * base + min(rank, extra)
    return start, start + base + (rank < extra)


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of all samples in an epoch; depends on nothing else."""
    return np.random.default_rng((seed, epoch)).permutation(num_samples)


def grouped_order(order: np.ndarray, groups: Sequence[int], batch: int) -> np.ndarray:
    """`order`, rearranged so that each `batch` in a row is of one group, but for what is left of all groups at the end.

    groups: that of each sample. Batches come in the order in which `order` fills them.
    """
    full: list[int] = []
    waiting: defaultdict[int, list[int]] = defaultdict(list)
    for index in order.tolist():
        members = waiting[groups[index]]
        members.append(index)
        if len(members) == batch:
            full += members
            members.clear()
    rest = [index for group in sorted(waiting) for index in waiting[group]]
    return np.array(full + rest, dtype=order.dtype)


class ShardedBatches(Sampler[Share]):
    """Shares of global batches for one rank.

    The global batches are cut from `epoch_order`, or from 0, 1, 2, … without shuffling, and each is spread over the
    ranks in contiguous parts as evenly as possible. So the batches do not depend on `world_size`, and every rank has
    the same number of them; a part may be empty when a batch has fewer samples than there are ranks.

    global_batch: samples of all ranks per step. groups: of each sample, those that go into one batch where shuffled
    (grouped_order). last_batch: `weight` spreads a smaller last batch too; `drop` leaves
    it out. Start anywhere with `seek`.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        last_batch: Literal["weight", "drop"] = "weight",
        groups: Sequence[int] | None = None,
    ) -> None:
        if num_samples < 1:
            raise ValueError("the data must hold at least one sample, got none. Check data.init_args.")
        if last_batch == "drop" and num_samples < global_batch:
            raise ValueError(
                f"data.last_batch: drop leaves no batch, for {num_samples} samples do not fill one of {global_batch} "
                "(data.batch_size times resources.workers). Use last_batch: weight or a smaller batch_size."
            )
        self._num_samples, self._global_batch = num_samples, global_batch
        self._rank, self._world_size = rank, world_size
        self._seed, self._shuffle = seed, shuffle
        self._drops = last_batch == "drop"
        self._groups = groups
        self.epoch, self.position = 0, 0

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever the next pass starts."""
        full, rest = divmod(self._num_samples, self._global_batch)
        return full + (rest > 0 and not self._drops)

    def uneven_shares(self) -> list[int] | None:
        """Samples of each rank in the last batch of an epoch; None where all have as many."""
        rest = 0 if self._drops else self._num_samples % self._global_batch
        if rest % self._world_size == 0:
            return None
        bounds = [share_bounds(rest, rank, self._world_size) for rank in range(self._world_size)]
        return [end - start for start, end in bounds]

    def __iter__(self) -> Iterator[Share]:
        order = self._order()
        for batch in range(self.position, len(self)):
            members = order[batch * self._global_batch : (batch + 1) * self._global_batch]
            start, end = share_bounds(len(members), self._rank, self._world_size)
            weight = self._world_size * (end - start) / len(members)
            yield Share(self.epoch, tuple(members[start:end].tolist()), weight)

    def _order(self) -> np.ndarray:
        if not self._shuffle:
            return np.arange(self._num_samples)
        order = epoch_order(self._num_samples, self._seed, self.epoch)
        return order if self._groups is None else grouped_order(order, self._groups, self._global_batch)

    def seek(self, epoch: int, batch: int) -> None:
        """Let the next pass start with batch `batch` of epoch `epoch`."""
        if not 0 <= batch <= len(self):
            raise ValueError(f"a position must lie within the {len(self)} batches of an epoch, got {batch}")
        self.epoch, self.position = epoch, batch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of another epoch; a position within the same epoch stays. Lightning calls this."""
        if epoch != self.epoch:
            self.seek(epoch, 0)
