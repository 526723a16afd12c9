"""Runs the zoo, architecture by architecture, and keeps what was found in a file of JSON lines.

`python -m tests.helpers.vision.zoo.results RESULTS.jsonl [PART OF A NAME ...]` continues where an earlier call ended.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from syncnorm import norm
from tests.helpers.vision.zoo.architecture import Architecture
from tests.helpers.vision.zoo.catalogue import catalogue
from tests.helpers.vision.zoo.check import Checked, Result

EXPORTED_EVERY = 9
"""Exports take most of the time: each architecture is exported with two kinds, each kind with a ninth of them."""


def results_of(one: Architecture, number: int, kinds: Sequence[str] = ()) -> Iterator[Result]:
    checked = Checked(one.key, *one.make())
    for index, kind in enumerate(norm.kinds()):
        if not kinds or kind in kinds:
            yield checked.check(kind, with_export=(number + index) % EXPORTED_EVERY == 0)
            if checked.model.state_dict().keys() != checked.state.keys():
                checked = Checked(one.key, *one.make())  # a fault has left it converted


def read(path: Path) -> list[Result]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def main(path: Path, wanted: Sequence[str]) -> None:
    done = {result.architecture for result in read(path)}
    for number, one in enumerate(catalogue()):
        if one.key in done or (wanted and not any(part in one.key for part in wanted)):
            continue
        found = list(results_of(one, number))
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(asdict(result))}\n" for result in found)
        faults = [f"  {result.kind}: {fault}" for result in found for fault in result.faults]
        print(one.key, *faults, sep="\n", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
