"""/v1/norms, /v1/models, /v1/datasets: what specs may name. /v1/cluster: what there is to run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from syncnorm.norm.kind import KINDS, Kind
from syncnorm.service.api.dependencies import Reader, provide
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.views import View
from syncnorm.service.jobs.job import JobState
from syncnorm.service.reconciler.reconciler import Reconciler
from syncnorm.trainer.contract.catalog import DATASETS, MODELS

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
    name: str
    summary: str
    paper: str
    batch_statistics: bool
    running_statistics: bool
    synchronizes: bool
    foldable: bool
    options: dict[str, dict[str, Any]]


class NormPage(View):
    items: list[NormView]
    next_cursor: str | None = None


class EntryView(View):
    """init_args: JSON schema of what `init_args` takes."""

    name: str
    summary: str
    init_args: dict[str, Any]


class EntryPage(View):
    items: list[EntryView]
    next_cursor: str | None = None


class NodeView(View):
    node_id: str
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float
    address: str | None


class ClusterView(View):
    """session: identity of the Ray cluster; null while it can't be reached."""

    reachable: bool
    session: str | None
    nodes: list[NodeView]
    jobs: dict[JobState, int]


@router.get("/norms")
def norms(_: Reader) -> NormPage:
    return NormPage(items=[_norm(kind) for kind in KINDS.values()])


@router.get("/models")
def models(_: Reader) -> EntryPage:
    return EntryPage(items=[_entry(name, args) for name, args in MODELS.items()])


@router.get("/datasets")
def datasets(_: Reader) -> EntryPage:
    return EntryPage(items=[_entry(name, args) for name, args in DATASETS.items()])


@router.get("/cluster")
def cluster(state: State, _: Reader) -> ClusterView:
    view = state.reconciler.view
    nodes = [NodeView(**vars(node)) for node in view.nodes] if view else []
    session = view.session if view else None
    return ClusterView(reachable=view is not None, session=session, nodes=nodes, jobs=state.count_jobs())


def _norm(kind: Kind) -> NormView:
    options = {name: {"default": option.default, "summary": option.doc} for name, option in kind.options.items()}
    values = {name: getattr(kind, name) for name in NormView.model_fields if name != "options"}
    return NormView(**values, options=options)


def _entry(name: str, args: type[BaseModel]) -> EntryView:
    return EntryView(name=name, summary=(args.__doc__ or "").strip(), init_args=args.model_json_schema())
