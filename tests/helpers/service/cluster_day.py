"""An ordinary day on a cluster: jobs that train, wait, have failed and have succeeded, in a World."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from syncnorm.service.jobs.job import Attempt, Job, JobState, NewEvent
from syncnorm.service.store.values import NewJob
from syncnorm.trainer.contract.protocol import CheckpointFact, LogLine
from tests.helpers.service.world import World

NAMES = ("retina-unet", "lung-nodules", "coco-r50-sync", "brain-tissue-3d", "cells-mask-rcnn", "digits-sync-batch")
_AT_ONCE = 1000


def fill(world: World, jobs: int) -> dict[str, list[str]]:
    """Ids of the jobs, by state: three that run, four that failed, two that succeeded, and the rest in the queue."""
    world.cluster.nodes = (("gpu-1", 16.0, 4.0), ("gpu-2", 16.0, 4.0))
    reasons = ("user_error", "out_of_memory", "non_finite", "export_mismatch")
    over = [_submit(world, name, {"outcome": reason}) for name, reason in zip(NAMES, reasons, strict=False)]
    over += [_submit(world, name, {}) for name in NAMES[4:]]
    while not all(world.job(job.id).is_terminal for job in over) or world.store.attempts.unreleased():
        world.step()
    running = [_submit(world, name, {"works": "9999"}, gpus=2) for name in NAMES[:3]]
    for _ in range(3):
        world.step()
    for attempt in world.store.attempts.unreleased():
        report(world, attempt, 1 + len(attempt.id) % 3)
    world.clock.advance(20)
    queued = queue(world, jobs - len(over) - len(running))
    world.reconciler.tick()
    found: dict[str, list[str]] = {"running": [job.id for job in running], "queued": queued}
    for job in over:
        found.setdefault(world.job(job.id).state.value, []).append(job.id)
    return found


def queue(world: World, count: int) -> list[str]:
    """Ids of jobs that ask for every GPU, so that they wait."""
    first = _submit(world, "imagenet-r50-all", {"team": "vision"}, workers=8, gpus=1)
    more = [
        replace(
            first,
            id=f"{first.id[:-7]}{index:07d}",
            name=f"{NAMES[index % len(NAMES)]}-{index}",
            owner=("ann", "bob", "eve")[index % 3],
            priority=index % 3,
            queued_at=first.queued_at + timedelta(milliseconds=index),
        )
        for index in range(1, count)
    ]
    for start in range(0, len(more), _AT_ONCE):
        new = [NewJob(job, NewEvent("queued", "Submitted.")) for job in more[start : start + _AT_ONCE]]
        world.store.jobs.add_all(new)
    return [first.id, *(job.id for job in more)]


def finish_many(world: World, like: Job, count: int, state: JobState, first: int = 0) -> None:
    """Jobs that ended before one that is like them. first: number of the first of them."""
    ended = like.finished_at or world.clock()
    jobs = [
        replace(
            like, id=f"job_{state.value}{index:017d}", state=state, finished_at=ended - timedelta(seconds=index + 1)
        )
        for index in range(first, first + count)
    ]
    for start in range(0, count, _AT_ONCE):
        new = [NewJob(job, NewEvent("queued", "Submitted.")) for job in jobs[start : start + _AT_ONCE]]
        world.store.jobs.add_all(new)


def report(world: World, attempt: Attempt, share: int) -> None:
    """What workers send while they train: progress, log lines, a checkpoint."""
    reports, fence = world.store.reports, attempt.fence
    metrics = {"train/loss": 0.8123, "val/loss": 0.9034, "val/accuracy": 0.7421, "lr": 0.05}
    metrics |= {"norm/sync_share": 0.19, "norm/slowest_rank": 1.0, "norm/waiting_share": 0.12}
    progress = {"epoch": share, "epochs": 10, "step": 120 * share, "steps": 1200, "percent": 10.0 * share}
    reports.progress(attempt.id, fence, 600, 120 * share, progress | {"eta_s": 725.0 * share, "metrics": metrics})
    reports.add_lines(attempt.id, fence, [log_line(world, number) for number in range(1, 41)])
    fact = CheckpointFact(
        fence=fence,
        path=f"jobs/{attempt.job_id}/attempts/1/checkpoints/120",
        step=120,
        epoch=1,
        digest="a" * 64,
        size_bytes=94_371_840,
    )
    reports.add_checkpoint(attempt.id, fact)


def log_line(world: World, number: int, text: str | None = None, level: str = "INFO") -> LogLine:
    said = text or f"epoch 1  step {number * 3}/1200  train/loss {1.9 - number * 0.02:.4f}  18.4 samples/s"
    return LogLine(rank=number % 2, seq=number, at=world.clock().isoformat(), level=level, text=said)  # type: ignore[arg-type]


def _submit(world: World, name: str, labels: dict[str, str], *, workers: int = 2, gpus: int = 0) -> Job:
    resources: dict[str, Any] = {"workers": workers, "gpus_per_worker": gpus}
    return world.submit(name=name, project="demo", labels=labels, resources=resources)
