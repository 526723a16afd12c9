"""Files for the MLflow run, as they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from syncnorm.trainer.export.mlflow_registry import ExportIdentity, Registry

Array = NDArray[np.floating[Any]]

# MLflow waits for minutes by default; an export that can't reach it should say so within one.
_MLFLOW_ENVIRONMENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


class Publisher:
    """Writes to one run of one MLflow server. Never sets the run's status: that is the service's.

    confirm: see Registry; whoever may start an export twice has to give one.
    """

    def __init__(self, mlflow_uri: str, run_id: str, confirm: Callable[[], None] = lambda: None) -> None:
        for name, value in _MLFLOW_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import mlflow

        mlflow.set_tracking_uri(mlflow_uri)
        self._client = mlflow.MlflowClient(mlflow_uri)
        self._run_id = run_id
        self.registry = Registry(self._client, run_id, confirm)

    def upload(self, folder: Path, artifact_path: str | None = None) -> None:
        self._client.log_artifacts(self._run_id, str(folder), artifact_path)

    def upload_file(self, path: Path, artifact_path: str) -> None:
        self._client.log_artifact(self._run_id, str(path), artifact_path)

    def log_model(self, network: nn.Module, example: Array, identity: ExportIdentity) -> str:
        """Log `network` as the model named `model` in pt2 form; its URI."""
        import mlflow
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        with torch.no_grad():
            output = network.eval()(torch.from_numpy(example)).numpy()
        signature = ModelSignature(
            inputs=Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]))]),
            outputs=Schema([TensorSpec(output.dtype, (-1, *output.shape[1:]))]),
        )
        # Without it the model would belong to MLflow's default experiment, where our account may have no access.
        mlflow.set_experiment(experiment_id=self._client.get_run(self._run_id).info.experiment_id)
        info = Model.log(
            artifact_path=None,
            name="model",
            flavor=mlflow.pytorch,
            run_id=self._run_id,
            pytorch_model=network,
            serialization_format="pt2",
            signature=signature,
            tags=identity.tags,
            input_example=example,
            pip_requirements=[f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.split('+')[0]}", "numpy"],
        )
        return str(info.model_uri)

    def load_model(self, uri: str) -> Any:
        """A function from input to output arrays that runs the logged model as its users will."""
        import mlflow

        return mlflow.pyfunc.load_model(uri).predict

    def delete_model(self, uri: str) -> None:
        self._client.delete_logged_model(uri.rsplit("/", 1)[-1])
