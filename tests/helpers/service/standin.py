"""A driver that trains nothing but speaks trainer/contract/protocol.py: for tests of the service on a real Ray.

`python standin.py FOLDER`. What it does follows from labels of the job: `outcome` (succeeded, failed, silent: no
result at all), `steps`, `step_s`.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from pathlib import Path

import httpx

from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import LAUNCH_FILE, RESULT_FILE, Launch, ModelRecord, Result


def main(folder: Path) -> None:
    launch = Launch.model_validate_json((folder / LAUNCH_FILE).read_text())
    with (folder / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    labels = launch.spec.labels
    steps, step_s = int(labels.get("steps", "3")), float(labels.get("step_s", "0.05"))
    client = httpx.Client(
        base_url=f"{launch.service_url}/internal/v1/attempts/{launch.attempt_id}",
        headers={"Authorization": f"Bearer {launch.token}"},
    )

    def tell(kind: str, **message: object) -> str | None:
        try:
            answer = client.post(f"/{kind}", json={"fence": launch.fence, **message})
        except httpx.HTTPError:
            return None
        if answer.status_code == 409:
            os._exit(0)
        answer.raise_for_status()
        stop: str | None = answer.json()["stop"]
        return stop

    def finish(result: Result) -> None:
        beside = folder / ".result.new"
        beside.write_text(result.model_dump_json())
        beside.rename(folder / RESULT_FILE)
        tell("exit", result=result.model_dump(mode="json"))
        sys.exit(0)

    now = datetime.datetime.now(datetime.UTC).isoformat()
    tell("logs", lines=[{"rank": 0, "seq": 1, "at": now, "level": "INFO", "text": f"from {launch.resume_from}"}])
    first = int(Path(launch.resume_from).read_text()) if launch.resume_from else 0
    for step in range(first, steps):
        stop = tell("heartbeat", source="driver", phase="training", step=step)
        if stop is not None:
            (folder / "checkpoint").write_text(str(step))
            path = str(folder / "checkpoint")
            tell("checkpoints", path=path, step=step, epoch=0, digest="0", size_bytes=1)
            finish(Result(fence=launch.fence, outcome="stopped", step=step, checkpoint=path))
        time.sleep(step_s)
        tell("progress", epoch=0, epochs=1, step=step + 1, steps=steps, metrics={"train/loss": 1 / (step + 1)})
    if labels.get("outcome") == "silent":
        os._exit(0)
    if labels.get("outcome") == "failed":
        reason = FailureReason(labels.get("reason", "user_error"))
        finish(Result(fence=launch.fence, outcome="failed", reason=reason, message="It raised.", step=steps))
    tell("heartbeat", source="driver", phase="finalizing", step=steps)
    model = ModelRecord(uri="models:/m-1", registered=None, certificate={"max_relative_difference": 0.0})
    finish(Result(fence=launch.fence, outcome="succeeded", step=steps, metrics={"val/accuracy": 1.0}, model=model))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
