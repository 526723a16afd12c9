"""How other processes find this package, and nothing that lies beside it in a checkout.

The root of a checkout holds the folders norm, trainer and service. On `sys.path` it would offer them under these names,
and a user's `import trainer` would get ours. `src/` of a checkout holds `syncnorm` alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
"""The folder of this package."""
_ROOT = PACKAGE.parent
EXAMPLES = PACKAGE / "examples"
"""Job files that come with the package."""
_IS_CHECKOUT = (PACKAGE / "trainer").is_symlink()


def python_path(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for another process of this interpreter, which is to find the same `syncnorm` as this one.

    An installed package is found as it is. Of a checkout, `src/` comes first on PYTHONPATH.
    """
    if not _IS_CHECKOUT:
        return dict(environ)
    paths = filter(None, [str(_ROOT / "src"), environ.get("PYTHONPATH")])
    return {**environ, "PYTHONPATH": os.pathsep.join(paths)}


def without_checkout(path: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """`path`, as in `sys.path`, with `src/` of a checkout in place of its root, which `python -m` and Ray put there.

    A root that PYTHONPATH of `environ` names stays: somebody wants it.
    """
    wanted = environ.get("PYTHONPATH", "").split(os.pathsep)
    if not _IS_CHECKOUT or any(map(_is_root, filter(None, wanted))):
        return list(path)
    return list(dict.fromkeys(str(_ROOT / "src") if _is_root(entry) else entry for entry in path))


def _is_root(entry: str) -> bool:
    return Path(entry or ".").resolve() == _ROOT
