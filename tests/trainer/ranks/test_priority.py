"""Training lets other processes of its host come first."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from syncnorm.trainer.ranks.priority import NICENESS, give_way


def test_training_thread_and_what_it_starts_give_way_and_nothing_else_does() -> None:
    seen: list[int] = []
    code = "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"

    def rank() -> None:
        give_way()
        seen.append(os.getpriority(os.PRIO_PROCESS, 0))
        seen.append(int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout))

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=rank)
    thread.start()
    thread.join()

    assert seen == [max(NICENESS, before)] * 2
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
