"""What one tick does about deleted jobs: takes their files off the storage, a few at a time."""

from __future__ import annotations

import logging

from service.steps.ports import Ports
from trainer.attempt import job_folder
from trainer.files import StorageError
from trainer.storage import storage_at

logger = logging.getLogger(__name__)

_MOST_A_TICK = 4


def remove_files(ports: Ports) -> None:
    """A storage that can't be used now is asked again by a later tick."""
    for job_id in ports.store.removals(_MOST_A_TICK):
        root, _, name = job_folder(ports.places.storage, job_id).rpartition("/")
        try:
            ports.storage.ask(lambda root=root, name=name: storage_at(root).remove(name))  # type: ignore[misc]
        except StorageError as error:
            logger.warning("files of a deleted job have to wait", extra={"job": job_id, "error": str(error)})
            return
        ports.store.note_removed(job_id)
        logger.info("files removed", extra={"job": job_id})
