"""What `driver.cluster_probe` finds on the hosts of a cluster, for `syncnorm doctor`. Knows neither torch nor Ray."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

TOKEN_FILE, REPORT_FILE = "token", "report.json"
"""Files of a probe: one written by the doctor for every host to read, and the report, written last."""


class Finding(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HostReport(Finding):
    """One host, as a probe process on it sees it. An error is None if the check passed."""

    host: str
    gpus: int
    """As Ray counts them."""
    cuda: str | None
    """CUDA version torch was built for; None: a CPU build."""
    storage_error: str | None
    api_error: str | None
    mlflow_error: str | None
    clock_ahead_s: float | None
    """How far the host's clock is ahead of the API's, to about a second; None if the API did not answer."""


class ClusterReport(Finding):
    """hosts: those that run drivers. missing: those where no probe process could start, with the reason."""

    hosts: list[HostReport]
    missing: dict[str, str]
    collective_error: str | None
