"""Secrets of a job: each rank fetches them into its environment and keeps them out of its reports."""

from __future__ import annotations

import httpx

from syncnorm.trainer.contract.protocol import ExportRequest, Launch, SecretsRequest, SecretValues
from syncnorm.trainer.contract.spec import SecretRef
from syncnorm.trainer.reporting.service_client import post

_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0)


def fetch(launch: Launch | ExportRequest, client: httpx.Client | None = None) -> dict[str, str]:
    """Value by variable, for every variable of the spec that names a secret.

    Raises: ValueError if a secret was deleted, or the service is unreachable for half a minute.
    """
    wanted = {variable for variable, value in launch.spec.env.items() if isinstance(value, SecretRef)}
    if not wanted:
        return {}
    if launch.service_url is None:
        raise ValueError(
            f"env: secrets come from a service; set {', '.join(sorted(wanted))} yourself for a job by hand."
        )
    values = _request(launch, client)
    if missing := wanted - values.keys():
        raise ValueError(f"env.{min(missing)}: its secret was deleted. Store it again: syncnorm secret put.")
    return values


def _request(launch: Launch | ExportRequest, client: httpx.Client | None) -> dict[str, str]:
    answer = post(launch, launch.secrets_path, SecretsRequest(fence=launch.fence), _PAUSES_S, client)
    if answer is None:
        raise ValueError("env: the service could not be reached for the secrets of this job.")
    if not answer.is_success:
        raise ValueError(f"env: the service refused the secrets of this job ({answer.status_code}).")
    return SecretValues.model_validate_json(answer.content).values
