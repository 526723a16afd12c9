"""Secrets of a job: fetched by each rank from the service into its own environment, and kept out of what it reports."""

from __future__ import annotations

import time

import httpx

from trainer.attempt import ExportRequest, Launch, SecretsRequest, SecretValues
from trainer.spec import SecretRef

_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0)


def fetch(launch: Launch | ExportRequest, client: httpx.Client | None = None) -> dict[str, str]:
    """Value by variable, for every variable of the spec that names a secret.

    Raises: ValueError if one is not there any more, or the service can't be reached for half a minute.
    """
    wanted = {variable for variable, value in launch.spec.env.items() if isinstance(value, SecretRef)}
    if not wanted:
        return {}
    if launch.service_url is None:
        raise ValueError(
            f"env: secrets come from a service; set {', '.join(sorted(wanted))} yourself for a job by hand."
        )
    values = _ask(launch, client)
    if missing := wanted - values.keys():
        raise ValueError(f"env.{min(missing)}: its secret is not there any more. Put it again: syncnorm secret put.")
    return values


def _ask(launch: Launch | ExportRequest, client: httpx.Client | None) -> dict[str, str]:
    url = f"{(launch.service_url or '').rstrip('/')}{launch.secrets_path}"
    body = SecretsRequest(fence=launch.fence).model_dump_json()
    headers = {"Authorization": f"Bearer {launch.token}", "Content-Type": "application/json"}
    with client or httpx.Client(timeout=10, trust_env=False) as http:
        for pause_s in (*_PAUSES_S, None):
            try:
                answer = http.post(url, content=body, headers=headers)
                if answer.is_success:
                    return SecretValues.model_validate_json(answer.content).values
                if not answer.is_server_error:
                    raise ValueError(f"env: the service refused the secrets of this job ({answer.status_code}).")
            except httpx.TransportError:
                pass
            if pause_s is not None:
                time.sleep(pause_s)
    raise ValueError("env: the service could not be reached for the secrets of this job.")
