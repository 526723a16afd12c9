"""What a job's code needs from PyPI, as lines that pip takes. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name


def lines_of_file(name: str, text: str) -> list[str]:
    """The requirements in a requirements.txt, or the dependencies in a pyproject.toml.

    Raises: ValueError for what can't be read, or holds none.
    """
    if name.endswith(".toml"):
        try:
            lines = tomllib.loads(text).get("project", {}).get("dependencies", [])
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{name} must be a TOML file: {error}") from error
    else:
        lines = [part for line in text.splitlines() if (part := line.partition(" #")[0].strip()) and part[0] != "#"]
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"{name} must hold [project] dependencies as a list of texts")
    if not lines:
        raise ValueError(f"{name} must name at least one requirement, got none")
    return lines


def parsed(lines: Sequence[str]) -> list[Requirement]:
    """Raises: ValueError naming the line that is not a requirement."""
    found = []
    for line in lines:
        try:
            found.append(Requirement(line))
        except InvalidRequirement as error:
            why = "options of pip are not taken" if line.startswith("-") else str(error).splitlines()[0]
            raise ValueError(f"must be requirements such as 'kornia>=0.8', got {line!r}: {why}") from error
    return found


def conflicts(lines: Sequence[str], installed: Mapping[str, str]) -> list[str]:
    """A sentence for each requirement that a version which workers have does not meet. installed: version by canonical
    name. Raises: ValueError as in `parsed`."""
    found = []
    for requirement in parsed(lines):
        version = installed.get(canonicalize_name(requirement.name))
        applies = requirement.marker is None or requirement.marker.evaluate()
        if version is not None and applies and not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement} conflicts with {requirement.name} {version}, which the workers have")
    return found
