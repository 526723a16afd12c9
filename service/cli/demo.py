"""`make demo`: starts the whole service on free ports, runs one real job to its certificate, and stops everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from syncnorm.import_path import EXAMPLES, python_path
from syncnorm.service.cli import progress as screen
from syncnorm.service.cli.job_files.job_file import load
from syncnorm.service.cli.terminal import Screen, fit, show_value
from syncnorm.service.client.client import Client, ClientError, ServiceUnreachableError

_EXAMPLE = EXAMPLES / "digits-sync-batch.yaml"
_READY_S = 120.0
_STOP_S = 60.0


def main() -> int:
    """0 if the job succeeded, 1 if not."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the service is stopped then, too
    console = Screen()
    home = Path(os.environ.get("SYNCNORM_HOME") or ".syncnorm").resolve()
    try:
        with running_service(home, console) as client:
            job = client.submit(load(_EXAMPLE))
            console.print(f"submitted {_EXAMPLE.name} as {job['id']}")
            job = screen.follow(client, job["id"], console)
            show_value(job, False, screen.summary)
            if job["state"] != "succeeded":
                for line in map(fit, client.logs(job["id"], tail=30)):
                    console.print(f"{line['rank']:>3} {line['text']}", soft_wrap=True)
    except ClientError as error:
        console.print(str(error), style="red")
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 1
    console.print("To explore: run make serve, then open the MLflow address that it prints.")
    return 0 if job["state"] == "succeeded" else 1


@contextmanager
def running_service(home: Path, console: Screen) -> Iterator[Client]:
    """The service as a process of its own, ready for jobs; stopped at the end, with everything it started."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SYNCNORM_")}
    environment = python_path(environment) | {"SYNCNORM_HOME": str(home)}
    with tempfile.TemporaryFile() as log:
        service = subprocess.Popen(
            [sys.executable, "-m", "syncnorm.service.cli.main", "serve"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            with console.status("starting the API, Ray and MLflow"):
                client = _wait_until_ready(service, home)
            with client:
                yield client
        except ServiceUnreachableError:
            log.seek(0)
            console.print(log.read().decode(errors="replace")[-4000:])
            raise
        finally:
            service.terminate()
            service.wait(_STOP_S)


def _wait_until_ready(service: subprocess.Popen[bytes], home: Path) -> Client:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and service.poll() is None:
        if (home / "service.json").exists():
            client = Client(json.loads((home / "service.json").read_text())["url"])
            if client.is_ready():
                return client
            client.close()
        time.sleep(0.3)
    if service.poll() is not None:
        raise ServiceUnreachableError("The service ended before it was ready. Its output is above.")
    raise ServiceUnreachableError(f"The service did not become ready within {_READY_S:.0f} s.")


if __name__ == "__main__":
    sys.exit(main())
