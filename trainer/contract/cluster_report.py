"""What `driver.cluster_probe` finds on the hosts of a cluster, for `syncnorm doctor`. Knows neither torch nor Ray."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

TOKEN_FILE, REPORT_FILE = "token", "report.json"
"""Written by the doctor, for every host to read, and by the probe, last."""


class Finding(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HostReport(Finding):
    """One host, seen by a process of ours on it. An error is None where the thing works."""

    host: str
    gpus: int
    """As Ray counts them."""
    cuda: str | None
    """CUDA version torch was built for; None: a CPU build."""
    storage_error: str | None
    api_error: str | None
    mlflow_error: str | None
    clock_ahead_s: float | None
    """Of the API's clock, to about a second; None where the API did not answer."""


class ClusterReport(Finding):
    """hosts: those that take drivers. missing: those where no process of ours could start, with the reason."""

    hosts: list[HostReport]
    missing: dict[str, str]
    collective_error: str | None
