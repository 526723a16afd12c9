"""Before anything is built: do the ranks reach each other, see one storage with room, and agree on the time?"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainer.files import StorageError, describe_space, write_atomic
from trainer.folders import AttemptFolders
from trainer.place import Place

logger = logging.getLogger(__name__)

REACH_S = 15.0
CLOCK_S = 30.0
STATES = 4
"""Weights, two moments of an optimizer, gradients of a compiled step: a checkpoint is rarely larger."""


class UnreachableError(RuntimeError):
    """Ranks that can't exchange anything with the others."""


@dataclass(frozen=True)
class RankFact:
    """Where a rank runs. time: seconds since 1970 by its clock, right after a barrier."""

    rank: int
    host: str
    pid: int
    time: float


def check(folders: AttemptFolders, place: Place, fence: str, patience_s: float) -> None:
    """Exchange with all ranks, write to the storage and read it, compare clocks. Entered by every rank.

    Takes at most 20 s from when all have come; they have `patience_s` for it, for imports may take one host long.
    Leaves `ranks.json` in the attempt's folder, so that a rank that falls silent later has a host and a process id.
    Raises: UnreachableError naming the ranks that did not come; StorageError on all ranks, naming those that can't
    write, or see another storage than rank 0.
    """
    group = None
    if dist.is_initialized() and place.world_size > 1:
        _arrive(place, patience_s)
        group = _reach(place)
    facts = _gather(RankFact(place.rank, socket.gethostname(), os.getpid(), time.time()), group)
    if place.rank == 0:
        _try_write(folders, "ranks.json", json.dumps([asdict(fact) for fact in facts]))
        _try_write(folders, _TOKEN, fence)
    _gather(None, group)  # behind rank 0's writing
    problems = [problem for problem in _gather(_storage_problem(folders, place.rank, fence), group) if problem]
    if group is not None:
        dist.destroy_process_group(group)
    if problems:
        raise StorageError(f"every rank must see and write the job's storage: {'; '.join(problems)}.")
    if place.rank == 0:
        _compare_clocks(facts)


def require_room(network: nn.Module, folders: AttemptFolders) -> None:
    """Raises: StorageError where not even two checkpoints of `network` would fit."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    needed = 2 * STATES * weights
    folders.root.mkdir(parents=True, exist_ok=True)
    stats = os.statvfs(folders.root)
    if stats.f_bavail * stats.f_frsize < needed:
        raise StorageError(
            f"the job's storage must have room for two checkpoints, about {needed / 2**20:.1f} MiB, but {folders.root} "
            f"has {describe_space(folders.root)}."
        )


_TOKEN = "preflight"


def _arrive(place: Place, patience_s: float) -> None:
    """Wait for all ranks at the store that brought them together."""
    store = dist.distributed_c10d._get_default_store()
    keys = {rank: f"syncnorm/arrived/{rank}" for rank in range(place.world_size)}
    store.set(keys[place.rank], socket.gethostname())
    try:
        store.wait(list(keys.values()), timedelta(seconds=patience_s))
    except RuntimeError as error:
        missing = ", ".join(str(rank) for rank, key in keys.items() if not store.check([key]))
        raise UnreachableError(
            f"all {place.world_size} ranks must start within {patience_s:g} s, but rank {missing} did not. Check its "
            "host's load and logs, or raise limits.collective_timeout_s."
        ) from error


def _reach(place: Place) -> dist.ProcessGroup:
    """A group whose members answer within REACH_S: a barrier that names who does not, and a sum that must be right."""
    timeout = timedelta(seconds=REACH_S)
    try:
        group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timeout)
        dist.monitored_barrier(group, timeout=timeout, wait_all_ranks=True)
        total = torch.tensor(place.rank)
        dist.all_reduce(total, group=group)
    except RuntimeError as error:
        raise UnreachableError(
            f"all {place.world_size} ranks must reach each other within {REACH_S:g} s, but rank {place.rank} on "
            f"{socket.gethostname()} found: {error}. Check the network between the hosts, and GLOO_SOCKET_IFNAME."
        ) from error
    if int(total) != sum(range(place.world_size)):
        raise UnreachableError(f"the ranks' numbers must add up to {sum(range(place.world_size))}, got {int(total)}")
    return group


def _gather(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def _try_write(folders: AttemptFolders, name: str, content: str) -> None:
    try:
        write_atomic(folders.root / name, content.encode())
    except OSError as error:
        logger.warning("%s could not be written: %s", name, error)


def _storage_problem(folders: AttemptFolders, rank: int, fence: str) -> str | None:
    """What keeps this rank from the storage that rank 0 wrote to."""
    who = f"rank {rank} on {socket.gethostname()}"
    try:
        if (folders.root / _TOKEN).read_text() != fence:
            return f"{who} sees another {folders.root}"
        write_atomic(folders.root / f"{_TOKEN}-{rank}", b"written")
        (folders.root / f"{_TOKEN}-{rank}").unlink()
    except OSError as error:
        return f"{who} ({describe_space(folders.root)}): {error}"
    return None


def _compare_clocks(facts: list[RankFact]) -> None:
    """Nothing is decided by a wall clock, but log lines and MLflow's points carry its time."""
    for fact in facts:
        if abs(fact.time - facts[0].time) > CLOCK_S:
            logger.warning(
                "the clock of rank %d on %s is %.0f s off rank 0's; times in logs and MLflow will not be in order. "
                "Switch on NTP there.",
                fact.rank,
                fact.host,
                fact.time - facts[0].time,
            )
