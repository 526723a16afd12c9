"""Answers of Ray's dashboard (ray 2.60) with types. Pure: an unreadable entry is skipped and passed to `note`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from syncnorm.trainer.contract.plan import NodeCapacity

Note = Callable[[str, str], None]
"""Called with the name of an unreadable entry, and why."""
_Amount = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_Usage = tuple[_Amount, _Amount]
"""Used and total."""
_Text = Annotated[str, Field(min_length=1, max_length=512)]


class Version(BaseModel):
    session_name: Annotated[str, Field(min_length=1, max_length=120)]


class Record(BaseModel):
    """Of one submission."""

    submission_id: _Text
    status: str
    driver_node_id: str | None = None
    message: str | None = None
    metadata: dict[str, Any] | None = None


class _Report(BaseModel):
    usageByNode: dict[str, Any]  # noqa: N815  # Ray's name


class _Status(BaseModel):
    loadMetricsReport: _Report  # noqa: N815


class _Data(BaseModel):
    clusterStatus: _Status  # noqa: N815


class _Cluster(BaseModel):
    data: _Data


class _Usages(BaseModel):
    CPU: _Usage = (0.0, 0.0)
    GPU: _Usage = (0.0, 0.0)


VERSION = TypeAdapter(Version)
CLUSTER = TypeAdapter(_Cluster)
RECORD = TypeAdapter(Record)
RECORDS = TypeAdapter(list[Any])


def nodes_of(cluster: _Cluster, note: Note) -> tuple[NodeCapacity, ...]:
    """The hosts. One whose numbers make no sense is listed without capacity."""
    usage = cluster.data.clusterStatus.loadMetricsReport.usageByNode
    return tuple(_node(node_id, used, note) for node_id, used in usage.items())


def _node(node_id: str, used: Any, note: Note) -> NodeCapacity:
    try:
        amounts = _Usages.model_validate(used)
    except ValidationError as error:
        note(f"node {node_id[:80]}", _first(error))
        return NodeCapacity(node_id, 0.0, 0.0, 0.0, 0.0)
    (cpu_used, cpus), (gpu_used, gpus) = amounts.CPU, amounts.GPU
    return NodeCapacity(node_id, cpus, gpus, max(0.0, cpus - cpu_used), max(0.0, gpus - gpu_used), _address(used))


def _address(used: dict[str, Any]) -> str | None:
    """The resource that Ray gives each host, `node:10.0.0.7`.

    The head has `node:InternalHead` as well, and a placement group adds `node:10.0.0.7Group00A37…`, which is
    `node:10.0.0.7_group_0_0a37…` as the dashboard spells it.
    """
    names = (re.sub(r"(_group_|Group)\w+$", "", name.removeprefix("node:")) for name in used if name[:5] == "node:")
    return next((name for name in names if _is_address(name)), None)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def records_of(items: list[Any], owner: str, note: Note) -> Iterator[Record]:
    """The submissions of `owner`. Those of others, and Ray's own drivers among them, are ignored."""
    for item in items:
        if not isinstance(item, dict) or not item.get("submission_id") or not is_owned(item.get("metadata"), owner):
            continue
        try:
            yield Record.model_validate(item)
        except ValidationError as error:
            note(f"submission {str(item['submission_id'])[:80]}", _first(error))


def is_owned(metadata: Any, owner: str) -> bool:
    return isinstance(metadata, dict) and metadata.get("syncnorm") == owner


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
