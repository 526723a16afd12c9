"""Writes docs/reference/zoo.md from the results of the zoo.

`python -m tests.helpers.vision.zoo.page RESULTS.jsonl`, after `python -m tests.helpers.vision.zoo.results`.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from syncnorm import norm
from tests.helpers.paths import ROOT
from tests.helpers.vision.zoo.catalogue import catalogue
from tests.helpers.vision.zoo.check import Result
from tests.helpers.vision.zoo.results import EXPORTED_EVERY, read

PAGE = ROOT / "docs" / "reference" / "zoo.md"
CELLS = {"same": "=", "other": "~", "refused": "no", "none": ""}
HEAD = f"""# Normalizations on networks of other libraries

You can look up here what `norm.convert` does to a network that you know. Each network was built small, with random
weights, and went through these steps with every kind of normalization: convert, forward, backward, audit, fold, export
and revert. `tests/vision/test_zoo.py` repeats that, and this page is generated from what it finds.

```python
model, replacements = norm.convert(model, "sync_batch")
for replacement in replacements:
    print(replacement.path, replacement.before, replacement.after, replacement.note)
```

- `=`: the converted network is the same function in eval mode, to rounding.
- `~`: it is another function, as the kind means, or as a note in the replacements says.
- `no`: refused with a sentence, and the network stays as it was. The sentences are listed below.
- An empty cell: the network has no channel normalization that this kind replaces, and nothing is changed.
- A number after the sign: a fault, listed below.

The networks are built as if they had learned a little: no weight is left that starts as zeros. In each cell, `revert`
gave back every class, every value of the state_dict and every output bit for bit. `fold` kept the function of the
converted network. Exports with `torch.export` were compared with the network for one kind in {EXPORTED_EVERY} of each
network. The column `folded` says how many layers `fold` absorbs after `sync_batch`.
"""

NOTES = {
    "ultralytics": (
        "Its licence is AGPL-3.0, so it is not among the packages that our tests install, and nothing of syncnorm uses",
        "it. If you have it, `tests/vision/test_zoo.py` runs these networks, too.\n",
    ),
}


def page(results: Sequence[Result], missing: Sequence[str] = ()) -> str:
    """missing: networks of the zoo that have not run with every kind yet."""
    by_network: dict[str, dict[str, Result]] = defaultdict(dict)
    for result in results:
        by_network[result.architecture][result.kind] = result
    return "\n".join([HEAD, *_tables(by_network), *_refusals(results), *_faults(results), *_missing(missing)]) + "\n"


def row(found: dict[str, Result]) -> str:
    """The line of a network."""
    cells = [CELLS[one.effect] + (f" {len(one.faults)}" if one.faults else "") for one in found.values()]
    sync = found["sync_batch"]
    name = sync.architecture.partition("/")[2]
    return f"| {' | '.join([name, f'{sync.folded} of {sync.layers}', *cells])} |"


def _tables(by_network: dict[str, dict[str, Result]]) -> Iterator[str]:
    libraries = dict.fromkeys(key.partition("/")[0] for key in by_network)
    head = " | ".join(kind.replace("_", " ") for kind in norm.kinds())
    for library in sorted(libraries, key=str.lower):
        yield f"## {library} {version(library)}\n"
        yield from NOTES.get(library, ())
        yield f"| network | folded | {head} |"
        yield f"|---|---|{'---|' * len(norm.kinds())}"
        yield from sorted(row(found) for key, found in by_network.items() if key.startswith(f"{library}/"))
        yield ""


def _refusals(results: Sequence[Result]) -> Iterator[str]:
    networks: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for one in results:
        if one.refusal:
            begins = re.split(r"[,:.] ", one.refusal.removeprefix("In a forward: ").removeprefix("In training: "))[0]
            networks[one.kind, begins][one.architecture] = one.refusal
    yield "## Refusals\n\n| kind | networks | for example | sentence |\n|---|---|---|---|"
    for (kind, _), sentences in sorted(networks.items()):
        name, sentence = next(iter(sentences.items()))
        text = sentence.replace("|", "\\|").replace("\n", " ")
        yield f"| {kind} | {len(sentences)} | {name} | {text} |"
    yield ""


def _faults(results: Sequence[Result]) -> Iterator[str]:
    found = [f"| {one.architecture} | {one.kind} | {fault} |" for one in results for fault in one.faults]
    exports = [one.exported for one in results if one.exported is not None]
    networks = len({one.architecture for one in results})
    yield f"## Faults\n\n{networks} networks, {len(results)} cells, {len(exports)} exports, {len(found)} faults."
    if found:
        yield "\n| network | kind | what |\n|---|---|---|"
        yield from found


def _missing(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"\nAlso in the zoo, but not run with every kind yet: {', '.join(sorted(names))}."


if __name__ == "__main__":
    if not (found := read(Path(sys.argv[1]))):
        sys.exit(f"{sys.argv[1]} must hold the results of the zoo. Run tests.helpers.vision.zoo.results with it first.")
    left = {one.key for one in catalogue()} - {result.architecture for result in found}
    PAGE.write_text(page(found, sorted(left)), encoding="utf-8")
