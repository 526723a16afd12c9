"""The web application in this process over fakes: for tests of the API that need no cluster."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from syncnorm.service.api.app import create_app
from syncnorm.service.api.auth import Authenticator, RateLimit
from syncnorm.service.api.change_notifier import ChangeNotifier
from syncnorm.service.api.components import Components
from syncnorm.service.api.http.http_protocol import bound_connections, make_server
from syncnorm.service.api.middleware import AuditTrail
from syncnorm.service.api.submit_batcher import SubmitBatcher
from syncnorm.service.api.views.job_view import job_view
from syncnorm.service.background.retention_loop import Retention
from syncnorm.service.integrations.http_client import HttpClient
from syncnorm.service.integrations.secrets import Secrets, secrets_key
from syncnorm.service.integrations.webhooks import Webhooks
from syncnorm.service.settings import Settings
from syncnorm.service.storage.code_packages import CodePackages
from syncnorm.service.storage.job_files import JobFiles
from syncnorm.service.studies.publisher import StudyPublisher
from syncnorm.service.telemetry.metrics import Metrics
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World

ADMIN = "admin-token-of-the-tests-0123456789abcdef"
SPEC: dict[str, Any] = {
    "name": "job",
    "project": "demo",
    "model": {"name": "resnet"},
    "data": {"name": "digits", "batch_size": 32},
    "resources": {"workers": 2},
}


@contextmanager
def api(folder: Path, *, auth: bool = False, **settings: Any) -> Iterator[tuple[TestClient, World]]:
    """(client, world). The reconciler ticks only when told to."""
    with fresh_sqlite(folder) as database, api_of(World(folder, database), auth=auth, **settings) as client:
        yield client


@contextmanager
def api_of(world: World, *, auth: bool = False, **settings: Any) -> Iterator[tuple[TestClient, World]]:
    """The same over a world that is there already."""
    world.reconciler.tick()
    app = create_app(context_of(world, world.folder, auth, settings))
    app.router.lifespan_context = _no_lifespan
    with TestClient(app, raise_server_exceptions=False) as client:
        if auth:
            client.headers["Authorization"] = f"Bearer {ADMIN}"
        yield client, world


def context_of(world: World, folder: Path, auth: bool, settings: dict[str, Any]) -> Components:
    metrics = Metrics()
    metrics.watch(world.store, world.reconciler)
    notifier = ChangeNotifier(world.store.history.changes_since)
    names = Settings(home=folder, worker_url="http://nobody", allowed_hosts=("testserver",))
    chosen = replace(names, auth=auth, **settings)
    return Components(
        settings=chosen,
        store=world.store,
        reconciler=world.reconciler,
        tracker=world.tracker,
        notifier=notifier,
        requests=ChangeNotifier(world.store.stacks.requests_since),
        wake=threading.Event(),
        mlflow_uri="http://mlflow",
        local_paths=True,
        authenticator=Authenticator(
            world.store.tokens, world.store.now, ADMIN if auth else None, clock=lambda: world.clock().timestamp()
        ),
        rate=RateLimit(settings.get("rate_limit", 0.0)),
        metrics=metrics,
        audit_trail=AuditTrail(world.store.audit),
        retention=Retention(world.store.retention, world.store.now, chosen, metrics),
        studies=StudyPublisher(
            world.store.studies,
            world.store.leases,
            world.store.now,
            world.study_runs,
            str(folder / "storage"),
            "http://mlflow",
        ),
        inspect=lambda _spec: None,  # a service on a host without torch; tests/stack asks the real one
        webhooks=Webhooks(world.store, (), b"", HttpClient("nobody"), "tests"),
        packages=CodePackages(str(folder)),
        files=JobFiles(str(folder)),
        secrets=Secrets(world.store.secrets, secrets_key(None, folder)),
        submits=SubmitBatcher(
            world.store.jobs,
            world.store.now,
            chosen.max_queued,
            lambda job: job_view(job, "http://mlflow").model_dump(mode="json"),
        ),
    )


@contextmanager
def on_a_socket(app: Any, end_followers: Callable[[], None] = lambda: None) -> Iterator[int]:
    """The port on loopback where the web server of the service answers for `app`."""
    server = make_server(app, end_followers)
    # With its protocol named, as the service does: else small answers wait 40 ms for an ACK.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        bound_connections(listener)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


class _no_lifespan:  # noqa: N801
    """No reconciler thread beside the requests."""

    def __init__(self, app: Any) -> None:
        del app

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...
