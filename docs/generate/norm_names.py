"""The page of the public names of syncnorm.norm, with their formulas, from their docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from docs.generate.markdown import docstring, fence, generated, prose, signature, table
from syncnorm import norm

INTRO = """
Everything that `from syncnorm import norm` offers: formulas, shapes, what differs between training and evaluation, the
paper, and an example that the tests run. `pip install 'syncnorm[norm]'` is all you need. Which kind you should choose
is in [Normalizations](normalizations.md). `N` is the batch, `C` the channels, `*` any positions.
"""


def norm_names() -> str:
    groups = {
        "Layers": [name for name in norm.__all__ if _is_layer(getattr(norm, name))],
        "Functions": [name for name in norm.__all__ if inspect.isfunction(getattr(norm, name))],
    }
    grouped = {name for names in groups.values() for name in names}
    groups["Records and errors"] = [name for name in norm.__all__ if name not in grouped]
    sections = [generated("The layers and tools of norm", "the docstrings in norm/", INTRO)]
    kinds = [(f"`{name}`", prose(kind.summary), kind.paper) for name, kind in norm.KINDS.items()]
    sections += ["## Kinds", table(("kind", "what it is", "paper"), kinds)]
    for title, names in groups.items():
        sections += [f"## {title}", *(text for name in names for text in _name(name))]
    return "\n\n".join(sections)


def _is_layer(found: object) -> bool:
    from torch import nn

    return inspect.isclass(found) and issubclass(found, nn.Module)


def _name(name: str) -> Iterator[str]:
    found = getattr(norm, name)
    yield f"### `{name}`"
    if isinstance(found, dict):
        yield "Every normalization by name, with its traits, as `kinds()` gives it."
        return
    if shown := signature(found):
        yield fence(f"norm.{name}{shown.removesuffix(' -> None')}", "python")
    yield docstring(found.__doc__ or "")
