"""What is likely to go wrong with a package, seen before a job needs it. Pure, but for what is installed here."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions

OTHER_NAMES = ("pytorch_lightning", "lightning_fabric")
"""A job imports Lightning by either of its names."""
_MOST_NAMED = 8


def hints(sources: Mapping[str, str]) -> list[str]:
    """Sentences for the user. sources: text of every Python file by its path in the package."""
    return list(_hints(sources))


def _hints(sources: Mapping[str, str]) -> Iterator[str]:
    own = {path.partition("/")[0].removesuffix(".py") for path in sources}
    if (folder := _one_too_deep(sources)) is not None:
        yield (
            f"All code lies in {folder}/, so its modules are imported as {folder}.NAME. If you mean NAME, upload the "
            f"folder inside: syncnorm package put …/{folder}"
        )
    for name in sorted(own & (_installed() | sys.stdlib_module_names)):
        yield (
            f"Your {name} takes the place of the module {name} that is installed here, also for libraries that import "
            "it. Rename yours unless you mean that"
        )
    imported = {name for text in sources.values() for name in _imports(text)}
    known = own | _inner(sources) | _installed() | sys.stdlib_module_names | {"syncnorm", *OTHER_NAMES}
    if missing := sorted(imported - known):
        named = ", ".join(missing[:_MOST_NAMED]) + (", …" if len(missing) > _MOST_NAMED else "")
        yield f"It imports {named}, which is not installed here. Name what provides it in code.requirements"


def _one_too_deep(sources: Mapping[str, str]) -> str | None:
    """The only folder of the package, if it is not a package of Python itself."""
    tops = {path.partition("/")[0] for path in sources}
    if len(tops) != 1 or not all("/" in path for path in sources):
        return None
    (folder,) = tops
    return None if f"{folder}/__init__.py" in sources else folder


def _inner(sources: Mapping[str, str]) -> set[str]:
    """Names of modules one folder down, which are found if the upload is corrected."""
    folder = _one_too_deep(sources)
    return {path.split("/")[1].removesuffix(".py") for path in sources} if folder else set()


def _imports(text: str) -> Iterator[str]:
    """Top-level modules that it imports when it is loaded; none of a file that can't be parsed."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@cache
def _installed() -> frozenset[str]:
    return frozenset(name for name in packages_distributions() if name.isidentifier() and not name.startswith("_"))
