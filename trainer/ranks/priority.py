"""The priority of training among the processes of its host."""

from __future__ import annotations

import os
from contextlib import suppress

NICENESS = 10


def give_way() -> None:
    """Let other processes of this host come first where they need the processor: Ray, MLflow and the service, which
    wait for it rarely and briefly. Alone on its processors, training is as fast as ever.

    On Linux this is of the calling thread and all that it starts. Ray's own workers have a niceness of 15, but not
    those of a job that was submitted with resources of its own (ray 2.60).
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
