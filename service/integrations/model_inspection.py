"""Builds the model of a spec in a separate process with torch; the service itself never loads torch.

The process is forked from a parent that has torch loaded, where there is one, or is started anew. See
docs/explanation/warm-start.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys

from syncnorm.import_path import python_path
from syncnorm.service.confinement import environment_of_jobs
from syncnorm.service.storage.code_packages import CodePackages
from syncnorm.trainer.contract.initial_weights import WeightAccess
from syncnorm.trainer.contract.plan import Inspection, InspectionRequest
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.forkserver.fork_server import ForkServer, Task
from syncnorm.trainer.forkserver.parent_process import ForkError
from syncnorm.trainer.storage.storage import local_copy

logger = logging.getLogger(__name__)

TIMEOUT_S = 120.0
_MODULE = "syncnorm.trainer.worker.model_inspection"
PRELOADED = (_MODULE, "torch.export._trace", "sympy.tensor.tensor")
"""What a parent imports: the inspection, and what torch.export would import in each of them (torch 2.13)."""


def inspect(
    spec: JobSpec,
    packages: CodePackages,
    weights: WeightAccess | None = None,
    mlflow_uri: str = "",
    forks: ForkServer | None = None,
) -> Inspection | None:
    """Conversion and findings for `spec`; None if the process fails, for example without torch on this host. weights:
    what model.init_from may read; None: it is not looked at. forks: None: the process starts anew."""
    request = InspectionRequest(spec=spec.model_dump(mode="json"), weights=weights, mlflow_uri=mlflow_uri)
    environment = python_path(environment_of_jobs(os.environ, own_mlflow=True) | _given(spec))
    try:
        with contextlib.ExitStack() as stack:
            arguments = []
            if spec.code is not None:
                arguments.append(str(stack.enter_context(local_copy(packages.path(spec.code.package)))))
            answer = _answer(Task(_MODULE, arguments, environment, request.model_dump_json().encode()), forks)
        return Inspection.model_validate_json(answer)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        stderr = getattr(error, "stderr", None) or b""
        logger.warning(
            "could not build the model of a spec for its plan; the plan has no findings about layers: %s %s",
            error,
            stderr.decode(errors="replace")[-2000:],
        )
        return None


def _given(spec: JobSpec) -> dict[str, str]:
    """Variables of the spec for its own code. A plan has no secrets, and other specs run no code here."""
    return {name: value for name, value in spec.env.items() if isinstance(value, str)} if spec.has_own_code else {}


def _answer(task: Task, forks: ForkServer | None) -> bytes:
    """Standard output of the task. Raises: subprocess.SubprocessError, OSError."""
    if forks is not None:
        try:
            return forks.run(task, TIMEOUT_S)
        except ForkError as error:
            logger.warning(
                "no warm process for a plan; one that starts anew makes it",
                extra={"error": str(error)},
            )
    command = [sys.executable, "-m", task.module, *task.arguments]
    done = subprocess.run(
        command, input=task.stdin, capture_output=True, timeout=TIMEOUT_S, check=True, env=dict(task.environment)
    )
    return done.stdout
