"""Finds the modules and parameters of a network that globs over module paths name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from syncnorm.trainer.contract.text import name_some


@dataclass(frozen=True, eq=False)
class Matches:
    """The first glob, by its number, that covers each parameter and each module."""

    parameters: dict[nn.Parameter, int]
    modules: dict[nn.Module, int]


def match(network: nn.Module, globs: Sequence[str], field: str) -> Matches:
    """What each of `globs` names in `network`; the first one wins.

    A glob names a module with all that is in it, or a parameter: `backbone.*` covers backbone.bn1.weight, and
    `backbone` does, too. What has several paths is named by any of them.

    Raises: ValueError beginning with `field`, if a glob names nothing; it tells which paths come near.
    """
    modules = [(path, module) for path, module in network.named_modules(remove_duplicate=False) if path]
    parameters = list(network.named_parameters(remove_duplicate=False))
    paths = [path for path, _ in [*modules, *parameters]]
    covered: list[set[str]] = []
    for glob in globs:
        covered.append({path for path in paths if _covers(glob, path)})
        if not covered[-1]:
            raise ValueError(
                f"{field}: {glob!r} must match a module or a parameter of the network. {_near(glob, paths)}"
            )
    found = Matches({}, {})
    for number, names in reversed(list(enumerate(covered))):
        found.parameters.update({parameter: number for path, parameter in parameters if path in names})
        found.modules.update({module: number for path, module in modules if path in names})
    return found


def _covers(glob: str, path: str) -> bool:
    """Whether the glob matches the path or that of a module around it."""
    parts = path.split(".")
    return any(fnmatchcase(".".join(parts[:end]), glob) for end in range(len(parts), 0, -1))


def _near(glob: str, paths: Sequence[str]) -> str:
    close = difflib.get_close_matches(glob.rstrip(".*"), paths, n=3, cutoff=0.5)
    if close:
        return f"Near it {'is' if len(close) == 1 else 'are'} {', '.join(close)}."
    outermost = list(dict.fromkeys(path.partition(".")[0] for path in paths))
    return f"Its parts are {name_some(outermost)}."
