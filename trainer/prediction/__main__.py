"""`python -m syncnorm.trainer.prediction MODEL OUTPUT VOLUME…`: one mask; prints what was written as JSON.

Exit code 2 with a sentence on standard error for what the user has to change.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from syncnorm.trainer.prediction.volume_mask import predict


def main(model: str, output: str, *files: str) -> int:
    try:
        print(json.dumps(predict(Path(model), files, Path(output))))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
