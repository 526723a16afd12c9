"""Runs programs one after the other with the same names, as a Python prompt does: one JSON text a line, from stdin."""

import json
import sys
import traceback

ENDED = "program ended:"


def _run(program: str, names: dict[str, object]) -> bool:
    try:
        exec(compile(program, "page", "exec"), names)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        return False
    return True


if __name__ == "__main__":
    sys.path[0] = ""
    names: dict[str, object] = {"__name__": "__main__"}
    for line in sys.stdin:
        result = "well" if _run(json.loads(line), names) else "badly"
        print(f"\n{ENDED} {result}", flush=True)
