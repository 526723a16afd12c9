"""Who did it: in events, in messages, and in the audit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from syncnorm.service.api.audit_trail import AuditTrail
from syncnorm.service.cli import main as cli
from syncnorm.service.cli import terminal
from syncnorm.service.jobs.actors import Actor, NewAuditEntry
from syncnorm.service.store import AuditQuery
from tests.helpers.service.api import SPEC, api
from tests.helpers.service.world import World
from tests.service.cli.test_progress import client_of
from tests.service.storage.test_code_packages import archive

Running = tuple[TestClient, World]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Running]:
    with api(tmp_path, auth=True) as pair:
        yield pair


def made(client: TestClient, owner: str, *scopes: str) -> tuple[str, dict[str, str]]:
    """(id, header) of a token."""
    token = client.post("/v1/tokens", json={"owner": owner, "scopes": list(scopes)}).json()
    return token["id"], {"Authorization": f"Bearer {token['token']}"}


def audit(client: TestClient, **filters: Any) -> list[dict[str, Any]]:
    client.app.state.context.audit_trail.flush(to_the_end=True)  # type: ignore[attr-defined]
    answer = client.get("/v1/audit", params=filters)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def test_every_event_tells_who_and_by_which_request(guarded: Running) -> None:
    client, world = guarded
    token, ann = made(client, "ann", "read", "submit")
    sent = client.post("/v1/jobs", json=SPEC | {"labels": {"works": "2"}}, headers=ann)
    job_id = sent.json()["id"]
    for _ in range(12):
        world.step()

    events = client.get(f"/v1/jobs/{job_id}/events").json()["items"]

    first, *others = events
    assert first["actor"] == {"kind": "user", "owner": "ann", "token_id": token}
    assert first["request_id"] == sent.headers["x-request-id"]
    kinds = {event["kind"]: event["actor"]["kind"] for event in others}
    assert (kinds["starting"], kinds["succeeded"]) == ("service", "service")
    assert all(event["request_id"] is None for event in others)


def test_what_workers_report_carries_worker(guarded: Running) -> None:
    client, world = guarded
    job_id = client.post("/v1/jobs", json=SPEC | {"labels": {"works": "9"}}).json()["id"]
    world.step()
    launch = next(iter(world.cluster.drivers.values())).launch
    event = {"fence": launch.fence, "kind": "note", "message": "hello", "data": {}}
    headers = {"Authorization": f"Bearer {launch.token}"}

    sent = client.post(f"/internal/v1/attempts/{launch.attempt_id}/events", json=event, headers=headers)

    assert sent.status_code == 200, sent.text
    (note,) = [one for one in client.get(f"/v1/jobs/{job_id}/events").json()["items"] if one["kind"] == "user.note"]
    assert note["actor"] == {"kind": "worker", "owner": None, "token_id": None}


@pytest.mark.parametrize("trains", [False, True])
def test_cancelled_job_says_by_whom(guarded: Running, trains: bool) -> None:
    client, world = guarded
    _, ann = made(client, "ann", "read", "submit")
    boss, admin = made(client, "boss", "admin")
    job_id = client.post("/v1/jobs", json=SPEC | {"labels": {"works": "99"}}, headers=ann).json()["id"]
    for _ in range(3 if trains else 0):
        world.step()

    client.post(f"/v1/jobs/{job_id}/cancel", headers=admin)
    for _ in range(3):
        world.step()

    job = client.get(f"/v1/jobs/{job_id}", headers=ann).json()
    assert job["state"] == "cancelled"
    assert job["message"].startswith(f"Cancelled by boss (token {boss}) {'at step' if trains else 'before it started'}")
    assert client.get(f"/v1/jobs/{job_id}/explain", headers=ann).json()["message"] == job["message"]
    asked = [
        one for one in client.get(f"/v1/jobs/{job_id}/events").json()["items"] if one["kind"] == "cancel_requested"
    ]
    assert [one["actor"]["owner"] for one in asked] == ["boss"]


def test_verbs_and_changes_are_in_the_audit_with_the_values_that_changed(guarded: Running) -> None:
    client, world = guarded
    token, ann = made(client, "ann", "read", "submit")
    job_id = client.post("/v1/jobs", json=SPEC, headers=ann).json()["id"]
    url = f"/v1/jobs/{job_id}"
    changed = client.patch(url, json={"priority": 7, "limits": {"deadline_s": 60}}, headers={**ann, "If-Match": "*"})
    client.post(f"{url}/pause", headers=ann)
    world.step()
    client.post(f"{url}/resume", headers=ann)
    client.post(f"{url}/cancel", headers=ann)
    world.step()
    client.delete(url, headers=ann)

    found = audit(client, object=job_id)

    names = ["job.delete", "job.cancel", "job.resume", "job.pause", "job.change", "job.submit"]
    assert [one["action"] for one in found] == names
    assert {(one["actor"]["owner"], one["actor"]["token_id"], one["outcome"]) for one in found} == {
        ("ann", token, "done")
    }
    change = found[4]
    assert (change["before"]["priority"], change["after"]["priority"]) == (0, 7)
    assert (change["before"]["limits"]["deadline_s"], change["after"]["limits"]["deadline_s"]) == (None, 60)
    assert change["request_id"] == changed.headers["x-request-id"]
    assert (found[2]["before"], found[2]["after"]) == ({"state": "paused"}, {"state": "queued"})


def test_packages_are_in_the_audit(tmp_path: Path) -> None:
    with api(tmp_path, allow_code=True) as (client, _):
        code = archive(("mine/__init__.py", b""))
        name = hashlib.sha256(code).hexdigest()
        for _ in range(2):
            client.put(f"/v1/packages/{name}", content=code, headers={"Content-Type": "application/zip"})
        client.put(f"/v1/packages/{'0' * 64}", content=code, headers={"Content-Type": "application/zip"})

        found = [(one["object"], one["outcome"], one["detail"]) for one in audit(client, action="package.put")]

    assert found == [
        (f"sha256:{'0' * 64}", "refused", "422 wrong_digest"),
        (f"sha256:{name}", "unchanged", ""),
        (f"sha256:{name}", "done", ""),
    ]


def test_tokens_and_secrets_are_in_the_audit_without_their_values(guarded: Running) -> None:
    client, _ = guarded
    answer = client.post("/v1/tokens", json={"owner": "ann", "scopes": ["submit"]}).json()
    client.put("/v1/secrets/HUB", json={"value": "value-nobody-may-read"})
    client.put("/v1/secrets/HUB", json={"value": "another-nobody-may-read"})
    client.delete("/v1/secrets/HUB")
    client.delete(f"/v1/tokens/{answer['id']}")

    found = audit(client)

    assert [(one["action"], one["object"]) for one in found] == [
        ("token.revoke", answer["id"]),
        ("secret.delete", "admin/HUB"),
        ("secret.put", "admin/HUB"),
        ("secret.put", "admin/HUB"),
        ("token.create", answer["id"]),
    ]
    assert found[4]["after"] == {"owner": "ann", "scopes": ["submit"], "expires_at": None}
    assert [one["after"] for one in found[2:4]] == [{"replaced": True}, {"replaced": False}]
    text = json.dumps(found)
    assert "nobody-may-read" not in text
    assert answer["token"].split("_", 2)[2] not in text


def test_refusals_and_repetitions_are_in_the_audit(guarded: Running) -> None:
    client, _ = guarded
    token, ann = made(client, "ann", "read", "submit")
    job_id = client.post("/v1/jobs", json=SPEC).json()["id"]
    client.post(f"/v1/jobs/{job_id}/cancel")

    denied = client.post("/v1/tokens", json={"owner": "eve"}, headers=ann)
    foreign = client.post(f"/v1/jobs/{job_id}/cancel", headers=ann)
    client.post(f"/v1/jobs/{job_id}/cancel")

    refused = [one for one in audit(client, actor=token) if one["outcome"] == "refused"]
    assert [(one["action"], one["object"], one["detail"]) for one in refused] == [
        ("job.cancel", job_id, "404 not_found"),
        ("token.create", "", "403 forbidden"),
    ]
    assert [one["request_id"] for one in refused] == [foreign.headers["x-request-id"], denied.headers["x-request-id"]]
    assert [one["outcome"] for one in audit(client, action="job.cancel", actor="admin")] == ["unchanged", "done"]


def test_failed_authentication_is_added_up(guarded: Running) -> None:
    client, world = guarded
    for _ in range(50):
        client.get("/v1/jobs", headers={"Authorization": "Bearer sn_0123456789abcdef_" + "x" * 43})

    found = audit(client, action="auth")

    assert [(one["action"], one["detail"], one["count"]) for one in found] == [
        ("auth.failed", "unknown token or wrong secret", 49),
        ("auth.failed", "unknown token or wrong secret", 1),
    ]
    assert found[0]["actor"]["owner"] is None
    assert len(world.store.audit.find()) == 2


def test_a_flood_of_different_refusals_stays_small(tmp_path: Path) -> None:
    with api(tmp_path) as (_, world):
        now = [0.0]
        trail = AuditTrail(world.store.audit, clock=lambda: now[0])
        for minute in range(3):
            now[0] = 61.0 * minute
            for number in range(2000):
                trail.add(NewAuditEntry(Actor("user", "eve"), "job.cancel", f"job_{number}", outcome="refused"))
        trail.flush(to_the_end=True)

        total = sum(entry.count for entry in world.store.audit.find(AuditQuery(limit=10_000)))
        lines = len(world.store.audit.find(AuditQuery(limit=10_000)))

    assert total == 6000
    assert lines < 3 * 210


def test_filters_and_pages_of_the_audit(guarded: Running) -> None:
    client, world = guarded
    _, ann = made(client, "ann", "read", "submit")
    for _ in range(5):
        client.post("/v1/jobs", json=SPEC, headers=ann)
        world.clock.advance(10)
    middle = (world.clock().isoformat()).replace("+00:00", "Z")
    client.post("/v1/jobs", json=SPEC)

    assert len(audit(client, actor="ann")) == 5
    assert len(audit(client, action="job.submit")) == len(audit(client, action="job")) == 6
    assert len(audit(client, since=middle)) == 1
    assert len(audit(client, until=middle)) == 6
    first = client.get("/v1/audit", params={"limit": 4}).json()
    rest = client.get("/v1/audit", params={"limit": 4, "cursor": first["next_cursor"]}).json()
    assert (len(first["items"]), len(rest["items"]), rest["next_cursor"]) == (4, 3, None)
    assert client.get("/v1/audit", headers=ann).status_code == 403
    for odd in ("9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00", "2026-01-01T00:00:00"):
        assert client.get("/v1/audit", params={"since": odd}).status_code == 422


def test_study_and_export_leave_lines(tmp_path: Path) -> None:
    with api(tmp_path) as (client, world):
        study = {"name": "s", "base": SPEC, "grid": {"optimizer.lr": [0.1, 0.2]}, "seeds": [0]}
        study_id = client.post("/v1/studies", json=study).json()["id"]
        client.post(f"/v1/studies/{study_id}/cancel")
        job = world.succeed()
        client.post(f"/v1/jobs/{job.id}/exports", json={})

        assert [one["action"] for one in audit(client, object=study_id)] == ["study.cancel", "study.submit"]
        assert len(audit(client, action="job.cancel")) == 2
        (export,) = audit(client, action="job.export")
        assert (export["object"], export["after"]["export"]) == (job.id, "2")
        assert export["actor"] == {"kind": "user", "owner": "local", "token_id": None}


def test_audit_is_a_verb_and_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(tmp_path) as (http, _):
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))
        client = client_of(http)
        job_id = http.post("/v1/jobs", json=SPEC).json()["id"]
        client.change(job_id, priority=3, limits={"deadline_s": 60})
        items = client.ask_many("cancel", ids=[job_id])["items"]

        shown = CliRunner().invoke(cli.app, ["audit", "--object", job_id])
        read = CliRunner().invoke(cli.app, ["audit", "--action", "job.change", "--json"])

    assert [one["status"] for one in items] == [202]
    assert (shown.exit_code, read.exit_code) == (0, 0), shown.output + read.output
    cancel, change, submit = shown.stdout.splitlines()
    assert f'local job.cancel {job_id}  stop="cancel" (was null)' in cancel
    assert "priority=3 (was 0)" in change
    assert "job.submit" in submit
    assert json.loads(read.stdout)["after"]["priority"] == 3
