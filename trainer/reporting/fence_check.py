"""Whether this start of an attempt or export still counts: asked before what nobody takes back later."""

from __future__ import annotations

import httpx

from syncnorm.trainer.contract.protocol import ExportRequest, Heartbeat, Launch
from syncnorm.trainer.errors import ServiceAwayError, SupersededError
from syncnorm.trainer.reporting.service_client import post

_PAUSES_S = (1.0, 2.0, 5.0, *[10.0] * 59)
"""Ten minutes: a service that restarts must not cost a job its end."""


def is_current(launch: Launch | ExportRequest, client: httpx.Client | None = None) -> bool | None:
    """Whether the service knows of no later start; None: it does not answer now. One by hand always counts."""
    return _send_heartbeat(launch, (), client)


def require_current(launch: Launch | ExportRequest, client: httpx.Client | None = None) -> None:
    """Return if this start still counts.

    Raises: SupersededError; ServiceAwayError after ten minutes without an answer: silence is no permission.
    """
    answer = _send_heartbeat(launch, _PAUSES_S, client)
    if answer is None:
        raise ServiceAwayError(
            "the service must say that this start still counts before it publishes, but it did not answer for "
            f"{sum(_PAUSES_S):.0f} s. See whether it runs."
        )
    if not answer:
        raise SupersededError("another start of it has taken over")


def _send_heartbeat(
    launch: Launch | ExportRequest, pauses_s: tuple[float, ...], client: httpx.Client | None
) -> bool | None:
    if launch.service_url is None:
        return True
    beat = Heartbeat(fence=launch.fence, source="asking", phase="finalizing")
    answer = post(launch, launch.heartbeat_path, beat, pauses_s, client)
    return None if answer is None else answer.is_success
