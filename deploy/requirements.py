"""Prints the dependencies in pyproject.toml, with those of the extras named: `python requirements.py server,s3`."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [name for name in sys.argv[1].split(",") if name]
chosen = [line for name in extras for line in project["optional-dependencies"][name]]
print("\n".join([*project["dependencies"], *chosen]))
