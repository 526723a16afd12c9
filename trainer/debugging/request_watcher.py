"""Waits for requests to this process, for its stacks or a profile of it, and answers through the reporter."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

import httpx

from syncnorm.trainer.contract.profile import ProfileRequest
from syncnorm.trainer.contract.protocol import LONGEST_WAIT_S, Launch, Requests, RequestWatch
from syncnorm.trainer.debugging.thread_stacks import thread_stacks
from syncnorm.trainer.reporting.delivery import client_of
from syncnorm.trainer.reporting.reporter import Reporter

logger = logging.getLogger(__name__)

_PAUSE_S = 5.0
"""Between tries while the service is unavailable or busy."""


class RequestWatcher:
    """A thread that keeps a request open to the service, so that an answer takes no time to arrive.

    It answers while the thread that trains waits in a collective. It can't where native code keeps Python's lock, or
    where the process is stopped: then the service says that this process did not answer.
    """

    def __init__(
        self,
        launch: Launch,
        rank: int,
        reporter: Reporter,
        *,
        client: httpx.Client | None = None,
        on_profile: Callable[[ProfileRequest], None] | None = None,
    ) -> None:
        """Built by the thread whose stack comes first. on_profile: called with a request that names this rank."""
        self._fence = launch.fence
        self._rank = rank
        self._reporter = reporter
        self._on_profile = on_profile
        self._trains = threading.get_ident()
        self._client = client or client_of(launch, timeout_s=LONGEST_WAIT_S + _PAUSE_S)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request watcher", daemon=True)

    def start(self) -> RequestWatcher:
        if self._client is not None:
            self._thread.start()
        return self

    def close(self) -> None:
        """Its thread ends with the request that it has open, within LONGEST_WAIT_S. Nobody waits for it."""
        self._ending.set()
        if self._client is not None:
            self._client.close()

    def _run(self) -> None:
        known: int | None = None
        with suppress(Exception):  # of a client that is closed; looking into a job must never harm it
            while not self._ending.is_set():
                known = self._watch(known)

    def _watch(self, known: int | None) -> int | None:
        """Wait for the next request and answer it; returns the newest request that is known."""
        answer = self._ask(known)
        if answer is None:
            self._ending.wait(_PAUSE_S)
            return known
        if answer.stacks:
            mine = frozenset({threading.get_ident()})
            self._reporter.stacks(answer.newest, thread_stacks(self._trains, without=mine))
        if self._on_profile is not None and answer.profile is not None and self._rank in answer.profile.ranks:
            self._on_profile(answer.profile)
        return answer.newest

    def _ask(self, known: int | None) -> Requests | None:
        """None: the service is not there, or too busy."""
        assert self._client is not None
        body = RequestWatch(fence=self._fence, rank=self._rank, known=known)
        try:
            answer = self._client.post("requests", content=body.model_dump_json())
        except httpx.TransportError:
            return None
        if answer.is_success:
            return Requests.model_validate_json(answer.content)
        if answer.is_client_error and answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
            self._ending.set()  # the attempt was superseded, or this service is too old to ask
        return None
