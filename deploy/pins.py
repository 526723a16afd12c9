"""Prints the exact versions for requirements on standard input: `python pins.py < requirements.txt`.

torchvision, timm, MONAI and what goes with them are tested with a newer torch than ours, which they bring.
"""

import re
import sys
from pathlib import Path


def pins(file: str) -> dict[str, str]:
    """Lines of a file of pins by the name of the package."""
    lines = Path(file).read_text().splitlines()
    return {line.split("==")[0].lower(): line for line in lines if "==" in line}


ours, of_vision = pins("constraints.txt"), pins("constraints-vision.txt")
wanted = {re.split(r"[\s\[<>=!~;]", line)[0].lower() for line in sys.stdin}
print("\n".join({**ours, **(of_vision if wanted & (of_vision.keys() - ours.keys()) else {})}.values()))
