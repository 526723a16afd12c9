"""Whether this start of an attempt or export still counts: asked before what nobody takes back later."""

from __future__ import annotations

import httpx

from trainer.attempt import ExportRequest, Heartbeat, Launch
from trainer.control import SupersededError
from trainer.service_api import post

_PAUSES_S = (1.0, 2.0, 5.0, *[10.0] * 59)
"""Ten minutes: a service that restarts must not cost a job its end."""


class ServiceAwayError(RuntimeError):
    """The service could not be asked."""


def confirm(launch: Launch | ExportRequest, client: httpx.Client | None = None) -> None:
    """Return if the service knows of no later start. One that nobody started (a run by hand) always counts.

    Raises: SupersededError; ServiceAwayError after ten minutes without an answer: silence is no permission.
    """
    if launch.service_url is None:
        return
    beat = Heartbeat(fence=launch.fence, source="rank-0", phase="finalizing")
    answer = post(launch, launch.heartbeat_path, beat, _PAUSES_S, client)
    if answer is None:
        raise ServiceAwayError(
            "the service must say that this start still counts before it publishes, but it did not answer for "
            f"{sum(_PAUSES_S):.0f} s. See whether it runs."
        )
    if not answer.is_success:
        raise SupersededError(f"another start has taken over (the service answered {answer.status_code})")
