"""Files for the MLflow run, as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from syncnorm.trainer.contract.protocol import ExportRecord
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.contract.text import storable
from syncnorm.trainer.export.formats import ExportedModel
from syncnorm.trainer.export.forward_inputs import ForwardInputs
from syncnorm.trainer.export.mlflow_registry import ExportIdentity, Registry
from syncnorm.trainer.export.outputs import Array, Outputs

# MLflow waits for minutes by default; an export that can't reach it should say so within one.
MLFLOW_ENVIRONMENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}

STATE_TAG, MESSAGE_TAG = "syncnorm.export_state", "syncnorm.export_message"
_LONGEST_TAG = 5000


class Publisher:
    """Writes to one run of one MLflow server. Never sets the run's status: that is the service's.

    confirm: see Registry; whoever may start an export twice has to give one.
    """

    def __init__(self, mlflow_uri: str, run_id: str, confirm: Callable[[], None] = lambda: None) -> None:
        for name, value in MLFLOW_ENVIRONMENT.items():
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

    def tag_origin(self, init_from: Mapping[str, Any] | None) -> None:
        """Say on the run what weights the job started from, as its certificate does."""
        for name in ("source", "digest"):
            if init_from is not None:
                text = storable(init_from[name], _LONGEST_TAG)
                self._client.set_tag(self._run_id, f"syncnorm.init_from.{name}", text)

    def log_model(self, form: ModelForm, identity: ExportIdentity) -> str:
        """Upload the model, named `model`; its URI. It is pending until `finish_model`.

        MLflow's own log_model would ask for the history of each metric of the run, one by one, and try the model.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model, ModelSignature

        run = self._client.get_run(self._run_id)
        logged = self._client.create_logged_model(
            run.info.experiment_id, "model", self._run_id, identity.tags, run.data.params
        )
        about = Model(
            artifact_path=logged.artifact_location,
            run_id=self._run_id,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            signature=ModelSignature(inputs=_schema(form.example), outputs=_schema(form.answer)),
        )
        with TemporaryDirectory() as folder:
            form.save(path=folder, mlflow_model=about, signature=about.signature, input_example=form.example)
            self._client.log_model_artifacts(logged.model_id, folder)
        self._client.log_outputs(self._run_id, [LoggedModelOutput(logged.model_id, step=0)])
        return f"models:/{logged.model_id}"

    def finish_model(self, uri: str) -> None:
        """Say that the model is ready: it is certified."""
        self._client.finalize_logged_model(_model_id(uri), "READY")

    def load_model(self, uri: str, form: ModelForm) -> Callable[[ForwardInputs], Outputs]:
        """A function that runs the logged model as its users will."""
        import mlflow

        predict = mlflow.pyfunc.load_model(uri).predict
        return lambda inputs: form.read(predict(form.feed(inputs)))

    def delete_model(self, uri: str) -> None:
        self._client.delete_logged_model(_model_id(uri))


def _model_id(uri: str) -> str:
    return uri.rpartition("/")[2]


Example = Array | dict[str, Array]


@dataclass(frozen=True)
class ModelForm:
    """How MLflow keeps and calls a model: with a tensor, or with a dict of tensors.

    save: save_model of its flavor, with what is in it. feed: what it is called with; read: the outputs in its answer.
    """

    save: Callable[..., None]
    example: Example
    answer: Example
    feed: Callable[[ForwardInputs], Example]
    read: Callable[[Any], Outputs]


def form_of(
    network: nn.Module, inputs: ForwardInputs, outputs: Outputs, onnx: ExportedModel | None
) -> ModelForm | None:
    """pt2 for one tensor in and out, ONNX for several; None: there is no ONNX file, so MLflow has no form for it.

    inputs, outputs: examples.
    """
    if inputs.tensor is not None and list(outputs) == [""]:
        return ModelForm(
            partial(_save_pytorch, _OfOneTensor(network)),
            _array(inputs),
            outputs[""],
            _array,
            lambda answer: {"": np.atleast_1d(np.asarray(answer))},
        )
    if onnx is None or onnx.names is None:
        return None
    path, names = onnx.path, onnx.names
    answer = {name: outputs[leaf] for leaf, name in names.outputs.items()}
    return ModelForm(partial(_save_onnx, path), names.feed(inputs), answer, names.feed, names.read)


def no_form(spec: ExportSpec) -> str:
    """Why there is no MLflow model, in a sentence."""
    remedy = "" if "onnx" in spec.formats else " Add onnx to export.formats for a model that takes several tensors."
    return f"This network does not take one tensor and give one, so the run has its files and no MLflow model.{remedy}"


class _OfOneTensor(nn.Module):
    """A network with a forward of one parameter, as MLflow expects it. Its own may be `forward(*args)`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return self.network(x)


def _save_pytorch(network: nn.Module, **arguments: Any) -> None:
    import mlflow

    needs = [f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.split('+')[0]}", "numpy"]
    mlflow.pytorch.save_model(network, pip_requirements=needs, serialization_format="pt2", **arguments)


def _save_onnx(file: Path, **arguments: Any) -> None:
    import mlflow
    import onnx
    import onnxruntime

    needs = [f"{module.__name__}=={module.__version__}" for module in (mlflow, onnx, onnxruntime)]
    mlflow.onnx.save_model(onnx.load(file), pip_requirements=[*needs, "numpy"], **arguments)


def _schema(example: Example) -> Any:
    from mlflow.types import Schema, TensorSpec

    named = example.items() if isinstance(example, dict) else [(None, example)]
    return Schema([TensorSpec(array.dtype, (-1, *array.shape[1:]), name) for name, array in named])


def _array(inputs: ForwardInputs) -> Array:
    assert inputs.tensor is not None
    array: Array = inputs.tensor.cpu().numpy()
    return array
