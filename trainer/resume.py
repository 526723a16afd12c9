"""Where an attempt goes on from: the checkpoint the service chose, or the newest one before it that is whole."""

from __future__ import annotations

from pathlib import Path

from trainer import checkpoints
from trainer.attempt import Launch
from trainer.checkpoints import CheckpointCorruptError
from trainer.folders import AttemptFolders
from trainer.reporter import Reporter


def resume_point(launch: Launch, folders: AttemptFolders, reporter: Reporter) -> Path | None:
    """The verified checkpoint to resume from; None: from the start. Decided once, by the driver, for all ranks.

    Raises: CheckpointCorruptError where there were checkpoints and none of them is whole.
    """
    if launch.resume_from is None:
        return None
    wanted = Path(launch.resume_from)
    try:
        return checkpoints.verify(wanted).path
    except CheckpointCorruptError as error:
        earlier = checkpoints.newest([each.checkpoints for each in folders.earlier(launch.attempt)])
        if earlier is None:
            raise
        message = f"{error}; going on from step {earlier.step} instead"
        reporter.log("WARNING", message)
        reporter.event("checkpoint_fallback", message, wanted=str(wanted), used=str(earlier.path), step=earlier.step)
        return earlier.path
