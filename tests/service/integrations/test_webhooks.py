"""Receivers hear of everything in order, once each as far as they can know, and can check who tells them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from syncnorm.service.background.loop import stop_all
from syncnorm.service.integrations.http_client import HttpClient
from syncnorm.service.integrations.webhooks import Webhooks
from syncnorm.service.jobs.job import NewEvent
from syncnorm.service.settings import Settings
from syncnorm.service.store import schema
from tests.helpers.odd_server import AWAY, ODD, Reply, at_most, serving
from tests.helpers.service.api import SPEC, api
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World
from tests.service.conftest import eventually

URL = "http://receiver.example/hook"
SECRET = b"a secret of the receiver"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fresh_sqlite(tmp_path) as database:
        yield World(tmp_path, database)


class Receiver:
    """Answers with the codes given, one a request, then 200. Keeps what it answered 200 to."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)
        self.asked = 0
        self.heard: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        code = self.codes.pop(0) if self.codes else 200
        if code == 0:
            raise httpx.ConnectError("nobody there")
        if code == 200:
            self.heard.append(request)
        return httpx.Response(code)

    @property
    def types(self) -> list[str]:
        return [json.loads(request.content)["type"] for request in self.heard]


class Body(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b""


def port_to(receive: Callable[[httpx.Request], httpx.Response]) -> HttpClient:
    """As over a network: the body comes after the head."""

    def streamed(request: httpx.Request) -> httpx.Response:
        answer = receive(request)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=Body())

    return HttpClient("it", transport=httpx.MockTransport(streamed))


def hooks(world: World, receive: Callable[[httpx.Request], httpx.Response], holder: str = "a") -> Webhooks:
    return Webhooks(world.store, [URL], SECRET, port_to(receive), holder)


def run_job(world: World, sender: Webhooks, steps: int = 8) -> None:
    sender.tick()  # the receiver is known from here on
    world.submit()
    for _ in range(steps):
        world.step()
        sender.tick()


def test_receiver_hears_every_move_in_order_with_a_signature_it_can_check(world: World) -> None:
    receiver = Receiver()

    run_job(world, hooks(world, receiver))

    assert receiver.types == ["job.queued", "job.starting", "job.running", "job.finalizing", "job.succeeded"]
    for request in receiver.heard:
        name, stamp = request.headers["webhook-id"], request.headers["webhook-timestamp"]
        signed = f"{name}.{stamp}.".encode() + request.content
        expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
        assert request.headers["webhook-signature"] == f"v1,{expected}"


def test_receiver_hears_who_did_it_and_in_which_request(tmp_path: Path) -> None:
    receiver = Receiver()
    with api(tmp_path, auth=True) as (client, world):
        sender = hooks(world, receiver)
        sender.tick()
        token = client.post("/v1/tokens", json={"owner": "ann"}).json()
        ann = {"Authorization": f"Bearer {token['token']}"}
        submitted = client.post("/v1/jobs", json=SPEC, headers=ann)
        for _ in range(3):
            world.step()
            sender.tick()
        events = client.get(f"/v1/jobs/{submitted.json()['id']}/events").json()["items"]

    told = [json.loads(request.content)["data"] for request in receiver.heard]
    assert told[0]["actor"] == {"kind": "user", "owner": "ann", "token_id": token["id"]}
    assert told[0]["request_id"] == submitted.headers["X-Request-Id"]
    assert told[1]["actor"] == {"kind": "service", "owner": None, "token_id": None}
    shown = {one["kind"]: (one["actor"], one["request_id"]) for one in events}
    assert [(one["actor"], one["request_id"]) for one in told] == [shown[one["kind"]] for one in told]


def test_receiver_that_was_away_hears_all_of_it_later(world: World) -> None:
    receiver = Receiver(0, 500, 503, 429, 425)
    sender = hooks(world, receiver)

    run_job(world, sender)
    for _ in range(20):
        world.clock.advance(60)
        sender.tick()

    assert receiver.types == ["job.queued", "job.starting", "job.running", "job.finalizing", "job.succeeded"]
    assert len({request.headers["webhook-id"] for request in receiver.heard}) == 5


def test_waits_between_tries_grow(world: World) -> None:
    receiver = Receiver(*[500] * 50)
    sender = hooks(world, receiver)
    sender.tick()
    world.submit()
    world.clock.advance(3)

    asked = []
    for _ in range(60):
        sender.tick()
        asked.append(receiver.asked)
        world.clock.advance(1)

    assert asked[0] == 1
    assert asked[-1] == 6  # after 0, 1, 3, 7, 15 and 31 s


def test_restarted_sender_goes_on_where_the_last_one_was(world: World) -> None:
    receiver = Receiver()
    run_job(world, hooks(world, receiver), steps=2)
    world.clock.advance(60)

    again = hooks(world, receiver, "b")
    for _ in range(6):
        world.step()
        again.tick()

    assert receiver.types == ["job.queued", "job.starting", "job.running", "job.finalizing", "job.succeeded"]


def test_one_of_two_replicas_sends(world: World) -> None:
    receiver, other = Receiver(), Receiver()
    first, second = hooks(world, receiver), hooks(world, other, "b")

    first.tick()
    world.submit()
    world.clock.advance(3)
    second.tick()
    first.tick()

    assert (len(receiver.heard), len(other.heard)) == (1, 0)


def test_event_nobody_takes_for_days_is_given_up(world: World) -> None:
    receiver = Receiver(500, 500)
    sender = hooks(world, receiver)
    sender.tick()
    world.submit()
    world.clock.advance(10)
    sender.tick()
    world.clock.advance(4 * 86400)
    world.submit()

    for _ in range(3):
        world.clock.advance(10)
        sender.tick()

    assert receiver.types == ["job.queued"]


def test_receiver_hears_what_the_statistics_of_a_job_give_cause_to_tell(world: World) -> None:
    receiver = Receiver()
    sender = hooks(world, receiver)
    sender.tick()
    job = world.submit(labels={"works": "9"})
    world.step()
    (attempt,) = world.store.attempts.of_job(job.id)
    about = {"cause": "drift", "step": 40, "layers": {"bn1": 1.5}}

    assert world.store.reports.add_event(attempt.id, attempt.fence, NewEvent("statistics_alert", "bn1: …", about))
    assert world.store.reports.add_event(attempt.id, attempt.fence, NewEvent("statistics_recovered", "bn1: …", about))
    world.clock.advance(5)
    sender.tick()

    told = json.loads(receiver.heard[-1].content)
    assert told["type"] == "job.statistics_alert"
    assert told["data"]["details"] == about
    assert "statistics_alert" in [event.kind for event in world.store.history.events(job.id)]


def test_webhooks_without_a_key_are_refused_at_start() -> None:
    with pytest.raises(ValueError, match="SYNCNORM_WEBHOOK_KEY_FILE"):
        Settings.from_environment({"SYNCNORM_WEBHOOK_URLS": URL})


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422])
def test_refused_event_is_left_out_and_counted_and_later_ones_arrive(world: World, status: int) -> None:
    seen: list[str] = []
    receiver = Receiver(200, status)
    sender = Webhooks(world.store, [URL], SECRET, port_to(receiver), "a", seen.append)

    run_job(world, sender)

    assert receiver.types == ["job.queued", "job.running", "job.finalizing", "job.succeeded"]
    assert seen == ["delivered", "refused", "delivered", "delivered", "delivered"]


def test_receiver_that_is_gone_is_left_alone(world: World) -> None:
    receiver = Receiver(410)

    run_job(world, hooks(world, receiver))

    assert receiver.asked == 1


@pytest.mark.parametrize(
    ("retry_after", "first_heard_s"),
    [("30", 30), ("Thu, 01 Jan 2026 00:01:00 GMT", 60), ("soon", 2), ("-5", 2), ("99999999999", 3600)],
)
def test_receiver_is_asked_again_when_it_says(world: World, retry_after: str, first_heard_s: int) -> None:
    asked_at: list[float] = []

    def receive(_request: httpx.Request) -> httpx.Response:
        asked_at.append((world.clock() - began).total_seconds())
        return httpx.Response(429 if len(asked_at) == 1 else 200, headers={"Retry-After": retry_after})

    began, sender = world.clock(), hooks(world, receive)
    sender.tick()
    world.submit()
    world.clock.advance(3)
    sender.tick()
    while len(asked_at) < 2:
        world.clock.advance(1)
        sender.tick()

    assert asked_at[0] == 3
    assert first_heard_s - 4 <= asked_at[1] - asked_at[0] <= first_heard_s + 1


@pytest.mark.parametrize("odd", ["redirect", "too much", "half a body", "trickle", "silence", "bad gateway"])
def test_odd_answer_is_tried_again_and_delays_no_other_receiver(
    world: World, odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncnorm.service.integrations.webhooks._TOTAL_S", 1.0)
    bent, heard = {"/odd": (ODD | AWAY)[odd]}, {"/odd": 0, "/fine": 0}

    def receive(_method: str, path: str, _sent: object) -> Reply:
        reply = bent.get(path, Reply({}))
        heard[path] += path not in bent
        return reply

    with serving(receive) as url, closing(HttpClient("it")) as http:
        sender = Webhooks(world.store, [f"{url}/odd", f"{url}/fine"], SECRET, http, "a")
        sender.tick()
        for _ in range(3):
            world.submit()
        world.clock.advance(10)
        loops = sender.loops()
        for loop in loops:
            loop.start()
        try:
            with at_most(8):
                eventually(lambda: heard["/fine"] == 3)
            bent.clear()

            def later() -> bool:
                world.clock.advance(60)
                return heard["/odd"] == 3

            eventually(later)
        finally:
            stop_all(loops)


def test_two_receivers_have_a_lease_each(world: World) -> None:
    first, second = (hooks(world, Receiver(), holder) for holder in "ab")
    other = Webhooks(world.store, ["http://other.example/"], SECRET, HttpClient("it"), "b")
    first.tick()
    second.tick()
    other.tick()

    with world.database.read() as connection:
        leases = {row.name: row.holder for row in connection.execute(sa.select(schema.leases))}

    assert sorted(holder for name, holder in leases.items() if name.startswith("webhooks-")) == ["a", "b"]
