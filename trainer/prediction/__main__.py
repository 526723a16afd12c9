"""`python -m syncnorm.trainer.prediction MODEL OUTPUT WINDOWS VOLUME…`: one mask; prints what was written as JSON.

WINDOWS: `separate` or `joint`, or `-` for what the job was validated by.
Exit code 2 with a sentence on standard error for what the user has to change.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from syncnorm.trainer.prediction.volume_mask import How, predict


def main(model: str, output: str, windows: str, *files: str) -> int:
    how: How | None = "joint" if windows == "joint" else "separate" if windows == "separate" else None
    try:
        print(json.dumps(predict(Path(model), files, Path(output), how)))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
