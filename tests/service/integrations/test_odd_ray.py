"""Whatever answers in Ray's place: it is away, odd, or refuses one submission; one odd item hides no other."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from syncnorm.service.backend_errors import RefusedError, UnexpectedAnswerError, UnreachableError
from syncnorm.service.integrations.ray_jobs import RayDispatcher
from syncnorm.service.integrations.ray_sweep import ClusterSweep
from syncnorm.service.jobs.attempt_ending import RayStatus
from tests.helpers.odd_server import AWAY, ODD, Reply, at_most, page, serving, timeout_for

NODE = {"CPU": [1.0, 8.0], "GPU": [0.0, 2.0], "node:10.0.0.7": [0.0, 1.0], "memory": [0.0, 1e10]}
LONGEST_S = 4.0
"""Of a few calls, also on a busy host: less than the silence of one that answers nothing."""


def cluster(nodes: Any) -> Any:
    return {"data": {"clusterStatus": {"loadMetricsReport": {"usageByNode": nodes}}}}


def record(name: str, status: str = "RUNNING", **other: Any) -> dict[str, Any]:
    return {"submission_id": name, "status": status, "metadata": {"syncnorm": "me"}, "driver_node_id": "n1", **other}


@dataclass
class Ray:
    """Answers as Ray does, but for the paths in `bent`. Keeps what it was asked."""

    nodes: Any = field(default_factory=lambda: {"n1": NODE})
    records: dict[str, Any] = field(default_factory=lambda: {"a-1": record("a-1")})
    bent: dict[str, Reply] = field(default_factory=dict)
    """By method and path."""
    asked: list[str] = field(default_factory=list)

    def __call__(self, method: str, path: str, sent: Any) -> Reply:
        what = f"{method} {path}"
        self.asked.append(what)
        if what in self.bent:
            return self.bent[what]
        name = path.removeprefix("/api/jobs/").removesuffix("/stop")
        looks = {
            "GET /api/version": {"session_name": "session-1", "version": "4"},
            "GET /api/cluster_status": cluster(self.nodes),
            "GET /api/jobs/": list(self.records.values()),
        }
        if what in looks:
            return Reply(looks[what])
        if what == "POST /api/jobs/":
            self.records[sent["submission_id"]] = record(sent["submission_id"])
            return Reply({"job_id": sent["submission_id"], "submission_id": sent["submission_id"]})
        if name not in self.records:
            return Reply(f"Job {name} does not exist".encode(), 404, kind="text/plain")
        if method == "POST":
            return Reply({"stopped": True})
        return self._delete(name) if method == "DELETE" else Reply(self.records[name])

    def _delete(self, name: str) -> Reply:
        if self.records[name]["status"] not in ("SUCCEEDED", "FAILED", "STOPPED"):
            text = f"Traceback\nRuntimeError: Attempted to delete job '{name}', but it is in a non-terminal state.\n"
            return Reply(text.encode(), 500, kind="text/plain")
        del self.records[name]
        return Reply({"deleted": True})


@contextmanager
def dispatcher(ray: Ray, known: set[str] | None = None) -> Iterator[RayDispatcher]:
    names = None if known is None else (lambda: known)
    with serving(ray) as url:
        made = RayDispatcher(url, owner="me", timeout_s=timeout_for(ray.bent), known=names)
        yield made
        made.close()


@pytest.mark.parametrize(
    ("what", "odd"),
    [
        *((f"GET /api/{path}", odd) for path in ("version", "cluster_status") for odd in (*ODD, *AWAY)),
        # A list may take longer, and an empty one is what it says.
        *(("GET /api/jobs/", odd) for odd in (*ODD, *AWAY) if odd not in ("list", "too much", "silence", "trickle")),
    ],
)
def test_look_at_a_cluster_that_answers_something_else_is_no_look(what: str, odd: str) -> None:
    ray = Ray(bent={what: (ODD | AWAY)[odd]})

    with dispatcher(ray) as cluster_now:
        with at_most(LONGEST_S), pytest.raises(UnreachableError, match="Ray at http"):
            cluster_now.observe()
        ray.bent.clear()

        assert cluster_now.observe().submissions["a-1"].status is RayStatus.RUNNING


@pytest.mark.parametrize(
    "nodes",
    [
        {"data": None},
        {"data": {"clusterStatus": None}},
        {"data": {"clusterStatus": {}}},
        {"data": {"clusterStatus": {"loadMetricsReport": None}}},
        cluster(None),
        cluster([]),
    ],
)
def test_status_with_a_hole_is_no_look(nodes: Any) -> None:
    ray = Ray(bent={"GET /api/cluster_status": Reply(nodes)})

    with dispatcher(ray) as cluster_now, pytest.raises(UnexpectedAnswerError):
        cluster_now.observe()


@pytest.mark.parametrize(
    "used",
    [
        None,
        [],
        "full",
        {"CPU": None},
        {"CPU": [0.0]},
        {"CPU": [0.0, -4.0]},
        {"CPU": [0.0, 1e300]},
        {"CPU": [0.0, "many"]},
        {"CPU": {"total": 4}},
        {"CPU": [0.0, 4.0], "GPU": [None, None]},
    ],
)
def test_odd_host_has_nothing_to_give_and_hides_no_other(used: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is still there: its absence would be evidence that what ran on it is dead."""
    with dispatcher(Ray(nodes={"odd": used, "n1": NODE})) as cluster_now, caplog.at_level(logging.WARNING):
        views = [cluster_now.observe() for _ in range(3)]

    odd, fine = views[-1].nodes
    assert (odd.node_id, odd.cpus, odd.free_cpus, odd.gpus) == ("odd", 0, 0, 0)
    assert (fine.cpus, fine.free_cpus, fine.gpus, fine.address) == (8, 7, 2, "10.0.0.7")
    assert [getattr(line, "what", None) for line in caplog.records] == ["node odd"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_host_with_a_number_json_does_not_have(number: str) -> None:
    text = json.dumps(cluster({"odd": {"CPU": [0.0, 4.0]}, "n1": NODE})).replace("4.0", number)
    with dispatcher(Ray(bent={"GET /api/cluster_status": Reply(text.encode())})) as cluster_now:
        assert [node.cpus for node in cluster_now.observe().nodes] == [0, 8]


ODD_RECORDS: list[Any] = [
    None,
    17,
    [],
    {"submission_id": 17, "metadata": {"syncnorm": "me"}},
    {"submission_id": "b-1", "metadata": {"syncnorm": "me"}},
    record("b-1", status=None),  # type: ignore[arg-type]
    record("b-1", message={"a": 1}),
    record("b-1", driver_node_id=[1]),
    {"submission_id": "b-1", "metadata": ["syncnorm"]},
    {"submission_id": ["b-1"], "metadata": {"syncnorm": "me"}, "status": "RUNNING"},
]


@pytest.mark.parametrize("odd", ODD_RECORDS)
def test_odd_record_in_the_list_hides_no_other(odd: Any) -> None:
    with dispatcher(Ray(bent={"GET /api/jobs/": Reply([odd, record("a-1")])})) as cluster_now:
        assert set(cluster_now.observe().submissions) == {"a-1"}


@pytest.mark.parametrize("odd", [*ODD, *AWAY])
def test_submission_that_can_not_be_asked_for_is_not_called_unknown(odd: str) -> None:
    ray = Ray(records={"a-1": record("a-1"), "b-1": record("b-1")}, bent={"GET /api/jobs/b-1": (ODD | AWAY)[odd]})

    with dispatcher(ray, {"a-1", "b-1", "c-1"}) as cluster_now, at_most(LONGEST_S):
        found = cluster_now.observe().submissions

    assert {name: seen.status for name, seen in found.items()} == {
        "a-1": RayStatus.RUNNING,
        "b-1": RayStatus.UNREACHABLE,
    }


def test_status_nobody_knows_is_no_evidence() -> None:
    with dispatcher(Ray(records={"a-1": record("a-1", status="EVAPORATED")}), {"a-1"}) as cluster_now:
        assert cluster_now.observe().submissions["a-1"].status is RayStatus.UNREACHABLE


@pytest.mark.parametrize("odd", [*ODD, *AWAY])
def test_launch_answered_with_something_else_waits_and_is_made_later(odd: str) -> None:
    ray = Ray(bent={"POST /api/jobs/": (ODD | AWAY)[odd]})

    with dispatcher(ray) as cluster_now, at_most(LONGEST_S):
        with pytest.raises(UnreachableError):
            cluster_now.start("b-1", "/folder")
        ray.bent.clear()
        cluster_now.start("b-1", "/folder")
        cluster_now.start("b-1", "/folder")

    assert "b-1" in ray.records
    assert ray.asked.count("POST /api/jobs/") == 2


@pytest.mark.parametrize("odd", ["login page", "object", "null", "list"])
def test_page_in_place_of_a_record_is_no_launch(odd: str) -> None:
    ray = Ray(bent={"GET /api/jobs/b-1": ODD[odd]})

    with dispatcher(ray) as cluster_now, pytest.raises(UnexpectedAnswerError):
        cluster_now.start("b-1", "/folder")

    assert "POST /api/jobs/" not in ray.asked


@pytest.mark.parametrize("status", [400, 413, 422])
def test_submission_that_ray_refuses_is_refused(status: int) -> None:
    refusal = Reply(b"Traceback\nTypeError: unexpected argument", status, kind="text/plain")

    with dispatcher(Ray(bent={"POST /api/jobs/": refusal})) as cluster_now, pytest.raises(RefusedError) as caught:
        cluster_now.start("b-1", "/folder")

    assert "unexpected argument" in str(caught.value)
    assert caught.value.status == status


def test_page_of_a_proxy_refuses_nothing() -> None:
    with dispatcher(Ray(bent={"POST /api/jobs/": page(400)})) as cluster_now, pytest.raises(UnreachableError):
        cluster_now.start("b-1", "/folder")


@pytest.mark.parametrize("odd", ["login page", "null", "list", "error", "silence", "page that is not there"])
def test_end_answered_with_something_else_is_tried_again(odd: str) -> None:
    ray = Ray(bent={"POST /api/jobs/a-1/stop": (ODD | AWAY)[odd]})

    with dispatcher(ray) as cluster_now:
        with pytest.raises(UnreachableError):
            cluster_now.end("a-1")
        ray.bent.clear()
        cluster_now.end("a-1")
        cluster_now.end("unknown")


def test_sweep_deletes_what_is_over_and_ours_and_finds_strays() -> None:
    ours = {f"old-{i}": record(f"old-{i}", "SUCCEEDED") for i in range(30)}
    others = {
        "needed-1": record("needed-1", "FAILED"),
        "alive-1": record("alive-1"),
        "stray-1": record("stray-1"),
        "odd-1": record("odd-1", "EVAPORATED"),
        "theirs-1": record("theirs-1", "SUCCEEDED", metadata={"syncnorm": "another"}),
        "plain-1": record("plain-1", "SUCCEEDED", metadata=None),
    }
    ray, known = Ray(records=ours | others), {"needed-1", "alive-1"}

    with dispatcher(ray, known) as cluster_now:
        ClusterSweep(cluster_now, lambda: known).tick()
        found = cluster_now.observe().submissions

    assert set(ray.records) == set(others)
    assert set(found) == {"needed-1", "alive-1", "stray-1"}


def test_released_submission_is_deleted_at_the_next_tick_without_a_list() -> None:
    ray, known = Ray(records={"a-1": record("a-1", "SUCCEEDED"), "b-1": record("b-1")}), {"b-1"}

    with dispatcher(ray, known) as cluster_now:
        sweep = ClusterSweep(cluster_now, lambda: known)
        sweep.tick()
        ray.records["c-1"] = record("c-1", "SUCCEEDED")
        for name in ("c-1", "b-1", "gone-1"):
            cluster_now.forget(name)
        sweep.tick()

    assert set(ray.records) == {"b-1"}
    assert ray.asked.count("GET /api/jobs/") == 1


@pytest.mark.parametrize(
    ("names", "address"),
    [
        (["node:10.0.0.7"], "10.0.0.7"),
        (["node:InternalHead", "node:10.0.0.7"], "10.0.0.7"),
        (["node:__internal_head__", "node:10.0.0.7"], "10.0.0.7"),
        (["node:10.0.0.7Group00A37Bc29E12345678901234567890123456", "node:10.0.0.7"], "10.0.0.7"),
        (["node:10.0.0.7Group0A37Bc29E12345678901234567890123456"], "10.0.0.7"),
        (["node:10.0.0.7_group_0_0a37bc29e123456789012345678901234567"], "10.0.0.7"),
        (["node:InternalHeadGroup00A37Bc", "node:fd00::12"], "fd00::12"),
        (["node:InternalHead", "CPU"], None),
    ],
)
def test_address_of_a_host_from_its_resources(names: list[str], address: str | None) -> None:
    host = {name: [0.0, 1.0] for name in names}

    with dispatcher(Ray(nodes={"n1": {"CPU": [0.0, 1.0], **host} if "CPU" not in host else host})) as cluster_now:
        assert cluster_now.observe().nodes[0].address == address
