"""Delivers the params, tags and files of journals to the run, alongside training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import httpx

from syncnorm.trainer.errors import StorageError
from syncnorm.trainer.reporting.run_logger.journal import Entry, journal_path, read_journal
from syncnorm.trainer.reporting.run_sender import REFUSED, RunSender
from syncnorm.trainer.storage.atomic_files import write_atomic

logger = logging.getLogger(__name__)

PAIRS_A_REQUEST = 100
"""MLflow's limit of params or tags for one request (mlflow 3.17)."""
_BY_THE_SERVER = "mlflow-artifacts:/"
DELIVERED_FILE = "logged.json"
"""How much of each attempt's journal has arrived, so that a resumed attempt uploads no file again."""


class JournalSender(RunSender):
    """artifacts: those of all attempts up to this one, in order. A later file of a path replaces an earlier one.

    store: copies a file to the job's storage, so that it outlasts this host; the checkpoints do the same, but later.
    """

    def __init__(
        self,
        client: httpx.Client,
        run_id: str,
        artifacts: Sequence[Path],
        counts: Callable[[], bool | None] = lambda: True,
        store: Callable[[Path], None] = lambda _: None,
    ) -> None:
        super().__init__(client, run_id, "logged files", counts)
        self._artifacts = artifacts
        self._store = store
        self._offsets = _delivered_before(artifacts)
        self._files: dict[str, Path] = {}
        self._pairs: dict[str, dict[str, str]] = {"params": {}, "tags": {}}

    def _deliver(self) -> None:
        self._read()
        if not (self._files or any(self._pairs.values())):
            return
        run = self._check_run()
        for kind, pairs in self._pairs.items():
            self._send_pairs(kind, pairs)
        self._send_files(run)
        self._note_delivered()

    def _read(self) -> None:
        """Take up the new lines of all journals."""
        for folder in self._artifacts:
            for entry, offset in read_journal(journal_path(folder), self._offsets[folder]):
                self._offsets[folder] = offset
                if entry is not None:
                    self._take(entry, folder)

    def _take(self, entry: Entry, folder: Path) -> None:
        if entry.kind == "file":
            self._files.pop(entry.name, None)
            self._files[entry.name] = folder / entry.name
        elif entry.kind == "param":
            self._pairs["params"].setdefault(entry.name, entry.value)
        elif entry.kind == "tag":
            self._pairs["tags"][entry.name] = entry.value

    def _send_pairs(self, kind: str, pairs: dict[str, str]) -> None:
        while pairs:
            items = [{"key": key, "value": value} for key, value in list(pairs.items())[:PAIRS_A_REQUEST]]
            self._log_batch(kind, items, lambda done: [pairs.pop(item["key"]) for item in done])

    def _send_files(self, run: dict[str, Any]) -> None:
        """Upload the files. One that fails delays no other. Raises: the first failure, if MLflow is there at all."""
        failure: Exception | None = None
        for name, path in list(self._files.items()):
            try:
                self._keep(path)
                upload(self._client, run, path, name)
            except Exception as error:  # MLflow's client raises errors of many libraries
                if not _is_final(error):
                    self._check_run()
                    failure = failure or error
                    continue
                logger.warning("MLflow refused a logged file; skipping it: %s: %s", name, error)
            del self._files[name]
        if failure is not None:
            raise failure

    def _note_delivered(self) -> None:
        offsets = {folder.parent.name: offset for folder, offset in self._offsets.items()}
        path = self._artifacts[-1].parent / DELIVERED_FILE
        with suppress(OSError):  # then some files are uploaded again after a resume
            write_atomic(path, json.dumps(offsets).encode())
            self._keep(journal_path(self._artifacts[-1]))
            self._keep(path)

    def _keep(self, path: Path) -> None:
        """Copy a file of this attempt to the job's storage."""
        try:
            if path.is_relative_to(self._artifacts[-1].parent):
                self._store(path)
        except StorageError as error:
            logger.warning(
                "a logged file is not on the storage yet; the next checkpoint copies it: %s: %s", path, error
            )


def upload(client: httpx.Client, run: dict[str, Any], path: Path, name: str) -> None:
    """Upload `path` as the artifact `name` of a run, as MLflow's REST API describes it.

    client: of syncnorm.trainer.reporting.metric_spool.rest_client. Its short timeouts notice an outage at once, where
    MLflow's own client tries for minutes. Raises: errors of httpx, or of MLflow's client and its artifact store.
    """
    uri = str(run["info"]["artifact_uri"])
    if uri.startswith(_BY_THE_SERVER) and not uri.startswith(f"{_BY_THE_SERVER}/"):
        root = client.base_url.join("../mlflow-artifacts/artifacts/")
        with path.open("rb") as file:
            client.put(root.join(f"{uri.removeprefix(_BY_THE_SERVER)}/{quote(name)}"), content=file).raise_for_status()
    else:
        folder = PurePosixPath(name).parent.as_posix()
        _client(str(client.base_url.join("/"))).log_artifact(
            run["info"]["run_id"], str(path), None if folder == "." else folder
        )


@cache
def _client(mlflow_uri: str) -> Any:
    """MLflow's own client, which knows every artifact store. It is imported with the first file."""
    from mlflow import MlflowClient

    return MlflowClient(mlflow_uri)


def _is_final(error: Exception) -> bool:
    """Whether the same will happen next time: the file is gone, or the server refuses it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and hasattr(error, "get_http_status_code"):
        status = error.get_http_status_code()
    return isinstance(error, FileNotFoundError) or status in REFUSED


def _delivered_before(artifacts: Sequence[Path]) -> dict[Path, int]:
    """What the newest attempt that noted it has delivered of each journal."""
    noted: dict[str, int] = {}
    for folder in artifacts:
        with suppress(OSError, ValueError, TypeError, AttributeError):
            found = json.loads((folder.parent / DELIVERED_FILE).read_bytes())
            noted |= {str(name): int(offset) for name, offset in found.items()}
    return {folder: max(0, noted.get(folder.parent.name, 0)) for folder in artifacts}
