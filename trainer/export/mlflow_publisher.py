"""Files for the MLflow run, as they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from syncnorm.trainer.contract.protocol import ExportRecord
from syncnorm.trainer.contract.text import storable
from syncnorm.trainer.export.forward_inputs import ForwardInputs
from syncnorm.trainer.export.mlflow_registry import ExportIdentity, Registry
from syncnorm.trainer.export.outputs import Array, Outputs

# MLflow waits for minutes by default; an export that can't reach it should say so within one.
_MLFLOW_ENVIRONMENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}

STATE_TAG, MESSAGE_TAG = "syncnorm.export_state", "syncnorm.export_message"
_LONGEST_TAG = 5000


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

    def tag(self, export: ExportRecord) -> None:
        """Say on the run how the job's export went."""
        self._client.set_tag(self._run_id, STATE_TAG, export.state)
        if export.message:
            self._client.set_tag(self._run_id, MESSAGE_TAG, storable(export.message, _LONGEST_TAG))

    def log_model(self, network: nn.Module, inputs: ForwardInputs, outputs: Outputs, identity: ExportIdentity) -> str:
        """Log `network` as the model named `model` in pt2 form; its URI. inputs, outputs: examples."""
        import mlflow
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        example, answer = _array(inputs), next(iter(outputs.values()))
        signature = ModelSignature(
            inputs=Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]))]),
            outputs=Schema([TensorSpec(answer.dtype, (-1, *answer.shape[1:]))]),
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

    def load_model(self, uri: str) -> Callable[[ForwardInputs], Outputs]:
        """A function that runs the logged model as its users will."""
        import mlflow

        predict = mlflow.pyfunc.load_model(uri).predict
        return lambda inputs: {"": np.atleast_1d(np.asarray(predict(_array(inputs))))}

    def delete_model(self, uri: str) -> None:
        self._client.delete_logged_model(uri.rsplit("/", 1)[-1])


def problem_of_model(inputs: ForwardInputs, outputs: Outputs) -> str | None:
    """Why there can be no MLflow model with these inputs and outputs, in a sentence; None: there can."""
    if inputs.tensor is not None and list(outputs) == [""]:
        return None
    gives = f"the outputs {', '.join(outputs)}" if len(outputs) > 1 else "one output"
    takes = "one tensor" if inputs.tensor is not None else "other arguments"
    return (
        f"An MLflow model takes one tensor and gives one, but this network takes {takes} and gives {gives}, so the run "
        "has its weights and files and no model."
    )


def _array(inputs: ForwardInputs) -> Array:
    assert inputs.tensor is not None
    array: Array = inputs.tensor.cpu().numpy()
    return array
