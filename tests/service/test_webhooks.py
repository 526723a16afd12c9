"""Receivers hear of everything in order, once each as far as they can know, and can check who tells them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.jobs import NewEvent
from service.settings import Settings
from service.webhooks import Webhooks
from tests.service.databases import fresh_sqlite
from tests.service.world import World

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


def hooks(world: World, receive: Callable[[httpx.Request], httpx.Response], holder: str = "a") -> Webhooks:
    return Webhooks(world.store, [URL], SECRET, httpx.Client(transport=httpx.MockTransport(receive)), holder)


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


def test_receiver_that_was_away_hears_all_of_it_later(world: World) -> None:
    receiver = Receiver(0, 500, 503, 429, 404)
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
    (attempt,) = world.store.attempts(job.id)
    about = {"cause": "drift", "step": 40, "layers": {"bn1": 1.5}}

    assert world.store.add_worker_event(attempt.id, attempt.fence, NewEvent("statistics_alert", "bn1: …", about))
    assert world.store.add_worker_event(attempt.id, attempt.fence, NewEvent("statistics_recovered", "bn1: …", about))
    world.clock.advance(5)
    sender.tick()

    told = json.loads(receiver.heard[-1].content)
    assert told["type"] == "job.statistics_alert"
    assert told["data"]["details"] == about
    assert "statistics_alert" in [event.kind for event in world.store.events(job.id)]


def test_webhooks_without_a_key_are_refused_at_start() -> None:
    with pytest.raises(ValueError, match="SYNCNORM_WEBHOOK_KEY_FILE"):
        Settings.from_environment({"SYNCNORM_WEBHOOK_URLS": URL})
