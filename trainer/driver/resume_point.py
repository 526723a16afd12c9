"""Where an attempt resumes: the checkpoint the service chose, or the newest one before it that verifies."""

from __future__ import annotations

from syncnorm.trainer.contract.protocol import Launch
from syncnorm.trainer.errors import CheckpointCorruptError
from syncnorm.trainer.reporting.reporter import Reporter
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.checkpoints import Checkpoint


def resume_point(launch: Launch, folders: AttemptFolders, reporter: Reporter) -> str | None:
    """The verified checkpoint to resume from; None: from the start. Decided once, by the driver, for all ranks.

    Raises: CheckpointCorruptError if there were checkpoints and none of them verifies; StorageError if the storage is
    unavailable.
    """
    if launch.resume_from is None:
        return None
    mirror = folders.mirror
    try:
        found = checkpoints.fetch(mirror.local(launch.resume_from), mirror)
    except CheckpointCorruptError as error:
        found = _fall_back(launch, folders, reporter, error)
    mirror.forget(found.path)  # each rank fetches it anew
    return mirror.name(found.path)


def _fall_back(
    launch: Launch, folders: AttemptFolders, reporter: Reporter, error: CheckpointCorruptError
) -> Checkpoint:
    earlier = checkpoints.newest([each.checkpoints for each in folders.earlier(launch.attempt)], folders.mirror)
    if earlier is None:
        raise error
    message, used = f"{error}; resuming from step {earlier.step} instead", folders.mirror.name(earlier.path)
    reporter.log("WARNING", message)
    reporter.event("checkpoint_fallback", message, wanted=launch.resume_from, used=used, step=earlier.step)
    return earlier
