"""The published weights of a model in MLflow: those of one of our jobs, or tensors in a file of the model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncnorm.trainer.contract.text import name_some
from syncnorm.trainer.export.certification import Place
from syncnorm.trainer.export.mlflow_publisher import MLFLOW_ENVIRONMENT
from syncnorm.trainer.export.weights import WEIGHTS_FILE
from syncnorm.trainer.storage.atomic_files import sha256_of

_FIELD = "model.init_from.model"
_STATE_DICTS = ("state_dict.pth", "state_dict.pt")


@dataclass(frozen=True)
class ModelFile:
    """A file with the weights of a model. about: where it came from, in words."""

    path: Path
    about: str


def fetch_model(uri: str, mlflow_uri: str, folder: Path) -> ModelFile:
    """Download the weights of the model to `folder`.

    Raises: ValueError naming the field if there is no such model, or none with weights that can be read.
    """
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient(mlflow_uri)
    try:
        tags, run_id, about = _facts(client, uri)
        if "syncnorm.weights" in tags and run_id:
            return _of_ours(mlflow, mlflow_uri, run_id, tags, about, folder)
        return _of_others(mlflow, mlflow_uri, uri, about, folder)
    except (MlflowException, OSError) as error:
        code = getattr(error, "error_code", "")
        if code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            raise ValueError(f"{_FIELD}: MLflow has no model {uri}: {error}") from error
        raise ValueError(f"{_FIELD}: {uri} can't be read from MLflow: {error}") from error


def _facts(client: Any, uri: str) -> tuple[dict[str, str], str | None, str]:
    """Tags, run and name of a model."""
    name = uri.removeprefix("models:/")
    if "@" in name:
        version = client.get_model_version_by_alias(*name.rsplit("@", 1))
    elif "/" in name:
        title, number = name.rsplit("/", 1)
        version = _newest(client, title) if number == "latest" else client.get_model_version(title, number)
    else:
        model = client.get_logged_model(name)
        return dict(model.tags), model.source_run_id, f"model {name}"
    return dict(version.tags), version.run_id, f"model {version.name}/{version.version}"


def _newest(client: Any, title: str) -> Any:
    versions = client.search_model_versions(f"name = '{title}'")
    if not versions:
        raise ValueError(f"{_FIELD}: MLflow has no versions of {title!r}.")
    return max(versions, key=lambda version: int(version.version))


def _of_ours(mlflow: Any, uri: str, run_id: str, tags: dict[str, str], about: str, folder: Path) -> ModelFile:
    inside = Place(folder, tags.get("syncnorm.export", "1")).artifact_path
    got = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path=f"{inside}/{WEIGHTS_FILE}", dst_path=str(folder), tracking_uri=uri
    )
    if sha256_of(Path(got)) != tags["syncnorm.weights"]:
        raise ValueError(f"{_FIELD}: the weights of {about} must have the digest that its tag names, but have another.")
    return ModelFile(Path(got), f"{about} of job {tags.get('syncnorm.job_id', 'unknown')}")


def _of_others(mlflow: Any, tracking: str, uri: str, about: str, folder: Path) -> ModelFile:
    found: list[str] = []
    todo = [""]
    while todo:
        for one in mlflow.artifacts.list_artifacts(
            artifact_uri=f"{uri}/{todo.pop()}".rstrip("/"), tracking_uri=tracking
        ):
            (todo if one.is_dir else found).append(one.path)
    usable = [name for name in found if name.endswith((".safetensors", *_STATE_DICTS))]
    if len(usable) != 1:
        has = name_some(sorted(usable or found), 6)
        raise ValueError(
            f"{_FIELD}: {about} must hold its weights in one file of safetensors, or in {_STATE_DICTS[0]}; it has "
            f"{has}. A pickled model is code and is not read: log its state_dict, or name a file."
        )
    got = mlflow.artifacts.download_artifacts(
        artifact_uri=f"{uri}/{usable[0]}", dst_path=str(folder), tracking_uri=tracking
    )
    return ModelFile(Path(got), about)
