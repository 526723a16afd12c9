"""One tick's work on deleted jobs: deletes their files from the storage, a few jobs at a time."""

from __future__ import annotations

import logging
from itertools import islice

from syncnorm.service.reconciler.backends import Backends, Tick
from syncnorm.service.reconciler.isolation import Isolation
from syncnorm.trainer.contract.protocol import job_folder
from syncnorm.trainer.storage.storage import storage_at

logger = logging.getLogger(__name__)

_MOST_A_TICK = 4
_MOST_KNOWN = 1000


def remove_files(backends: Backends, items: Isolation, tick: Tick) -> None:
    """Files that can't be deleted are retried later, after those of other jobs."""
    waiting = (
        job_id for job_id in backends.store.removals.pending(_MOST_KNOWN) if not items.is_resting("removal", job_id)
    )
    for job_id in islice(waiting, _MOST_A_TICK):
        tick.check()
        items.attempt("removal", job_id, lambda job_id=job_id: _remove(backends, job_id))  # type: ignore[misc]


def _remove(backends: Backends, job_id: str) -> None:
    root, _, name = job_folder(backends.environment.storage, job_id).rpartition("/")
    backends.storage.ask(lambda: storage_at(root).remove(name))
    backends.store.removals.done(job_id)
    logger.info("deleted the files of a deleted job", extra={"job": job_id})
