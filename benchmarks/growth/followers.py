"""One to ten thousand followers of one job: until an event has reached all of them, and what they cost at rest."""

from __future__ import annotations

import resource
from collections.abc import Iterator

from benchmarks.api import follow
from benchmarks.growth.curves import Curve
from benchmarks.service_process import service_process

FOLLOWERS = (1, 10, 100, 1_000, 10_000)
_OTHER_FILES = 200
"""Open files of a process that are no followers."""


def measure() -> Iterator[Curve]:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - _OTHER_FILES
    amounts = [count for count in FOLLOWERS if count <= most]
    with service_process(0) as server:
        found = [follow(server, count) for count in amounts]
    lines = {"the first": [one.first_s for one in found], "the last": [one.last_s for one in found]}
    yield Curve("followers", "An event reaches the followers of a job", "followers", "seconds", amounts, lines)
    cores = {"the service": [max(one.idle, 0.001) for one in found]}
    yield Curve("followers-at-rest", "Followers while nothing happens", "followers", "cores", amounts, cores)
