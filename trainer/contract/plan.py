"""The plan: what a spec comes to before anything starts. Pure, pydantic only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from syncnorm.trainer.contract.bounds import Message as Text
from syncnorm.trainer.contract.initial_weights import LoadedWeights, WeightAccess
from syncnorm.trainer.contract.norm_choice import NormChoice, choose_norm, statistics_group
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.contract.spec_findings import Finding, spec_findings

Fits = Literal["now", "later", "never"]


@dataclass(frozen=True)
class NodeCapacity:
    """One host of the cluster with its total and free capacity."""

    node_id: str
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float
    address: str | None = None
    """In the cluster's network."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Batch(_Record):
    """Samples per step; null where only your loader knows them, and the plan was made without it. With
    train.accumulate, of a micro-batch; with train.accumulate_statistics: exact, norm_group and global are of all
    micro-batches together."""

    per_worker: int | None
    """Samples of one worker."""
    norm_group: int | None
    """Samples of the workers that share statistics."""
    global_: Annotated[int | None, Field(serialization_alias="global")]
    """Samples of all workers."""


class Guarantee(_Record):
    """Whether something holds for this job, and why."""

    holds: Literal["yes", "partly", "no"]
    """Whether it does."""
    why: Text
    """The reason, in a sentence."""


class Guarantees(_Record):
    """What holds for this job."""

    equals_one_device: Guarantee
    """Whether a step of all workers is the step that one device would take with the whole batch."""
    resumes_exactly: Guarantee
    """Whether a job that was interrupted ends with the same weights, bit for bit, as one that was not."""
    exported: Guarantee
    """Whether the trained model is exported and compared with the network that was trained."""


def guarantee_rows(stored: object) -> list[tuple[str, str, str]]:
    """(name, yes, partly or no, why) of each of the Guarantees in plain values; none of what another version stored in
    another form."""
    try:
        found = Guarantees.model_validate(stored)
    except ValidationError:
        return []
    return [(name, one.holds, one.why) for name, one in found]


class FrozenParameters(_Record):
    """What one rule of model.freeze covers."""

    match: str
    """Its glob."""
    parameters: int
    """How many numbers are frozen."""
    unfreeze_at: str | None
    """When they are unfrozen, such as `1 epoch`; null: never."""


class ParameterGroup(_Record):
    """Parameters that are optimized alike."""

    match: str | None
    """The glob of optimizer.groups that covers them; null: none does."""
    layer: int | None = None
    """Their layer, counted from 0 at the input, with optimizer.layer_decay; null without."""
    parameters: int
    """How many numbers they are."""
    lr: float | None
    """Their learning rate, before warmup and schedule scale it; null where the optimizer has none."""
    weight_decay: float
    """Their weight decay."""


class Parameters(_Record):
    """The network's parameters, counted as numbers."""

    total: int
    """All of them."""
    trained: int
    """Those that are trained from the first step on."""
    frozen: list[FrozenParameters]
    """For each rule of model.freeze, what it covers."""
    groups: list[ParameterGroup]
    """The groups of all optimizers."""


class Inspection(_Record):
    """What building the network showed: one {path, from, to} for each converted layer, and the audit's findings."""

    conversion: list[dict[str, str]]
    findings: list[Finding]
    batch_size: int | None = None
    """Samples per worker of the user's own loader, where the spec leaves them to it."""
    guarantees: Guarantees | None = None
    """None where the network could not be built."""
    parameters: Parameters | None = None
    """The same."""
    init_from: LoadedWeights | None = None
    """None without model.init_from, and where its weights could not be read."""


class InspectionRequest(_Record):
    """What the process that builds the network is asked. weights: what model.init_from may read; null: it is not looked
    at."""

    spec: dict[str, Any]
    weights: WeightAccess | None = None
    mlflow_uri: str = ""


class Plan(_Record):
    """What a spec comes to before anything starts."""

    spec: JobSpec
    """The spec with all defaults."""
    world_size: int
    """Workers."""
    batch: Batch
    """Samples of a worker, of a norm group and of all workers."""
    resources: dict[str, float]
    """workers, cpus and gpus, in all."""
    fits: Fits | None
    """Whether it fits into the free capacity now, into the whole cluster later, or never; null while the cluster can't
    be reached."""
    conversion: list[dict[str, str]] | None
    """One {path, from, to} for each layer that is replaced; null unless `inspected`."""
    findings: list[Finding]
    """What you should know before you submit."""
    norm: NormChoice
    """Which normalization the job gets, and why."""
    guarantees: Guarantees | None = None
    """What holds for this job, and why; null unless `inspected`."""
    parameters: Parameters | None = None
    """What is frozen, and the groups of the optimizer; null unless `inspected`."""
    init_from: LoadedWeights | None = None
    """What model.init_from loads, drops and leaves, by name and shape; null without it, unless `inspected`, and where
    the weights can't be read on the service's host."""
    inspected: bool
    """Whether the model was built and audited, so that `conversion` and the findings that need torch are there. A dry
    run does so where the service's host has torch; every attempt does when it starts."""

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


def plan(spec: JobSpec, nodes: Sequence[NodeCapacity] | None, inspection: Inspection | None = None) -> Plan:
    """The plan of `spec` on a cluster of `nodes`; None while the cluster is unreachable.

    inspection: from syncnorm.trainer.worker.model_inspection, if a process with torch is available.
    """
    res = spec.resources
    choice = choose_norm(spec)
    return Plan(
        spec=spec,
        world_size=res.workers,
        batch=batch_sizes(spec, choice.kind, inspection.batch_size if inspection else None),
        resources={
            "workers": res.workers,
            "cpus": float(res.workers * res.cpus_per_worker),
            "gpus": float(res.workers * res.gpus_per_worker),
        },
        fits=None if nodes is None else fits(spec, nodes),
        conversion=inspection.conversion if inspection else None,
        findings=_together(findings(spec, choice.kind, nodes), inspection.findings if inspection else []),
        norm=choice,
        guarantees=inspection.guarantees if inspection else None,
        parameters=inspection.parameters if inspection else None,
        init_from=inspection.init_from if inspection else None,
        inspected=inspection is not None,
    )


def _together(of_spec: list[Finding], of_network: list[Finding]) -> list[Finding]:
    """All findings, except guesses from the spec that the audit of the network has replaced."""
    said = {finding.code for finding in of_network}
    return [*(finding for finding in of_spec if _AUDITED.get(finding.code) not in said), *of_network]


_AUDITED = {
    "one_value_per_channel": "one_value_per_channel",
    "uneven_last_batch": "uneven_last_batch",
    "few_samples_per_statistic": "statistics_of_one_worker",
    "sync_on_one_worker": "sync_on_one_worker",
    "accumulation_splits_statistics": "accumulation_splits_statistics",
}
"""Codes of findings on a spec, and the audit's codes for the same."""


def batch_sizes(spec: JobSpec, kind: str, of_loader: int | None = None) -> Batch:
    """of_loader: samples per worker of the user's own loader."""
    per_worker, workers = spec.data.batch_size or of_loader, spec.resources.workers
    if per_worker is None:
        return Batch(per_worker=None, norm_group=None, global_=None)
    joined = spec.train.joined_micro_batches
    return Batch(
        per_worker=per_worker,
        norm_group=per_worker * joined * statistics_group(spec, kind),
        global_=per_worker * joined * workers,
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
    """Findings from the spec and the cluster alone; the audit of the built model adds the rest.

    A submit is refused for those of severity `error`. nodes: None while the cluster is unreachable.
    """
    return [
        *_about_cluster(spec, nodes),
        *spec_findings(spec, kind),
    ]


def _about_cluster(spec: JobSpec, nodes: Sequence[NodeCapacity] | None) -> Iterator[Finding]:
    if nodes is None or fits(spec, nodes) != "never":
        return
    res = spec.resources
    each = f"{res.cpus_per_worker} CPU" + (f" and {res.gpus_per_worker} GPU" if res.gpus_per_worker else "")
    capacity = (
        f"the whole cluster has capacity for {largest_gang(spec, nodes)} workers of {each} each, got {res.workers}."
    )
    yield Finding(
        code="never_fits",
        path="resources.workers",
        message=f"{'The job waits for more hosts: ' if res.wait_for_hosts else ''}{capacity}",
        fix="Ask for fewer or smaller workers, or add hosts; with resources.wait_for_hosts: true the job is queued "
        "until they are there.",
        severity="warning" if res.wait_for_hosts else "error",
    )
