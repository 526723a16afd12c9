"""What a spec comes to before anything starts: pure, pydantic only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from syncnorm.norm.kind import KINDS, smallest_share
from syncnorm.trainer.contract.norm_choice import NormChoice, choose_norm, statistics_group
from syncnorm.trainer.contract.spatial_maps import smallest_map, train_samples
from syncnorm.trainer.contract.spec import JobSpec, TrainSpec
from syncnorm.trainer.contract.text import counted

Fits = Literal["now", "later", "never"]


@dataclass(frozen=True)
class NodeCapacity:
    """One host of the cluster: what it has and what is free."""

    node_id: str
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float
    address: str | None = None
    """In the cluster's network."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Batch(_Record):
    """Samples per step: of one worker, of those that share statistics, of all."""

    per_worker: int
    norm_group: int
    global_: Annotated[int, Field(serialization_alias="global")]


class Finding(_Record):
    """Something about the plan that its owner should know."""

    code: str
    path: str
    message: str
    fix: str
    severity: Literal["info", "warning", "error"]


def alike(findings: Sequence[Finding]) -> list[tuple[Finding, list[str]]]:
    """Findings that say the same of several places, once each, with the places; in the order of the first."""
    places: dict[Finding, list[str]] = {}
    for finding in findings:
        places.setdefault(finding.model_copy(update={"path": ""}), []).append(finding.path)
    return list(places.items())


class Inspection(_Record):
    """What building the network showed: one {path, from, to} for each layer exchanged, and the audit's findings."""

    conversion: list[dict[str, str]]
    findings: list[Finding]


class Plan(_Record):
    """inspected: whether the model was built and looked at, so that `conversion` is filled and the findings that need
    torch are in: for dry_run where this host has torch, and at the start of each attempt."""

    spec: JobSpec
    world_size: int
    batch: Batch
    resources: dict[str, float]
    fits: Fits | None
    conversion: list[dict[str, str]] | None
    findings: list[Finding]
    norm: NormChoice
    inspected: bool

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


def plan(spec: JobSpec, nodes: Sequence[NodeCapacity] | None, inspection: Inspection | None = None) -> Plan:
    """The plan of `spec` on a cluster of `nodes`; None while the cluster can't be asked.

    inspection: what syncnorm.trainer.worker.model_inspection says, where somebody who knows torch was asked.
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
        findings=_together(findings(spec, choice.kind, nodes), inspection.findings if inspection else []),
        norm=choice,
        inspected=inspection is not None,
    )


def _together(of_spec: list[Finding], of_network: list[Finding]) -> list[Finding]:
    """All of them, but for what the spec lets guess and the audit has said of each layer."""
    said = {finding.code for finding in of_network}
    return [*(finding for finding in of_spec if _AUDITED.get(finding.code) not in said), *of_network]


_AUDITED = {
    "one_value_per_channel": "one_value_per_channel",
    "uneven_last_batch": "uneven_last_batch",
    "few_samples_per_statistic": "statistics_of_one_worker",
    "sync_on_one_worker": "sync_on_one_worker",
}
"""Codes of findings on a spec, and what the audit of the network calls the same."""


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


def findings(spec: JobSpec, kind: str, nodes: Sequence[NodeCapacity] | None = None) -> list[Finding]:
    """What can be said from the spec and the cluster alone; the audit of the built model adds the rest.

    A submit is refused for those of severity `error`. nodes: None while the cluster can't be asked.
    """
    return [
        *_about_cluster(spec, nodes),
        *_about_statistics(spec, kind),
        *_about_single_values(spec, kind),
        *_about_fields(spec),
    ]


def _about_cluster(spec: JobSpec, nodes: Sequence[NodeCapacity] | None) -> Iterator[Finding]:
    if nodes is None or fits(spec, nodes) != "never":
        return
    res = spec.resources
    each = f"{res.cpus_per_worker} CPU" + (f" and {res.gpus_per_worker} GPU" if res.gpus_per_worker else "")
    room = f"the whole cluster has room for {largest_gang(spec, nodes)} workers of {each} each, got {res.workers}."
    yield Finding(
        code="never_fits",
        path="resources.workers",
        message=f"{'The job waits for more hosts: ' if res.wait_for_hosts else ''}{room}",
        fix="Ask for fewer or smaller workers, or add hosts; with resources.wait_for_hosts: true the job is queued "
        "until they are there.",
        severity="warning" if res.wait_for_hosts else "error",
    )


def _about_single_values(spec: JobSpec, kind: str) -> Iterator[Finding]:
    """Batches that leave one value per channel, whose variance is undefined: training would fail at that step.

    Only where the spec tells how many samples there are and how small the maps get; an attempt looks at the others
    before it trains.
    """
    positions = smallest_map(spec)
    if not KINDS[kind].batch_statistics or positions != 1 or spec.norm.overrides:
        return
    workers, group = spec.resources.workers, statistics_group(spec, kind)
    if spec.data.batch_size * group == 1:
        yield Finding(
            code="one_value_per_channel",
            path="data.batch_size",
            message=f"{kind} has 1 value per channel, whose variance is undefined: training would fail.",
            fix="Use a larger data.batch_size, sync_batch over more workers, or a kind without batch statistics.",
            severity="error",
        )
    samples = train_samples(spec)
    full = spec.data.batch_size * workers
    if samples is None or spec.data.last_batch == "drop" or not reaches_last_batch(spec.train, -(-samples // full)):
        return
    rest = samples % full
    if any(rest and smallest_share(rest, size, min(group, size)) == 1 for size in world_sizes(spec)):
        yield last_batch_of_one(rest, full, "data.last_batch")


def last_batch_of_one(rest: int, full: int, path: str) -> Finding:
    """The same words before a submit and at the start of an attempt."""
    return Finding(
        code="uneven_last_batch",
        path=path,
        message=f"The last batch of an epoch has {rest} of {full} samples, so a statistic is taken from 1 value per "
        "channel, whose variance is undefined: training would fail there.",
        fix=LAST_BATCH_FIX,
        severity="error",
    )


LAST_BATCH_FIX = "Set data.last_batch: drop, or choose a data.batch_size that divides the training data."


def reaches_last_batch(train: TrainSpec, batches: int) -> bool:
    """Whether training comes to the end of an epoch of so many batches."""
    return train.steps is None or train.steps * train.accumulate >= batches


def world_sizes(spec: JobSpec) -> range:
    """How many workers an attempt may have."""
    res = spec.resources
    step = spec.norm.group if isinstance(spec.norm.group, int) else 1
    return range(res.min_workers or res.workers, res.workers + 1, step)


def _about_statistics(spec: JobSpec, kind: str) -> Iterator[Finding]:
    """Whose samples the batch statistics are taken from."""
    traits, workers = KINDS[kind], spec.resources.workers
    if traits.synchronizes and workers == 1:
        yield Finding(
            code="sync_on_one_worker",
            path="norm.kind",
            message=f"{kind} has nobody to synchronize with on 1 worker.",
            fix="Use batch.",
            severity="info",
        )
    if traits.batch_statistics and not traits.synchronizes and spec.data.batch_size < 8 and workers > 1:
        yield Finding(
            code="few_samples_per_statistic",
            path="data.batch_size",
            message=f"{kind} takes its statistics from {counted(spec.data.batch_size, 'sample')} a worker.",
            fix="Use sync_batch, group or a larger batch.",
            severity="warning",
        )
    if traits.batch_statistics and spec.train.accumulate > 1:
        yield Finding(
            code="accumulation_splits_statistics",
            path="train.accumulate",
            message=f"Statistics are per micro-batch: {spec.train.accumulate} micro-batches do not equal one large "
            "batch.",
            fix="Use more workers with sync_batch, or a kind without batch statistics.",
            severity="warning",
        )
    over_all = traits.synchronizes and spec.norm.group == "world"
    if traits.batch_statistics and spec.resources.min_workers is not None and not over_all:
        yield Finding(
            code="elastic_statistics",
            path="resources.min_workers",
            message=f"With fewer workers {kind} takes its statistics from more samples: the global batch stays "
            f"{spec.data.batch_size * workers}.",
            fix="Use sync_batch over the world, or a kind without batch statistics.",
            severity="warning",
        )


def _about_fields(spec: JobSpec) -> Iterator[Finding]:
    """Fields that do not go together, or do what few expect."""
    workers, group = spec.resources.workers, spec.norm.group
    if isinstance(group, int) and workers % group:
        yield Finding(
            code="uneven_norm_groups",
            path="norm.group",
            message=f"{workers} workers can't be split into groups of {group}.",
            fix="Use a divisor of resources.workers.",
            severity="error",
        )
    other = spec.data.init_args.get("batch_size") if spec.data.class_path is not None else None
    if other not in (None, spec.data.batch_size):
        yield Finding(
            code="batch_size_twice",
            path="data.init_args.batch_size",
            message=f"data.batch_size says how many samples a worker takes at a time, {spec.data.batch_size}; the "
            f"{other!r} in data.init_args has no effect on that.",
            fix="Set both to the same number, or leave the one in init_args out.",
            severity="warning",
        )
    if spec.optimizer.weight_decay and spec.optimizer.decay_norm:
        yield Finding(
            code="norm_under_weight_decay",
            path="optimizer.decay_norm",
            message="Weight decay also pulls on the weights of normalization layers.",
            fix="Set decay_norm: false.",
            severity="info",
        )
