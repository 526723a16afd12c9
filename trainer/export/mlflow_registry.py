"""Publishes models so that each export appears once in MLflow, however often it is started.

MLflow does not accept ids that were chosen beforehand, so models and versions carry tags that name the export and the
weights, and are looked up before new ones are made. If two starts overtake each other, both keep the oldest. A start
that is still current removes the other leftovers of the export.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

CERTIFICATE_TAG = "syncnorm.certificate"
"""Tag of a version: SHA-256 of its certificate."""
_PAGE = 100


@dataclass(frozen=True)
class ExportIdentity:
    """The export that a model belongs to, whichever start published it; export `1` is the job's own. weights: their
    SHA-256."""

    job_id: str
    export: str
    weights: str

    @property
    def tags(self) -> dict[str, str]:
        return {"syncnorm.job_id": self.job_id, "syncnorm.export": self.export, "syncnorm.weights": self.weights}

    @property
    def filter(self) -> str:
        """Filter for MLflow that finds everything of this export, with any weights."""
        return f"tags.`syncnorm.job_id` = '{self.job_id}' AND tags.`syncnorm.export` = '{self.export}'"

    def is_on(self, tags: dict[str, str]) -> bool:
        return self.tags.items() <= tags.items()


class Registry:
    """Logged models of one run, and versions of registered models.

    client: an mlflow.MlflowClient. confirm: raises SupersededError if this start is no longer current; called before
    anything is registered or removed.
    """

    def __init__(self, client: Any, run_id: str, confirm: Callable[[], None]) -> None:
        self._client = client
        self._run_id = run_id
        self._confirm = confirm

    def logged(self, identity: ExportIdentity) -> str | None:
        """URI of the oldest complete model with this mark; None: no start has come so far."""
        whole = (
            model for model in self._models(identity) if str(model.status) == "READY" and identity.is_on(model.tags)
        )
        return next((_uri(model) for model in whole), None)

    def register(self, uri: str, name: str, identity: ExportIdentity, certificate: str) -> tuple[str, str]:
        """(`name/version`, URI of its model) of the oldest version with this mark; `uri` becomes it if there is none.

        certificate: its SHA-256. Raises: SupersededError, and nothing is registered.
        """
        import mlflow

        self._confirm()
        if not self._versions(name, identity):
            with redirect_stderr(io.StringIO()):  # it tells the terminal of each of its steps
                mlflow.register_model(uri, name, tags=identity.tags | {CERTIFICATE_TAG: certificate})
        kept = self._versions(name, identity)[0]
        if kept.tags.get(CERTIFICATE_TAG) != certificate:
            self._client.set_model_version_tag(name, kept.version, CERTIFICATE_TAG, certificate)
        logger.info("registered as version %s of %s", kept.version, name)
        return f"{name}/{kept.version}", kept.source

    def remove_others(self, uri: str, registered: str | None, identity: ExportIdentity) -> None:
        """Remove leftovers of earlier starts of this export: everything except this model and this version."""
        name, _, number = (registered or "").rpartition("/")
        versions = [one for one in self._found(name, identity) if str(one.version) != number] if name else []
        models = [model for model in self._models(identity) if _uri(model) != uri]
        if versions or models:
            self._confirm()
        for version in versions:
            with _gone_already():
                self._client.delete_model_version(name, version.version)
        for model in models:
            with _gone_already():
                self._client.delete_logged_model(model.model_id)

    def _models(self, identity: ExportIdentity) -> list[Any]:
        """Of this run and export, oldest first."""
        experiment = self._client.get_run(self._run_id).info.experiment_id
        wanted = f"source_run_id = '{self._run_id}' AND {identity.filter}"
        found = self._client.search_logged_models([experiment], wanted, max_results=_PAGE)
        return sorted(found, key=lambda model: (model.creation_timestamp, model.model_id))

    def _versions(self, name: str, identity: ExportIdentity) -> list[Any]:
        return [one for one in self._found(name, identity) if identity.is_on(one.tags)]

    def _found(self, name: str, identity: ExportIdentity) -> list[Any]:
        """Versions of this export, oldest first."""
        found = self._client.search_model_versions(f"name = '{name}' AND {identity.filter}", max_results=_PAGE)
        return sorted(found, key=lambda version: int(version.version))


def _uri(model: Any) -> str:
    return f"models:/{model.model_id}"


@contextmanager
def _gone_already() -> Iterator[None]:
    """Another start may have removed it meanwhile."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
