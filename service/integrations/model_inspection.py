"""Builds the model of a spec in a separate process with torch; the service itself never loads torch."""

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
from syncnorm.trainer.storage.storage import local_copy

logger = logging.getLogger(__name__)

TIMEOUT_S = 120.0


def inspect(
    spec: JobSpec, packages: CodePackages, weights: WeightAccess | None = None, mlflow_uri: str = ""
) -> Inspection | None:
    """Conversion and findings for `spec`; None if the process fails, for example without torch on this host. weights:
    what model.init_from may read; None: it is not looked at."""
    request = InspectionRequest(spec=spec.model_dump(mode="json"), weights=weights, mlflow_uri=mlflow_uri)
    environment = python_path(environment_of_jobs(os.environ, own_mlflow=True))
    command = [sys.executable, "-m", "syncnorm.trainer.worker.model_inspection"]
    try:
        with contextlib.ExitStack() as stack:
            if spec.code is not None:
                command.append(str(stack.enter_context(local_copy(packages.path(spec.code.package)))))
            done = subprocess.run(
                command,
                input=request.model_dump_json().encode(),
                capture_output=True,
                timeout=TIMEOUT_S,
                check=True,
                env=environment,
            )
        return Inspection.model_validate_json(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        stderr = getattr(error, "stderr", None) or b""
        logger.warning(
            "could not build the model of a spec for its plan; the plan has no findings about layers: %s %s",
            error,
            stderr.decode(errors="replace")[-2000:],
        )
        return None
