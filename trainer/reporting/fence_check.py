"""Asks the service whether this attempt or export is still current, before it does something that can't be undone."""

from __future__ import annotations

import httpx

from syncnorm.trainer.contract.protocol import ExportRequest, Heartbeat, Launch
from syncnorm.trainer.errors import ServiceAwayError, SupersededError
from syncnorm.trainer.reporting.service_client import post

_PAUSES_S = (1.0, 2.0, 5.0, *[10.0] * 59)
"""Ten minutes: a restart of the service must not cost a job its result."""


def is_current(launch: Launch | ExportRequest, client: httpx.Client | None = None) -> bool | None:
    """Whether this start is current; None: the service is unavailable. A start by hand is always current."""
    return _send_heartbeat(launch, (), client)


def require_current(launch: Launch | ExportRequest, client: httpx.Client | None = None) -> None:
    """Return if this start is still current.

    Raises: SupersededError; ServiceAwayError after ten minutes without an answer: silence is no permission.
    """
    answer = _send_heartbeat(launch, _PAUSES_S, client)
    if answer is None:
        raise ServiceAwayError(
            "the service must confirm that this start is still current before it publishes, but it did not answer for "
            f"{sum(_PAUSES_S):.0f} s. Check that it runs."
        )
    if not answer:
        raise SupersededError("a newer start has taken over")


def _send_heartbeat(
    launch: Launch | ExportRequest, pauses_s: tuple[float, ...], client: httpx.Client | None
) -> bool | None:
    if launch.service_url is None:
        return True
    beat = Heartbeat(fence=launch.fence, source="asking", phase="finalizing")
    answer = post(launch, launch.heartbeat_path, beat, pauses_s, client)
    return None if answer is None else answer.is_success
