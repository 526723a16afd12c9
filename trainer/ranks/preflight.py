"""Checks before anything is built: ranks reach each other, share one storage with free space, and agree on the time."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from syncnorm.trainer.contract.protocol import RankPlacement
from syncnorm.trainer.errors import PeerFailedError, StorageAwayError, StorageError, UnreachableError
from syncnorm.trainer.ranks.exchange import gather
from syncnorm.trainer.ranks.rank_context import RankContext
from syncnorm.trainer.storage.atomic_files import describe_space, write_atomic
from syncnorm.trainer.storage.attempt_layout import AttemptFolders

logger = logging.getLogger(__name__)
T = TypeVar("T")
_set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # public from torch 2.14 on

REACH_S = 15.0
CLOCK_S = 30.0
STATES = 4
"""Weights, two moments of an optimizer, gradients of a compiled step: a checkpoint is rarely larger."""


@dataclass(frozen=True)
class RankFact:
    """time: seconds since 1970 by the rank's clock, right after a barrier."""

    where: RankPlacement
    time: float


def check(folders: AttemptFolders, context: RankContext, fence: str, patience_s: float) -> list[RankPlacement]:
    """Exchange with all ranks, write to the storage and read it, compare clocks. Entered by every rank; returns where
    all run.

    Takes at most 20 s after all have come, or as long as a storage under a URL is waited for. Ranks have `patience_s`
    to come, because imports may take one host long. Leaves `ranks.json` in the attempt's folder, so that a rank that
    falls silent later has a host and a process id.

    Raises: UnreachableError naming the ranks that did not come; StorageError on all ranks, naming those that can't
    write, or see another storage than rank 0.
    """
    group = None
    if dist.is_initialized() and context.world_size > 1:
        _wait_for_all(context, _START, patience_s)
        group = _reach(context, folders.mirror.longest_s)
    here = RankPlacement(
        rank=context.rank, host=socket.gethostname(), pid=os.getpid(), node_id=context.node_id, gpu=context.gpu
    )
    facts = _gather(RankFact(here, time.time()), group)
    problems = _gather(_publish_ranks(folders, facts, fence) if context.rank == 0 else None, group)
    if not any(problems):
        problems = _gather(_storage_problem(folders, context.rank, fence), group)
    if group is not None:
        dist.destroy_process_group(group)
    if found := [problem for problem in problems if problem]:
        kind = StorageAwayError if all(problem.outage for problem in found) else StorageError
        texts = "; ".join(problem.text for problem in found)
        raise kind(f"every rank must see and write the job's storage: {texts}")
    if context.rank == 0:
        _compare_clocks(facts)
    return [fact.where for fact in facts]


def ready(
    context: RankContext, patience_s: float, timeout_s: float, groups: Sequence[dist.ProcessGroup | None] = (None,)
) -> None:
    """Wait until every rank is done with what it does alone before training. From here on a collective of `groups`
    fails after `timeout_s`; None is the default group. Entered by every rank.

    Raises: PeerFailedError as soon as a rank has failed; UnreachableError naming the ranks that did not come.
    """
    if dist.is_initialized() and context.world_size > 1:
        _wait_for_all(context, _READY, patience_s)
        for group in groups:
            _set_timeout(timedelta(seconds=timeout_s), group)


def tell_failure(context: RankContext) -> None:
    """Whoever waits for this rank before training ends at once, instead of after its patience."""
    if dist.is_initialized() and context.world_size > 1:
        store = dist.distributed_c10d._get_default_store()
        with suppress(RuntimeError):  # rank 0, which keeps the store, may be gone
            for step in (_START, _BUILT, _READY):
                store.set(_key(step, context.rank), _FAILED)


def begin(context: RankContext, patience_s: float) -> None:
    """Wait for all ranks again, now that each has its data and its model. Entered by every rank.

    Ranks import torch and user code at different speeds, which is what `patience_s` is for. Raises: UnreachableError
    naming the ranks that did not come.
    """
    if dist.is_initialized() and context.world_size > 1:
        _wait_for_all(context, _BUILT, patience_s)


def require_disk_space(network: nn.Module, folders: AttemptFolders) -> None:
    """Check the free space. Raises: StorageError if two checkpoints of `network` would not fit."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    needed, what = 2 * STATES * weights, folders.mirror.workplace
    folders.root.mkdir(parents=True, exist_ok=True)
    stats = os.statvfs(folders.root)
    if stats.f_bavail * stats.f_frsize < needed:
        raise StorageError(
            f"{what} must have space for two checkpoints, about {needed / 2**20:.1f} MiB, but {folders.root} has "
            f"{describe_space(folders.root)}."
        )


_TOKEN = "preflight"
_START, _BUILT, _READY = "start", "have data and model", "be ready to train"
_FAILED = "!failed"


def _key(step: str, rank: int) -> str:
    return f"syncnorm/{step}/{rank}"


def _wait_for_all(context: RankContext, step: str, patience_s: float) -> None:
    """Wait for all ranks at the rendezvous store."""
    store = dist.distributed_c10d._get_default_store()
    keys = {rank: _key(step, rank) for rank in range(context.world_size)}
    store.set(keys[context.rank], socket.gethostname())
    try:
        store.wait(list(keys.values()), timedelta(seconds=patience_s))
    except RuntimeError as error:
        missing = ", ".join(str(rank) for rank, key in keys.items() if not store.check([key]))
        raise UnreachableError(
            f"all {context.world_size} ranks must {step} within {patience_s:g} s, but rank {missing} did not. "
            "Check its host's load and logs."
        ) from error
    if failed := [str(rank) for rank, key in keys.items() if store.get(key) == _FAILED.encode()]:
        raise PeerFailedError(f"all {context.world_size} ranks must {step}, but rank {', '.join(failed)} has failed.")


def _reach(context: RankContext, storage_s: float) -> dist.ProcessGroup:
    """Check a group: a barrier that names silent members within REACH_S, and a sum that must be right.

    storage_s: additional time for an answer of the storage.
    """
    timeout = timedelta(seconds=REACH_S)
    try:
        group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timeout + timedelta(seconds=storage_s))
        dist.monitored_barrier(group, timeout=timeout, wait_all_ranks=True)
        total = torch.tensor(context.rank)
        dist.all_reduce(total, group=group)
    except RuntimeError as error:
        raise UnreachableError(
            f"all {context.world_size} ranks must reach each other within {REACH_S:g} s, but rank {context.rank} on "
            f"{socket.gethostname()} found: {error}. Check the network between the hosts, and GLOO_SOCKET_IFNAME."
        ) from error
    if int(total) != sum(range(context.world_size)):
        raise UnreachableError(f"the ranks' numbers must add up to {sum(range(context.world_size))}, got {int(total)}")
    return group


def _gather(value: T, group: dist.ProcessGroup | None) -> list[T]:
    """group: None where this rank is alone."""
    return [value] if group is None else gather(value, group)


@dataclass(frozen=True)
class _Problem:
    text: str
    outage: bool = False


def _publish_ranks(folders: AttemptFolders, facts: list[RankFact], fence: str) -> _Problem | None:
    """Rank 0 records who is there, and a file that all ranks should find; returns the error that prevents it."""
    files = {folders.ranks: json.dumps([fact.where.model_dump() for fact in facts]), folders.root / _TOKEN: fence}
    try:
        for path, content in files.items():
            write_atomic(path, content.encode())
            folders.mirror.publish(path)
    except OSError as error:
        return _described(0, folders, error)
    return None


def _storage_problem(folders: AttemptFolders, rank: int, fence: str) -> _Problem | None:
    """The error that keeps this rank from the storage that rank 0 wrote to."""
    mirror, token, own = folders.mirror, folders.root / _TOKEN, folders.root / f"{_TOKEN}-{rank}"
    try:
        mirror.fetch(token)
        if not token.exists() or token.read_text() != fence:
            return _Problem(f"rank {rank} on {socket.gethostname()} sees another {mirror.name(folders.root)}.")
        write_atomic(own, b"written")
        mirror.publish(own)
        mirror.remove(own)
        own.unlink()
    except OSError as error:
        return _described(rank, folders, error)
    return None


def _described(rank: int, folders: AttemptFolders, error: OSError) -> _Problem:
    text = f"rank {rank} on {socket.gethostname()} ({folders.mirror.describe(folders.root)}): {error}"
    return _Problem(text, isinstance(error, StorageAwayError))


def _compare_clocks(facts: list[RankFact]) -> None:
    """Warn about clocks that differ. Nothing is decided by them, but log lines and MLflow's points carry their time."""
    for fact in facts:
        if abs(fact.time - facts[0].time) > CLOCK_S:
            logger.warning(
                "the clock of rank %d on %s is %.0f s off rank 0's; times in logs and MLflow will be out of order. "
                "Enable NTP on that host.",
                fact.where.rank,
                fact.where.host,
                fact.time - facts[0].time,
            )
