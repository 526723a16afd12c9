"""`python -m syncnorm.service.local.ray_head start …`: Ray's own command, without the servers that we don't use.

Neither has a switch (ray 2.60): Ray Client's server starts where its dependencies are installed, and of the ten
modules of the dashboard we use three. The others would take 130 MB and wake up all the time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from syncnorm.trainer.forkserver.launcher import FOLDER
from syncnorm.trainer.forkserver.ray_worker import SETUP_WORKER

USED = ("JobHead", "NodeHead", "ReportHead")
"""Modules of the dashboard: submissions, which go to the node that NodeHead calls the head, and free capacity."""


def main() -> None:
    from ray._private import ray_constants, services
    from ray.scripts import scripts as command_line

    scripts: Any = command_line  # not typed
    scripts.get_ray_client_dependency_error = lambda: ImportError("not wanted")
    services.start_ray_process = _with_used_modules(services.start_ray_process, ray_constants.PROCESS_TYPE_DASHBOARD)
    if FOLDER in os.environ:
        # Ray joins the folder of its own script and this path, and an absolute path wins (ray 2.60).
        ray_constants.SETUP_WORKER_FILENAME = SETUP_WORKER
    sys.argv[0] = "ray"
    scripts.main()


def _with_used_modules(start: Callable[..., Any], dashboard: str) -> Callable[..., Any]:
    def started(command: Sequence[str], process_type: str, *arguments: Any, **options: Any) -> Any:
        used = [f"--modules-to-load={','.join(USED)}"] if process_type == dashboard else []
        return start([*command, *used], process_type, *arguments, **options)

    return started


if __name__ == "__main__":
    main()
