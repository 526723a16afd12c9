"""Keeps MLflow's server to its own artifacts, whoever asks.

Its clients name addresses that the server itself then opens, with the rights of the user it runs as: the artifact
location of an experiment, or the source of a model version (3.17). Its assistant runs commands and writes files for
everyone who reaches it from its own host. Nothing of ours needs either.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote

ASSISTANT = "/ajax-api/3.0/mlflow/assistant"
"""The path below which MLflow's assistant answers."""


def is_of_assistant(path: str) -> bool:
    """Whether a request for this path would reach the assistant."""
    return path == ASSISTANT or path.startswith(f"{ASSISTANT}/")


def is_within(address: str, root: str) -> bool:
    """Whether an address is the root of the artifacts, or lies below it.

    >>> is_within("s3://bucket/runs/7/artifacts", "s3://bucket/runs")
    True
    >>> is_within("s3://bucket/runs/../secrets", "s3://bucket/runs")
    False
    """
    address, root = unquote(address).rstrip("/"), root.rstrip("/")
    return address == root or (address.startswith(f"{root}/") and ".." not in address.split("/"))


def confine_artifacts() -> None:
    """Let this process open nothing but the artifacts that `--artifacts-destination` names."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
    from mlflow.server.constants import ARTIFACTS_DESTINATION_ENV_VAR
    from mlflow.store.artifact import artifact_repository_registry

    root = os.environ[ARTIFACTS_DESTINATION_ENV_VAR]
    registry: Any = artifact_repository_registry._artifact_repository_registry  # its own method is replaced
    find = registry.get_artifact_repository

    def find_within(artifact_uri: str, *arguments: Any, **options: Any) -> Any:
        if not is_within(artifact_uri, root):
            raise MlflowException(
                f"This server opens only its own artifacts; got {artifact_uri!r}. Leave artifact_location out when you "
                "create an experiment, or open the address with your own client.",
                error_code=PERMISSION_DENIED,
            )
        return find(artifact_uri, *arguments, **options)

    registry.get_artifact_repository = find_within
