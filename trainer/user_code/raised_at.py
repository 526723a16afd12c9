"""Where in a user's code, or in a library of theirs, an error was raised."""

from __future__ import annotations

import sys
import traceback

_NOT_THEIRS = sys.stdlib_module_names | {"lightning", "pytorch_lightning", "syncnorm", "torch", "torchvision"}


def raised_at(error: BaseException) -> str:
    """The innermost such place as `module, line 3, in name`; empty if there is none. It has no path of this host.

    >>> raised_at(ValueError("never raised"))
    ''
    """
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".", maxsplit=1)[0] not in _NOT_THEIRS:
            found = f"{module}, line {line}, in {frame.f_code.co_name}"
    return found
