"""A worker of a running job that sends what it is told to, with an innocent job waiting beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from syncnorm.service.api.app import create_app
from syncnorm.service.jobs.job import Attempt, Job
from syncnorm.service.reconciler.backends import attempt_token
from syncnorm.service.store.database import Database
from syncnorm.trainer.contract.protocol import LogLine
from tests.helpers.service.api import _no_lifespan, context_of
from tests.helpers.service.world import World

TIME = "2026-01-01T00:00:00+00:00"


class Worker:
    """A worker of a running job, and an innocent job that waits beside it."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.world = World(folder, database)
        self.world.cluster.nodes = (("node-1", 2.0, 0.0),)
        self.world.reconciler.tick()
        self.job_id = self.world.submit().id
        self.world.reconciler.tick()
        self.victim_id = self.world.submit(name="victim").id
        self.world.cluster.drivers.clear()  # this test is the worker
        self.context = context_of(self.world, folder, False, {})
        app = create_app(self.context)
        app.router.lifespan_context = _no_lifespan
        self.client = TestClient(app, raise_server_exceptions=False)

    @property
    def attempt(self) -> Attempt:
        return self.world.store.attempts.of_job(self.job_id)[0]

    @property
    def job(self) -> Job:
        return self.world.job(self.job_id)

    def send(self, path: str, /, **body: Any) -> int:
        fence = self.attempt.fence
        content = json.dumps({"fence": fence, **body})
        headers = {"Authorization": f"Bearer {attempt_token(fence)}", "Content-Type": "application/json"}
        url = f"/internal/v1/attempts/{self.attempt.id}/{path}"
        return self.client.post(url, content=content, headers=headers).status_code

    def get(self, path: str) -> Any:
        answer = self.client.get(f"/v1/jobs/{self.job_id}{path}")
        assert answer.status_code == 200, answer.text
        return json.loads(answer.text, parse_constant=pytest.fail)


def lines(first: int, count: int, text: str = "x") -> list[LogLine]:
    return [LogLine(rank=0, seq=first + n, at=TIME, level="INFO", text=f"{first + n} {text}") for n in range(count)]
