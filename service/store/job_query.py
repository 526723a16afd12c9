"""The job list as a query: filters, order, and where the next page begins (keyset pagination)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from syncnorm.service.store import schema as t
from syncnorm.service.store.values import JobQuery, ListedJob

_J = t.jobs.c
SORTS: dict[str, sa.Column[Any]] = {
    "created_at": _J.id,  # ids are made in the order of time
    "finished_at": _J.finished_at,
    "name": _J.name,
    "priority": _J.priority,
    "state": _J.state,
}
"""The fields a list can be sorted by; equal jobs are sorted by id."""


def sort_value(one: ListedJob, sort: str) -> Any:
    """The value that, with its id, marks a job's place in such a list."""
    return None if SORTS[sort.lstrip("-")] is _J.id else getattr(one, sort.lstrip("-"))


def select_jobs(query: JobQuery) -> sa.Select[Any]:
    by, descending = SORTS[query.sort.lstrip("-")], query.sort.startswith("-")
    wanted = [*_filters(query)]
    if query.after is not None:
        wanted.append(_behind(by, descending, *query.after))
    order = [column.desc() if descending else column.asc() for column in dict.fromkeys((by, _J.id))]
    if by.nullable:  # unfinished jobs come last in both directions
        order[0] = order[0].nulls_last()
    return sa.select(*_columns(query.full)).where(*wanted).order_by(*order).limit(query.limit)


def _filters(query: JobQuery) -> Iterator[sa.ColumnElement[bool]]:
    exact = ((_J.project, query.project), (_J.owner, query.owner), (_J.norm, query.norm), (_J.name, query.name))
    yield from (column == value for column, value in exact if value is not None)
    if query.states:
        yield _J.state.in_(query.states) if len(query.states) > 1 else _J.state == query.states[0]
    if query.id_prefix is not None:
        yield _J.id.between(query.id_prefix, query.id_prefix.ljust(len("job_") + 26, "z"))
    if query.created_after is not None:
        yield _J.created_at > query.created_after
    label = t.labels.c
    for name, value in query.labels:
        yield _J.id.in_(sa.select(label.job_id).where(label.name == name, label.value == value))


def _behind(by: sa.Column[Any], descending: bool, value: Any, job_id: str) -> sa.ColumnElement[bool]:
    """Jobs after the one with this value and id."""
    later = _J.id < job_id if descending else _J.id > job_id
    if by is _J.id:
        return later
    if value is None:
        return sa.and_(by.is_(None), later)
    position, here = sa.tuple_(by, _J.id), sa.tuple_(sa.literal(value, by.type), sa.literal(job_id, _J.id.type))
    behind = position < here if descending else position > here
    return sa.or_(behind, by.is_(None)) if by.nullable else behind


def _columns(full: bool) -> Iterator[sa.ColumnElement[Any]]:
    for name in ListedJob._fields:
        column = _J[name]
        if name in ("spec", "guarantees") and not full:
            yield sa.null().label(name)
        else:
            yield sa.cast(column, sa.Text).label(name) if name in ("labels", "spec") else column
