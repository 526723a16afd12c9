"""Brings the weights of model.init_from to every rank: read once for a job, fetched once for a host.

When a job first starts, rank 0 writes a copy into the attempt's folder. So what the job starts from no longer depends
on its source: an attempt that starts anew takes the same weights, whatever became of them. Where the storage is a
bucket, the first rank of each host fetches the copy, and the others of the host read that.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from syncnorm.trainer.contract.initial_weights import WeightOrigin
from syncnorm.trainer.contract.protocol import Launch
from syncnorm.trainer.errors import PeerFailedError
from syncnorm.trainer.export.weights import WEIGHTS_FILE
from syncnorm.trainer.ranks.exchange import gather
from syncnorm.trainer.storage.atomic_files import sha256_of, write_atomic
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.weights.loading import InitialWeights
from syncnorm.trainer.weights.sources import read_source

logger = logging.getLogger(__name__)
T = TypeVar("T")

ORIGIN_FILE = "origin.json"


class _Staged(BaseModel):
    """origin.json beside the copy, written last. sha256: of the copy."""

    model_config = ConfigDict(frozen=True)

    origin: WeightOrigin
    sha256: str


def initial_weights(launch: Launch, folders: AttemptFolders, rank: int) -> InitialWeights | None:
    """The weights that an attempt starts from; None where it has none, or resumes. Entered by every rank.

    Raises: ValueError naming the field of model.init_from; PeerFailedError on ranks that wait for one that raised.
    """
    if launch.spec.model.init_from is None or launch.resume_from is not None:
        return None
    name = _first_of(rank == 0, lambda: folders.mirror.name(_staged(launch, folders)))[0]
    assert name is not None
    folder, hosts = folders.mirror.local(name), gather(socket.gethostname())
    first = hosts.index(socket.gethostname())
    paths = _first_of(first == rank, lambda: str(_fetched(folder, folders)))
    file = Path(paths[first] or "")
    staged = _Staged.model_validate_json((file.parent / ORIGIN_FILE).read_bytes())
    return InitialWeights(file, staged.origin, launch.spec)


def _first_of(is_mine: bool, act: Callable[[], str]) -> list[str | None]:
    """What `act` gave on the ranks whose turn it is. If it raises on one, every rank raises."""
    found: str | None = None
    error: Exception | None = None
    if is_mine:
        try:
            found = act()
        except Exception as raised:
            error = raised
    answers = gather((found, None if error is None else f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    if problem := next((text for _, text in answers if text is not None), None):
        raise PeerFailedError(f"another rank could not read model.init_from: {problem}")
    return [answer for answer, _ in answers]


def _staged(launch: Launch, folders: AttemptFolders) -> Path:
    """The folder of the copy: that of an earlier attempt, or else one that is made now."""
    for each in reversed(folders.earlier(launch.attempt)):
        if each.weights / ORIGIN_FILE in each.mirror.children(each.weights):
            return each.weights
    how = launch.spec.model.init_from
    assert how is not None
    folders.weights.mkdir(parents=True, exist_ok=True)
    copy = folders.weights / WEIGHTS_FILE
    origin = read_source(how, launch.weights, launch.mlflow_uri, copy)
    staged = _Staged(origin=origin, sha256=sha256_of(copy))
    write_atomic(folders.weights / ORIGIN_FILE, json.dumps(staged.model_dump(), indent=1).encode())
    folders.mirror.publish_all(folders.weights, last=ORIGIN_FILE)
    logger.info("weights read from %s (%s)", origin.source, origin.digest)
    return folders.weights


def _fetched(folder: Path, folders: AttemptFolders) -> Path:
    """The copy on this host, whole."""
    folders.mirror.fetch_all(folder)
    staged = _Staged.model_validate_json((folder / ORIGIN_FILE).read_bytes())
    if sha256_of(folder / WEIGHTS_FILE) != staged.sha256:
        raise ValueError(f"model.init_from: the copy of the weights in {folder} must have its digest, but has another.")
    return folder / WEIGHTS_FILE
