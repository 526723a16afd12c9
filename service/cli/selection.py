"""Finds the jobs that a command names: by id, first characters of an id, name, `last`, or filters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

from syncnorm.service.client.client import Client, UsageError

Json = dict[str, Any]
LAST = "last"
_ID = re.compile(r"job_[0-9a-hjkmnp-tv-z]{26}")
_BEGINNING = re.compile(r"job_[0-9a-hjkmnp-tv-z]{0,26}|[0-9a-hjkmnp-tv-z]{1,26}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,119}")
_MOST_SHOWN = 5
_SHORTEST = 13
HOW = "Name a job by its id, the first characters of its id, its name, or `last`"


def job_id(client: Client, wanted: str) -> str:
    """The id of the one job that `wanted` names.

    Raises: UsageError if it names no job, or several, or can't name any; ClientError.
    """
    if _ID.fullmatch(wanted):
        return wanted
    _check(wanted)
    if wanted == LAST:
        found = list(islice(client.jobs(limit=1), 1))
        if not found:
            raise UsageError("There is no last job, because none was submitted yet.")
        return str(found[0]["id"])
    found = _candidates(client, wanted)
    if not found:
        raise UsageError(f"No job has an id that begins with {wanted!r}, or this name. `syncnorm ls` lists them.")
    if len(found) > 1:
        raise UsageError(_ambiguous(wanted, found))
    return str(found[0]["id"])


def _check(wanted: str) -> None:
    """Refuse a text that can't name a job, before anything is sent."""
    if not wanted.strip():
        raise UsageError(f"The name of a job must not be empty. Is a variable of your shell unset? {HOW}.")
    if not _NAME.fullmatch(wanted) or {"", ".", ".."} & set(wanted.split("/")):
        shown = wanted if len(wanted) <= 60 else f"{wanted[:60]}… ({len(wanted)} characters)"
        raise UsageError(f"{shown!r} is neither an id nor a name of a job. {HOW}.")


def _candidates(client: Client, wanted: str) -> list[Json]:
    """The jobs that `wanted` may mean, newest first; enough of them to know whether there are several."""
    most = _MOST_SHOWN + 1
    found = [job for job in islice(client.jobs(name=wanted, limit=most), most) if job["name"] == wanted]
    if _BEGINNING.fullmatch(wanted):
        start = wanted if wanted.startswith("job_") else f"job_{wanted}"
        begun = islice(client.jobs(id_prefix=start, limit=most), most)
        found += [job for job in begun if job["id"].startswith(start) and job not in found]
    return found


def _ambiguous(wanted: str, found: Sequence[Json]) -> str:
    shown = [f"{job['id']} {job['name']} ({job['state']})" for job in found[:_MOST_SHOWN]]
    more = ["…"] if len(found) > _MOST_SHOWN else []
    return "\n  ".join([f"{wanted!r} matches several jobs. Give a whole id, or more characters of it:", *shown, *more])


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
