"""From settings to a running service: every part is built once and passed to the parts that need it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from syncnorm.service.api.app import create_app
from syncnorm.service.api.audit_trail import AuditTrail
from syncnorm.service.api.auth import Authenticator, RateLimit, admin_token
from syncnorm.service.api.change_notifier import ChangeNotifier
from syncnorm.service.api.components import Components
from syncnorm.service.api.http.http_protocol import bound_connections, make_server
from syncnorm.service.api.submit_batcher import SubmitBatcher
from syncnorm.service.api.views.job_view import job_view
from syncnorm.service.background.retention_loop import Retention
from syncnorm.service.confinement import hide_memory, make_private
from syncnorm.service.integrations.http_client import HttpClient
from syncnorm.service.integrations.mlflow_describer import RunDescriber
from syncnorm.service.integrations.mlflow_runs import MlflowTracker
from syncnorm.service.integrations.model_inspection import PRELOADED, inspect
from syncnorm.service.integrations.ray_jobs import ENTRYPOINTS, RayDispatcher, ray_token
from syncnorm.service.integrations.ray_sweep import ClusterSweep
from syncnorm.service.integrations.secrets import Secrets, secrets_key
from syncnorm.service.integrations.webhooks import Webhooks
from syncnorm.service.jobs.admission import against_code
from syncnorm.service.jobs.attempt_ending import Rules
from syncnorm.service.local.programs import LocalRay, Program, local_mlflow, local_ray, supervised
from syncnorm.service.reconciler.backends import AttemptEnvironment, Backends
from syncnorm.service.reconciler.reconciler import Reconciler
from syncnorm.service.scheduling.schedule import Policy
from syncnorm.service.settings import DEFAULT_PORT, WILDCARDS, Settings
from syncnorm.service.storage.circuit_breaker import StorageCircuitBreaker
from syncnorm.service.storage.code_packages import CodePackages
from syncnorm.service.storage.job_files import JobFiles
from syncnorm.service.storage.storage_marker import StorageMarker
from syncnorm.service.storage.weight_sources import weight_access
from syncnorm.service.store import Store
from syncnorm.service.store.database import Database
from syncnorm.service.studies.publisher import StudyPublisher
from syncnorm.service.studies.runs import MlflowStudyRuns
from syncnorm.service.telemetry.metrics import Metrics
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.forkserver.fork_server import ForkServer, is_supported
from syncnorm.trainer.forkserver.parent_memory import memory_of_node

logger = logging.getLogger(__name__)
_LAST_WAIT_S = 1.0
_RAY_STARTS_IN_S = 30.0
"""How long a Ray of our own may take until it answers. It takes 5 s on a fast machine, and 20 s on a loaded one."""
ADDRESS_FILE = "service.json"
"""File in the state folder with the address of the running service, for clients on this host."""


def serve(settings: Settings, on_ready: Callable[[str, Components], None], entrypoint: str | None = None) -> None:
    """Run until SIGINT or SIGTERM.

    on_ready: called with the URL once requests are accepted. entrypoint: command of a driver, to which the folder of
    the attempt or export is added; None: the trainer.
    """
    signal.signal(signal.SIGTERM, _leave)
    _allow_many_connections()
    try:
        with running(settings, entrypoint) as (context, listener, url):
            server = make_server(create_app(context), context.end_followers)
            on_ready(url, context)
            server.run(sockets=[listener])
    except (SystemExit, KeyboardInterrupt) as leaving:
        _leave_stuck_threads(leaving.code if isinstance(leaving, SystemExit) else 130)
        raise


@contextlib.contextmanager
def running(settings: Settings, entrypoint: str | None = None) -> Iterator[tuple[Components, socket.socket, str]]:
    """All parts except the web server: (context, bound socket, URL). Everything that was started is stopped at the
    end."""
    with contextlib.ExitStack() as stack:
        if settings.database_url is None or settings.ray_address is None or settings.mlflow_uri is None:
            settings.home.mkdir(parents=True, exist_ok=True)
            if settings.ray_address is None:
                make_private(settings.home)
            stack.enter_context(_only_one(settings.home))
        if settings.auth:
            hide_memory()
        if settings.database_url is None:
            (settings.home / "service.db").touch(0o600)
        listener = stack.enter_context(contextlib.closing(listen(settings)))
        url = f"http://{_reachable(settings.host)}:{listener.getsockname()[1]}"
        programs: list[Program] = []
        ray, mlflow_uri = _outside(settings), settings.mlflow_uri
        if mlflow_uri is None:
            program, mlflow_uri = stack.enter_context(
                local_mlflow(settings.home, public_url=settings.mlflow_public_url)
            )
            programs.append(program)
        if ray is None:
            program, ray = stack.enter_context(
                local_ray(
                    settings.home,
                    own_mlflow=settings.mlflow_uri is None,
                    warm=settings.warm_jobs and is_supported(),
                )
            )
            programs.append(program)
        stack.enter_context(supervised(programs))
        if entrypoint is not None:
            ray = replace(ray, entrypoints=dict.fromkeys(ENTRYPOINTS, entrypoint))
        context = make_context(settings, ray, mlflow_uri, url, stack)
        stack.enter_context(_address_file(settings.home, url))
        yield context, listener, url


def _outside(settings: Settings) -> LocalRay | None:
    """The cluster named in the settings; its token as Ray itself finds it."""
    if settings.ray_address is None:
        return None
    return LocalRay(settings.ray_address, ray_token(), ENTRYPOINTS)


def make_context(
    settings: Settings, ray: LocalRay, mlflow_uri: str, url: str, stack: contextlib.ExitStack
) -> Components:
    database = stack.enter_context(contextlib.closing(Database(settings.database)))
    database.migrate()
    store = Store(database)
    dispatcher = stack.enter_context(contextlib.closing(_dispatcher(settings, ray, store)))
    tracker = stack.enter_context(contextlib.closing(MlflowTracker(mlflow_uri)))
    notifier, metrics = ChangeNotifier(store.history.changes_since), Metrics()
    environment = AttemptEnvironment(
        settings.storage_root, settings.worker_url or url, mlflow_uri, settings.public_url or url, settings.weights
    )
    marker = StorageMarker(store.installation, settings.storage_root)
    breaker = StorageCircuitBreaker(check=marker.check)
    breaker.is_usable()  # marks a new storage before anything is launched on it
    backends = Backends(store, dispatcher, tracker, environment, notifier.changed, metrics, breaker)
    reconciler = _reconciler(settings, backends)
    metrics.watch(store, reconciler)
    packages = CodePackages(settings.storage_root, marker.check)
    forks = _fork_server(settings, stack)
    first_rest_s = _RAY_STARTS_IN_S if _is_embedded(settings) else 0.0
    sweep = ClusterSweep(dispatcher, store.unreleased_submissions, first_rest_s)
    memories = {"plans": forks.memory} if forks else {}
    if ray.warm is not None:
        memories["jobs"] = functools.partial(memory_of_node, ray.warm)
    metrics.watch_parents(memories)
    links = settings.mlflow_public_url or mlflow_uri
    admin = admin_token(settings.admin_token_file, settings.home) if settings.auth else None
    return Components(
        settings=replace(settings, port=int(url.rsplit(":", 1)[1])),
        store=store,
        reconciler=reconciler,
        tracker=tracker,
        notifier=notifier,
        requests=ChangeNotifier(store.stacks.requests_since),
        wake=threading.Event(),
        mlflow_uri=links,
        local_paths=_is_embedded(settings),
        authenticator=Authenticator(store.tokens, store.now, admin),
        rate=RateLimit(settings.rate_limit),
        metrics=metrics,
        audit_trail=AuditTrail(store.audit),
        inspect=lambda spec: (
            None
            if _must_not_run_here(spec, settings)
            else inspect(spec, packages, weight_access(spec, store, settings.weights), mlflow_uri, forks)
        ),
        packages=packages,
        files=JobFiles(settings.storage_root, marker.check),
        webhooks=_webhooks(settings, store, metrics, stack),
        secrets=Secrets(store.secrets, secrets_key(settings.secrets_key_file, settings.home)),
        submits=SubmitBatcher(
            store.jobs, store.now, settings.max_queued, lambda job: job_view(job, links).model_dump(mode="json")
        ),
        retention=Retention(store.retention, store.now, settings, metrics),
        studies=_study_publisher(settings, store, tracker, links, marker),
        background=(sweep, RunDescriber(store, tracker)),
    )


def _dispatcher(settings: Settings, ray: LocalRay, store: Store) -> RayDispatcher:
    owner, known = _installation(settings), store.unreleased_submissions
    return RayDispatcher(
        ray.url, ray.token or None, ray.entrypoints, owner=owner, known=known, warm=ray.warm is not None
    )


def _reconciler(settings: Settings, backends: Backends) -> Reconciler:
    # Processes of an embedded Ray are ended before the next one starts, so none lives on.
    orphan_life_s = None if _is_embedded(settings) else 60.0
    return Reconciler(
        backends,
        rules=Rules(startup_timeout_s=settings.startup_timeout_s, orphan_life_s=orphan_life_s),
        policy=Policy(max_running=settings.max_running, max_gpus=settings.max_gpus),
        lease_s=settings.lease_s,
        holder="the only one" if settings.database_url is None else None,  # a lock file makes sure of it
        cluster_starts_in_s=_RAY_STARTS_IN_S if _is_embedded(settings) else 0.0,
    )


def _fork_server(settings: Settings, stack: contextlib.ExitStack) -> ForkServer | None:
    """What makes plans warm; None where they are made by processes that start anew."""
    if not settings.warm or not is_supported():
        return None
    return stack.enter_context(contextlib.closing(ForkServer(PRELOADED)))


def _must_not_run_here(spec: JobSpec, settings: Settings) -> bool:
    """Whether a spec brings user code, which could read the keys of a service that other owners share."""
    return settings.auth and not _is_embedded(settings) and bool(against_code(spec))


def _is_embedded(settings: Settings) -> bool:
    return settings.ray_address is None


def _study_publisher(
    settings: Settings, store: Store, tracker: MlflowTracker, links: str, marker: StorageMarker
) -> StudyPublisher:
    runs = MlflowStudyRuns(tracker)
    return StudyPublisher(store.studies, store.leases, store.now, runs, settings.storage_root, links, marker.check)


def _webhooks(settings: Settings, store: Store, metrics: Metrics, stack: contextlib.ExitStack) -> Webhooks:
    secret = settings.webhook_key_file.read_text().strip().encode() if settings.webhook_key_file else b""
    http = stack.enter_context(contextlib.closing(HttpClient("A webhook receiver")))
    holder = f"{socket.gethostname()}-{os.getpid()}"
    return Webhooks(store, settings.webhook_urls, secret, http, holder, metrics.webhook)


def _installation(settings: Settings) -> str:
    """Id of the service that a submission belongs to: several may share one cluster, and each stops only its own
    orphans."""
    return hashlib.sha256(f"{settings.database} {settings.storage_root}".encode()).hexdigest()[:16]


def listen(settings: Settings) -> socket.socket:
    """Bind the port. Raises: OSError if the port that was asked for is taken. Without SYNCNORM_PORT a free one is
    found."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    backends = [settings.port] if settings.port is not None else [DEFAULT_PORT, 0]
    for port in backends:
        # The protocol is named, because asyncio otherwise leaves Nagle's algorithm on: 40 ms for small answers.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, port))
        except OSError:
            listener.close()
            continue
        bound_connections(listener)
        listener.listen(2048)
        return listener
    raise OSError(f"{settings.host}:{settings.port} is taken. Set SYNCNORM_PORT to another port, or unset it.")


def _reachable(host: str) -> str:
    """The address under which this host reaches a listener on `host`."""
    if host in WILDCARDS:
        return "[::1]" if ":" in host else "127.0.0.1"
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Raises: OSError while another service works on the same state folder."""
    with (home / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"another syncnorm service works on {home}. Stop it, or set SYNCNORM_HOME.") from error
        yield


@contextlib.contextmanager
def _address_file(home: Path, url: str) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    path = home / ADDRESS_FILE
    path.write_text(json.dumps({"url": url, "pid": os.getpid()}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _allow_many_connections() -> None:
    """Raise the limit of open files: a follower keeps its connection, and the usual 1,024 would be the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _leave(*_: object) -> NoReturn:
    sys.exit(143)


def _leave_stuck_threads(code: object) -> None:
    """End the process at once if a thread is stuck, for example in a request to MLflow: Python would wait for it."""
    until = time.monotonic() + _LAST_WAIT_S
    others = [one for one in threading.enumerate() if one is not threading.current_thread() and not one.daemon]
    for thread in others:
        thread.join(max(0.0, until - time.monotonic()))
    if stuck := [thread.name for thread in others if thread.is_alive()]:
        logger.warning(
            "threads did not stop in time; the service exits without waiting for them",
            extra={"threads": ", ".join(stuck)},
        )
        logging.shutdown()
        os._exit(code if isinstance(code, int) else 1)
