"""Finds the jobs and studies that a command names: by id, first characters of an id, name, `last`, or filters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

from syncnorm.service.client.client import Client, UsageError

Json = dict[str, Any]
LAST = "last"
_PART = "[0-9a-hjkmnp-tv-z]"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,119}")
_MOST_SHOWN = 5
_SHORTEST = 13


def job_id(client: Client, wanted: str) -> str:
    """The id of the one job that `wanted` names.

    Raises: UsageError if it names no job, or several, or can't name any; ClientError.
    """

    def candidates() -> Iterator[Json]:
        most = _MOST_SHOWN + 1
        if wanted == LAST:
            yield from islice(client.jobs(limit=1), 1)
            return
        yield from islice(client.jobs(name=wanted, limit=most), most)
        if (start := _beginning("job", wanted)) is not None:
            yield from islice(client.jobs(id_prefix=start, limit=most), most)

    return _the_one("job", wanted, candidates, "syncnorm ls")


def study_id(client: Client, wanted: str) -> str:
    """The id of the one study that `wanted` names.

    Raises: UsageError if it names no study, or several, or can't name any; ClientError.
    """
    return _the_one("study", wanted, client.studies, "syncnorm study ls")


def _the_one(what: str, wanted: str, candidates: Callable[[], Iterator[Json]], listing: str) -> str:
    """candidates: newest first, enough of them to know whether several are meant."""
    if re.fullmatch(f"{what}_{_PART}{{26}}", wanted):
        return wanted
    _check(what, wanted)
    if wanted == LAST:
        newest = next(candidates(), None)
        if newest is None:
            raise UsageError(f"There is no last {what}, because none was submitted yet.")
        return str(newest["id"])
    start = _beginning(what, wanted)
    found = {
        one["id"]: one
        for one in candidates()
        if one["name"] == wanted or (start is not None and one["id"].startswith(start))
    }
    if not found:
        raise UsageError(f"No {what} has an id that begins with {wanted!r}, or this name. `{listing}` lists them.")
    if len(found) > 1:
        raise UsageError(_ambiguous(what, wanted, list(found.values())))
    return str(next(iter(found)))


def _beginning(what: str, wanted: str) -> str | None:
    """The first characters of an id that `wanted` may be."""
    start = wanted if wanted.startswith(f"{what}_") else f"{what}_{wanted}"
    return start if re.fullmatch(f"{what}_{_PART}{{0,26}}", start) else None


def _check(what: str, wanted: str) -> None:
    """Refuse a text that can't name anything, before anything is sent."""
    how = f"Name a {what} by its id, the first characters of its id, its name, or `{LAST}`"
    if not wanted.strip():
        raise UsageError(f"The name of a {what} must not be empty. Is a variable of your shell unset? {how}.")
    if not _NAME.fullmatch(wanted) or {"", ".", ".."} & set(wanted.split("/")):
        shown = wanted if len(wanted) <= 60 else f"{wanted[:60]}… ({len(wanted)} characters)"
        raise UsageError(f"{shown!r} is neither an id nor a name of a {what}. {how}.")


def _ambiguous(what: str, wanted: str, found: Sequence[Json]) -> str:
    shown = [f"{one['id']} {one['name']} ({one['state']})" for one in found[:_MOST_SHOWN]]
    several = {"job": "jobs", "study": "studies"}[what]
    more = ["…"] if len(found) > _MOST_SHOWN else []
    said = f"{wanted!r} matches several {several}. Give a whole id, or more characters of it:"
    return "\n  ".join([said, *shown, *more])


def matching(
    client: Client,
    *,
    states: Sequence[str] = (),
    labels: Sequence[str] = (),
    page: int = 200,
    **exact: str | None,
) -> Iterator[Json]:
    """Jobs in one of the states and with all of the labels (key:value), newest first."""
    for label in labels:
        if ":" not in label:
            raise UsageError(f"--label must be key:value, got {label}.")
    return client.jobs(state=states or None, label=labels or None, limit=page, **exact)


def by_short_id(jobs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The shortest prefix of each id that identifies it among these jobs: at least the millisecond of its
    submission."""
    ids = sorted(str(job["id"]) for job in jobs)
    shared = [0, *(_shared(one, two) for one, two in pairwise(ids)), 0]
    return {one: one[: max(_SHORTEST, *shared[at : at + 2]) + 1] for at, one in enumerate(ids)}


def _shared(one: str, two: str) -> int:
    """Number of characters that both have in common at the beginning."""
    return next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
