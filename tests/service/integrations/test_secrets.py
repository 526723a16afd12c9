"""Secrets reach the workers of a job, and nothing else: canaries are looked for wherever anything is written."""

from __future__ import annotations

import logging
import secrets as random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from syncnorm.service.integrations.secrets import secrets_key
from syncnorm.service.reconciler.backends import attempt_token
from syncnorm.trainer.contract.protocol import Launch
from syncnorm.trainer.reporting.redaction import redact
from syncnorm.trainer.reporting.reporter import Reporter
from syncnorm.trainer.reporting.secrets import fetch
from tests.helpers.service.api import SPEC, api
from tests.helpers.service.world import World

Guarded = tuple[TestClient, World]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    with api(tmp_path, auth=True) as found:
        yield found


def user(client: TestClient, owner: str) -> dict[str, str]:
    made = client.post("/v1/tokens", json={"owner": owner, "scopes": ["read", "submit"]}).json()
    return {"Authorization": f"Bearer {made['token']}"}


def start(client: TestClient, world: World, who: dict[str, str], env: dict[str, object]) -> Launch:
    job = client.post("/v1/jobs", json=SPEC | {"env": env}, headers=who)
    assert job.status_code == 201, job.text
    world.reconciler.tick()
    return world.cluster.drivers[f"{job.json()['id']}-1"].launch


def through(client: TestClient) -> httpx.Client:
    """An HTTP client as a rank has it, into the application of this process."""
    return httpx.Client(
        transport=httpx.MockTransport(
            lambda request: httpx.Response(
                (
                    answer := client.post(request.url.path, content=request.content, headers=dict(request.headers))
                ).status_code,
                content=answer.content,
            )
        )
    )


def test_rank_gets_the_secrets_its_spec_names(guarded: Guarded) -> None:
    client, world = guarded
    ann = user(client, "ann")
    client.put("/v1/secrets/HUB", json={"value": "s3cret-å\n2"}, headers=ann)
    client.put("/v1/secrets/OTHER", json={"value": "not asked for"}, headers=ann)
    launch = start(client, world, ann, {"TOKEN": {"secret": "HUB"}, "PLAIN": "yes"})

    assert fetch(launch, through(client)) == {"TOKEN": "s3cret-å\n2"}


def test_secret_of_somebody_else_is_no_secret_of_mine(guarded: Guarded) -> None:
    client, _ = guarded
    ann, bob = user(client, "ann"), user(client, "bob")
    client.put("/v1/secrets/HUB", json={"value": "of ann"}, headers=ann)

    refused = client.post("/v1/jobs", json=SPEC | {"env": {"T": {"secret": "HUB"}}}, headers=bob)
    names = [client.get("/v1/secrets", headers=who).json()["items"] for who in (ann, bob)]

    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/env/T"
    assert [[one["name"] for one in items] for items in names] == [["HUB"], []]
    assert client.delete("/v1/secrets/HUB", headers=bob).status_code == 404
    assert client.delete("/v1/secrets/HUB", headers=ann).status_code == 204


def test_secrets_are_given_under_the_fence_of_a_live_attempt_only(guarded: Guarded) -> None:
    client, world = guarded
    ann = user(client, "ann")
    client.put("/v1/secrets/HUB", json={"value": "s3cret"}, headers=ann)
    launch = start(client, world, ann, {"T": {"secret": "HUB"}})
    path = f"/internal/v1/attempts/{launch.attempt_id}/secrets"

    def ask(fence: str, token: str) -> int:
        return client.post(path, json={"fence": fence}, headers={"Authorization": f"Bearer {token}"}).status_code

    live = [
        ask(launch.fence, attempt_token(launch.fence)),
        ask(launch.fence, "x"),
        ask("0" * 32, attempt_token("0" * 32)),
    ]
    world.apply_verb(launch.job_id, "cancel")
    for _ in range(4):
        world.step()

    assert live == [200, 401, 409]
    assert ask(launch.fence, attempt_token(launch.fence)) == 409


def test_missing_secret_ends_the_attempt_with_its_name(guarded: Guarded) -> None:
    client, world = guarded
    ann = user(client, "ann")
    client.put("/v1/secrets/HUB", json={"value": "s3cret"}, headers=ann)
    launch = start(client, world, ann, {"T": {"secret": "HUB"}})
    client.delete("/v1/secrets/HUB", headers=ann)

    with pytest.raises(ValueError, match=r"env.T: its secret was deleted"):
        fetch(launch, through(client))


def _canaries(tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int) -> None:
    """Every canary goes through a job that reports it everywhere a job can report anything."""
    caplog.set_level(logging.DEBUG)
    values = [f"canary-{random.token_hex(8)}" + ('"\\\nüä ' * (number % 2)) for number in range(count)]
    texts = []
    with api(tmp_path, auth=True) as (client, world):
        ann = user(client, "ann")
        for number, value in enumerate(values):
            assert client.put(f"/v1/secrets/S{number}", json={"value": value}, headers=ann).status_code == 204
            launch = start(client, world, ann, {"T": {"secret": f"S{number}"}})
            _tell_everything(launch, value, client)
            for _ in range(5):
                world.step()
            texts += [client.get(f"/v1/jobs/{launch.job_id}{part}", headers=ann).text for part in ("", *_PARTS)]
        texts += [client.get(path).text for path in ("/v1/jobs", "/v1/secrets", "/v1/tokens", "/metrics")]
        texts += [client.put("/v1/secrets/x", json={"value": [values[0]]}, headers=ann).text]
        texts += [caplog.text, repr(world.tracker), repr(world.cluster)]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "secrets.key"]

    assert len(files) > count
    for value in values:
        piece = value[:23]
        assert not any(piece in text for text in texts)
        assert not any(piece.encode() in content for content in files)


_PARTS = ("/events", "/logs", "/attempts", "/explain")


def _tell_everything(launch: Launch, value: str, client: TestClient) -> None:
    headers = {"Authorization": f"Bearer {launch.token}", "Content-Type": "application/json"}
    base = f"http://nobody/internal/v1/attempts/{launch.attempt_id}/"
    transport = through(client)._transport
    reporter = Reporter(launch, 0, client=httpx.Client(base_url=base, headers=headers, transport=transport))
    reporter.hide([value])
    reporter.start()
    reporter.log("ERROR", f"could not log in with {value} at all")
    reporter.event("note", f"tried {value}", password=value)
    reporter.enter("training")
    reporter.close()


def test_canaries_appear_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _canaries(tmp_path, caplog, count=4)


@pytest.mark.chaos
def test_many_canaries_appear_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _canaries(tmp_path, caplog, count=100)


def test_reporter_that_hides_nothing_would_be_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reporter, "hide", lambda *_: None)

    with pytest.raises(AssertionError, match="assert not"):
        _canaries(tmp_path, caplog, count=1)


def test_redaction_covers_escapes_and_the_lines_of_a_key_and_keeps_json_whole() -> None:
    key = '-----BEGIN\nab"cd\\ef\n-----END'

    assert redact('{"text": "ab\\"cd\\\\ef and -----BEGIN"}', [key]) == '{"text": "*** and ***"}'
    assert redact("as it is", ["", "is"]) == "as it is"


def test_key_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    first, second = secrets_key(None, tmp_path), secrets_key(None, tmp_path)
    bad = tmp_path / "bad"
    bad.write_text("short")

    assert first == second
    assert (tmp_path / "secrets.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match="must hold at least 32 random characters"):
        secrets_key(bad, tmp_path)
