"""Writes records of ended submissions into Ray's table, as its job manager would: `python fill_ray.py COUNT OWNER`.

Run as a job of that Ray, which then has forgotten nothing of former days.
"""

from __future__ import annotations

import json
import sys
import time

import ray
from ray.dashboard.modules.job.common import JobInfo, JobInfoStorageClient, JobStatus
from ray.experimental.internal_kv import _internal_kv_put


def main(count: int, owner: str) -> None:
    ray.init(log_to_driver=False)
    ended_ms = int(time.time() * 1000)
    for number in range(count):
        name = f"job_{number:026d}-1"
        info = JobInfo(
            status=JobStatus.SUCCEEDED,
            entrypoint="true",
            message="Job finished successfully.",
            start_time=ended_ms - 60_000,
            end_time=ended_ms,
            metadata={"syncnorm": owner, "job_submission_id": name},
            driver_exit_code=0,
        )
        key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id=name).encode()
        _internal_kv_put(key, json.dumps(info.to_json()).encode(), namespace="job")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
