"""What a job takes from the cluster, and when the service gives up."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from syncnorm.trainer.contract.bounds import LONGEST_S
from syncnorm.trainer.contract.spec.values import Part, Workers


class ResourcesSpec(Part):
    """What an attempt takes from the cluster. All of it is reserved at once, or the job waits."""

    workers: Workers = 1
    """Training processes, each with its share of the global batch. Default: 1."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=16)] = 0
    """GPUs of each worker. Default: 0, training on CPUs."""
    cpus_per_worker: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU cores of each worker, loading data included. Default: 1."""
    min_workers: Workers | None = None
    """Makes the job elastic: an attempt starts with as few workers as this if there is no capacity for all. The global
    batch stays data.batch_size * workers, so each worker's share grows, and with it the samples behind the statistics
    of kinds that do not synchronize. The number is chosen when an attempt starts. An attempt with fewer workers stops
    and continues with more once enough capacity has been free for a while. Default: null, always `workers`."""

    wait_for_hosts: bool = False
    """Queue the job although the whole cluster, as it is now, is too small for it; it waits until hosts are added.
    Default: false, such a job is refused when you submit it."""

    @model_validator(mode="after")
    def _ordered(self) -> ResourcesSpec:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers must not exceed workers, got {self.min_workers} > {self.workers}")
        return self


class LimitsSpec(Part):
    """When the service gives up. You can change these while the job is queued, paused or failed."""

    max_failures: Annotated[int, Field(ge=0, le=1000)] = 3
    """Failed attempts after which the job fails; the next attempt continues from the last checkpoint. A restart of the
    whole cluster does not count. Default: 3, enough for lost hosts, few enough for a bug."""
    deadline_s: Annotated[float, Field(ge=1, le=LONGEST_S)] | None = None
    """Seconds from the first start of training until the job is stopped with a checkpoint and fails. Waiting in the
    queue before that is free. Default: null, no deadline."""
    grace_s: Annotated[float, Field(ge=1, le=3600)] = 60
    """Seconds for the last checkpoint when the job is asked to stop; after that its processes are ended. Default:
    60."""
    collective_timeout_s: Annotated[float, Field(ge=10, le=1800)] = 180
    """Seconds that ranks wait for each other in a collective before the attempt ends and names the silent rank.
    Default: 180. At the start they have five minutes to meet, because imports can take one host long."""
