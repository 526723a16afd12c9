"""Ray starts its worker processes through this script instead of its own `setup_worker.py` (ray 2.60).

`python ray_worker.py default_worker.py ARG… --language=… --serialized-runtime-env-context=…`. Whatever is not plain
Python without a runtime environment of its own is left to Ray's script.
"""

# pathlib would take longer to import than all the rest.
# ruff: noqa: PTH100, PTH118, PTH120

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from syncnorm.trainer.forkserver import launcher

_CONTEXT, _LANGUAGE, _KIND = "--serialized-runtime-env-context=", "--language=", "--worker-type="
SETUP_WORKER = os.path.abspath(__file__)
"""What Ray gets as the path of its setup script."""
_PLAIN = {"env_vars", "py_executable"}


def main(arguments: Sequence[str]) -> NoReturn:
    warm = warm_arguments(arguments)
    environment = environment_of(arguments)
    if warm is not None and environment is not None and launcher.is_wanted(environment):
        launcher.launch(launcher.program(warm, environment, is_module=False))
        os.execve(sys.executable, [sys.executable, *warm], environment)  # Ray's script would first import all of Ray
    script = os.path.join(os.path.dirname(_script(arguments)), "setup_worker.py")
    os.execv(sys.executable, [sys.executable, script, *arguments])


def warm_arguments(arguments: Sequence[str]) -> list[str] | None:
    """Script and arguments of a Python worker; None for any other process, such as one that spills objects."""
    of_setup = (_CONTEXT, _LANGUAGE)
    rest = [argument for argument in arguments if not argument.startswith(of_setup)]
    kinds = [argument[len(_KIND) :] for argument in rest if argument.startswith(_KIND)]
    is_python = f"{_LANGUAGE}PYTHON" in arguments and rest[:1] == [_script(arguments)]
    return rest if is_python and all(kind == "WORKER" for kind in kinds) else None


def environment_of(arguments: Sequence[str]) -> dict[str, str] | None:
    """The variables of the process; None if its runtime environment asks for more than variables."""
    found = [argument[len(_CONTEXT) :] for argument in arguments if argument.startswith(_CONTEXT)]
    context = json.loads(found[-1] or "{}") if found else {}
    variables: Mapping[str, str] = context.get("env_vars") or {}
    python = context.get("py_executable") or sys.executable
    wants_more = any(value for name, value in context.items() if name not in _PLAIN)
    if wants_more or python != sys.executable or any("$" in value for value in variables.values()):
        return None
    return {**os.environ, **variables}


def _script(arguments: Sequence[str]) -> str:
    """Of Ray's worker; its setup script lies beside it."""
    return next((argument for argument in arguments if argument.endswith("default_worker.py")), "")


if __name__ == "__main__":
    main(sys.argv[1:])
