"""Prints what pyproject.toml needs together with the extras named: `python requirements.py server,worker,s3`."""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]


def of_extras(names: str) -> Iterator[str]:
    """Requirements of extras, comma separated; an extra that names others of our own brings theirs."""
    for name in filter(None, names.split(",")):
        if name not in project["optional-dependencies"]:
            known = ", ".join(project["optional-dependencies"])
            sys.exit(f"EXTRAS must name extras of syncnorm ({known}), got {name!r}.")
        for requirement in project["optional-dependencies"][name]:
            ours = re.fullmatch(rf"{project['name']}\[(.*)\]", requirement)
            yield from of_extras(ours[1]) if ours else [requirement]


print("\n".join(dict.fromkeys([*project["dependencies"], *of_extras(sys.argv[1])])))
