"""/v1/norms, /v1/models, /v1/datasets: names that a spec may use. /v1/cluster: the hosts and their capacity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from syncnorm.norm.kind import KINDS, Kind
from syncnorm.service.api.dependencies import Reader, provide
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.views.view import View
from syncnorm.service.jobs.job import JobState
from syncnorm.service.reconciler.reconciler import Reconciler
from syncnorm.trainer.contract.catalog.names import DATASETS, MODELS

router = APIRouter(prefix="/v1", tags=["catalog"], route_class=Route)


@dataclass(frozen=True)
class _State:
    reconciler: Reconciler
    count_jobs: Callable[[], dict[JobState, int]]


State = Annotated[
    _State,
    Depends(provide(lambda components: _State(components.reconciler, components.store.jobs.count_by_state))),
]


class NormView(View):
    """A normalization kind."""

    name: str
    """What a spec names as `norm.kind`."""
    summary: str
    """What it does, in a phrase."""
    paper: str
    """Where it comes from."""
    batch_statistics: bool
    """Whether, in training, the output of one sample depends on the others in its batch."""
    running_statistics: bool
    """Whether it keeps running statistics for inference."""
    synchronizes: bool
    """Whether it exchanges statistics between workers."""
    foldable: bool
    """Whether it can be folded exactly into a neighbouring layer for inference."""
    sample_statistics: bool
    """Whether it takes statistics of each sample by itself, at inference too: then a picture by windows is answered
    otherwise than as a whole."""
    options: dict[str, dict[str, Any]]
    """What `norm.options` takes: default and meaning, by name."""


class NormPage(View):
    """All normalization kinds."""

    items: list[NormView]
    """The kinds."""
    next_cursor: str | None = None
    """Always null: all of them are on this page."""


class EntryView(View):
    """A built-in model or data set."""

    name: str
    """What a spec names as `model.name` or `data.name`."""
    summary: str
    """What it is, in a sentence."""
    init_args: dict[str, Any]
    """JSON schema of the arguments that `init_args` takes."""


class EntryPage(View):
    """All built-in models or data sets."""

    items: list[EntryView]
    """The entries."""
    next_cursor: str | None = None
    """Always null: all of them are on this page."""


class NodeView(View):
    """A host of the Ray cluster."""

    node_id: str
    """Ray's id of the host."""
    cpus: float
    """CPU cores in all."""
    gpus: float
    """GPUs in all."""
    free_cpus: float
    """CPU cores that no job holds."""
    free_gpus: float
    """GPUs that no job holds."""
    address: str | None
    """Address in the cluster's network; null if Ray does not say."""


class ClusterView(View):
    """The cluster as the service last saw it."""

    reachable: bool
    """Whether Ray answers now."""
    session: str | None
    """Identity of the Ray cluster, a new one after each restart; null while it can't be reached."""
    nodes: list[NodeView]
    """The hosts; empty while Ray can't be reached."""
    jobs: dict[JobState, int]
    """How many jobs are in each state."""


@router.get("/norms")
def norms(_: Reader) -> NormPage:
    """The normalization kinds that a spec may name, with their traits and options."""
    return NormPage(items=[_norm(kind) for kind in KINDS.values()])


@router.get("/models")
def models(_: Reader) -> EntryPage:
    """The built-in models, with their arguments."""
    return EntryPage(items=[_entry(name, args) for name, args in MODELS.items()])


@router.get("/datasets")
def datasets(_: Reader) -> EntryPage:
    """The built-in data sets, with their arguments."""
    return EntryPage(items=[_entry(name, args) for name, args in DATASETS.items()])


@router.get("/cluster")
def cluster(state: State, _: Reader) -> ClusterView:
    """The hosts of the cluster with their capacity, and how many jobs are in each state."""
    return cluster_view(state.reconciler, state.count_jobs())


def cluster_view(reconciler: Reconciler, jobs: dict[JobState, int]) -> ClusterView:
    """jobs: how many are in each state."""
    view = reconciler.view
    nodes = [NodeView(**vars(node)) for node in view.nodes] if view else []
    session = view.session if view else None
    return ClusterView(reachable=view is not None, session=session, nodes=nodes, jobs=jobs)


def _norm(kind: Kind) -> NormView:
    options = {name: {"default": option.default, "summary": option.doc} for name, option in kind.options.items()}
    values = {name: getattr(kind, name) for name in NormView.model_fields if name != "options"}
    return NormView(**values, options=options)


def _entry(name: str, args: type[BaseModel]) -> EntryView:
    return EntryView(name=name, summary=(args.__doc__ or "").strip(), init_args=args.model_json_schema())
