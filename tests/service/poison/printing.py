"""A driver whose ranks print without end, as fast as their reporters take it: `python printing.py FOLDER`.

All ranks (label `ranks`) are threads of this process, each with the trainer's own reporter.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from pathlib import Path

from syncnorm.trainer.contract.protocol import LAUNCH_FILE, RESULT_FILE, Launch, Result
from syncnorm.trainer.reporting.reporter import Reporter

_LINE = "step {:>8} loss 0.12345 " + "x" * 76
_BURST = 50
"""Lines between two rests of 10 ms: 8 ranks of it are some 40,000 lines a second, far more than can be sent."""


def main(folder: Path) -> None:
    launch = Launch.model_validate_json((folder / LAUNCH_FILE).read_text())
    if launch.spec.labels.get("ranks") is None:
        end(folder, launch, "succeeded")
        return
    driver = Reporter(launch, -1).start()
    driver.enter("training")
    ranks = [Reporter(launch, rank).start() for rank in range(int(launch.spec.labels["ranks"]))]
    for rank in ranks:
        rank.enter("training")
        threading.Thread(target=talk, args=(rank,), daemon=True).start()
    while driver.stop_request is None and not driver.superseded:
        time.sleep(0.2)
    end(folder, launch, "stopped")


def talk(rank: Reporter) -> None:
    for number in itertools.count():
        rank.log("INFO", _LINE.format(number))
        if number % _BURST == 0:
            rank.progress(epoch=0, epochs=1, step=number, steps=10**9, metrics={f"m{n}": 0.5 for n in range(40)})
            time.sleep(0.01)


def end(folder: Path, launch: Launch, outcome: str) -> None:
    result = Result(fence=launch.fence, outcome=outcome)  # type: ignore[arg-type]
    beside = folder / ".result.new"
    beside.write_text(result.model_dump_json())
    beside.rename(folder / RESULT_FILE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
