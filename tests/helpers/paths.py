"""Where things lie in the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
"""For PYTHONPATH of a process that is to find syncnorm, and nothing else of the checkout."""
EXAMPLES = ROOT / "examples"
