"""What a spec comes to before anything starts: pure, pydantic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from norm.traits import KINDS
from trainer.norm_choice import NormChoice, choose_norm, statistics_group
from trainer.spec import JobSpec

Fits = Literal["now", "later", "never"]


@dataclass(frozen=True)
class NodeCapacity:
    """One host of the cluster: what it has and what is free."""

    node_id: str
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Batch(_Record):
    """Samples per step: of one worker, of those that share statistics, of all."""

    per_worker: int
    norm_group: int
    global_: int

    def as_json(self) -> dict[str, int]:
        return {"per_worker": self.per_worker, "norm_group": self.norm_group, "global": self.global_}


class Finding(_Record):
    """Something about the plan that its owner should know."""

    code: str
    path: str
    message: str
    fix: str
    severity: Literal["info", "warning", "error"]


class Inspection(_Record):
    """What building the network showed: one {path, from, to} for each layer exchanged, and the audit's findings."""

    conversion: list[dict[str, str]]
    findings: list[Finding]


class Plan(_Record):
    """`conversion` is filled where the model was built and looked at (dry_run, and at the start of an attempt)."""

    spec: JobSpec
    world_size: int
    batch: Batch
    resources: dict[str, float]
    fits: Fits | None
    conversion: list[dict[str, str]] | None
    findings: list[Finding]
    norm: NormChoice

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json") | {"batch": self.batch.as_json()}


def plan(spec: JobSpec, nodes: Sequence[NodeCapacity] | None, inspection: Inspection | None = None) -> Plan:
    """The plan of `spec` on a cluster of `nodes`; None while the cluster can't be asked.

    inspection: what trainer.inspection says, where somebody who knows torch was asked.
    """
    res = spec.resources
    choice = choose_norm(spec)
    return Plan(
        spec=spec,
        world_size=res.workers,
        batch=batch_sizes(spec, choice.kind),
        resources={
            "workers": res.workers,
            "cpus": float(res.workers * res.cpus_per_worker),
            "gpus": float(res.workers * res.gpus_per_worker),
        },
        fits=None if nodes is None else fits(spec, nodes),
        conversion=inspection.conversion if inspection else None,
        findings=[*findings(spec, choice.kind), *(inspection.findings if inspection else [])],
        norm=choice,
    )


def batch_sizes(spec: JobSpec, kind: str) -> Batch:
    per_worker, workers = spec.data.batch_size, spec.resources.workers
    return Batch(
        per_worker=per_worker,
        norm_group=per_worker * statistics_group(spec, kind),
        global_=per_worker * workers,
    )


def fits(spec: JobSpec, nodes: Sequence[NodeCapacity]) -> Fits:
    """Whether the gang, of min_workers at least, fits free slots now, the whole cluster later, or never."""
    least = spec.resources.min_workers or spec.resources.workers
    if _workers_that_fit(spec, [(node.free_cpus, node.free_gpus) for node in nodes]) >= least:
        return "now"
    return "later" if largest_gang(spec, nodes) >= least else "never"


def largest_gang(spec: JobSpec, nodes: Sequence[NodeCapacity]) -> int:
    """How many workers of this job the empty cluster could hold."""
    return _workers_that_fit(spec, [(node.cpus, node.gpus) for node in nodes])


def _workers_that_fit(spec: JobSpec, hosts: Sequence[tuple[float, float]]) -> int:
    cpus, gpus = spec.resources.cpus_per_worker, spec.resources.gpus_per_worker
    return sum(int(min(host[0] // cpus, host[1] // gpus if gpus else host[0] // cpus)) for host in hosts)


def findings(spec: JobSpec, kind: str) -> list[Finding]:
    """What can be said from the spec alone; the audit of the built model adds the rest."""
    found: list[Finding] = []
    traits, res = KINDS[kind], spec.resources

    def add(code: str, path: str, severity: Literal["info", "warning", "error"], message: str, fix: str) -> None:
        found.append(Finding(code=code, path=path, message=message, fix=fix, severity=severity))

    if traits.synchronizes and res.workers == 1:
        add(
            "sync_on_one_worker",
            "norm.kind",
            "info",
            f"{kind} has nobody to synchronize with on 1 worker.",
            "Use batch.",
        )
    if traits.batch_statistics and not traits.synchronizes and spec.data.batch_size < 8 and res.workers > 1:
        add(
            "few_samples_per_statistic",
            "data.batch_size",
            "warning",
            f"{kind} takes its statistics from {spec.data.batch_size} samples a worker.",
            "Use sync_batch, group or a larger batch.",
        )
    if traits.batch_statistics and spec.train.accumulate > 1:
        add(
            "accumulation_splits_statistics",
            "train.accumulate",
            "warning",
            f"Statistics are per micro-batch: {spec.train.accumulate} micro-batches do not equal one large batch.",
            "Use more workers with sync_batch, or a kind without batch statistics.",
        )
    if (
        traits.batch_statistics
        and res.min_workers is not None
        and not (traits.synchronizes and spec.norm.group == "world")
    ):
        add(
            "elastic_statistics",
            "resources.min_workers",
            "warning",
            f"With fewer workers {kind} takes its statistics from more samples: the global batch stays "
            f"{spec.data.batch_size * res.workers}.",
            "Use sync_batch over the world, or a kind without batch statistics.",
        )
    if isinstance(spec.norm.group, int) and res.workers % spec.norm.group:
        add(
            "uneven_norm_groups",
            "norm.group",
            "error",
            f"{res.workers} workers can't be split into groups of {spec.norm.group}.",
            "Use a divisor of resources.workers.",
        )
    if spec.optimizer.weight_decay and spec.optimizer.decay_norm:
        add(
            "norm_under_weight_decay",
            "optimizer.decay_norm",
            "info",
            "Weight decay also pulls on the weights of normalization layers.",
            "Set decay_norm: false.",
        )
    return found
