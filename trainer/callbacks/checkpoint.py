"""Writes checkpoints as often as the spec says, through Lightning's own save, so that none of its state is missed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer

from syncnorm.trainer.callbacks.epoch_metrics import EpochMetrics
from syncnorm.trainer.callbacks.max_steps import ends_epoch
from syncnorm.trainer.contract.spec import Every, KeepBest
from syncnorm.trainer.random_state import restore_random_state
from syncnorm.trainer.ranks.exchange import gather
from syncnorm.trainer.ranks.replica_check import check_agreement
from syncnorm.trainer.reporting.reporter import Reporter
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.storage.sync import Mirror
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.background import BackgroundTasks
from syncnorm.trainer.training.late_hooks import LateCallback
from syncnorm.trainer.training.rank_state import adopt, rank_state, restore
from syncnorm.trainer.training.task_module import network_of

RANKS = "ranks"


def between_steps(trainer: Trainer) -> bool:
    """Whether the trainer is between optimizer steps. Half-accumulated gradients would be in no checkpoint."""
    return not trainer.fit_loop._should_accumulate()


class CheckpointWriter(LateCallback):
    """Saves every `every`, keeps the newest `keep` and the best, and reports each complete checkpoint to the service.

    A checkpoint is copied to the storage alongside the following steps, one at a time.
    """

    def __init__(
        self,
        folders: AttemptFolders,
        *,
        every: Every,
        keep: int,
        reporter: Reporter,
        metrics: EpochMetrics,
        keep_best: KeepBest | None = None,
    ) -> None:
        self._folders = folders
        self._every = every
        self._keep = keep
        self._reporter = reporter
        self._keep_best = keep_best
        self._metrics = metrics
        self._best: tuple[float, int] | None = None
        self._saved_at = self._scored_at = -1
        self._resumed: dict[str, Any] | None = None
        """State of this rank in the checkpoint that the attempt continues from; of rank 0 where the ranks differ."""
        self._before = self._step = 0
        self.publication = BackgroundTasks(is_threaded=folders.mirror.longest_s > 0)
        """The copy of the last checkpoint, which counts once it is over."""
        self.newest: str | None = None
        """Path of the last published checkpoint on the storage."""

    def save(self, trainer: Trainer) -> None:
        """Save now, unless this step is saved already. Entered by every rank.

        Raises: DisagreementError on every rank if they do not hold the same model; nothing is saved then. StorageError
        also of the checkpoint before.
        """
        if trainer.global_step == self._saved_at:
            return
        self.publication.finish()
        check_agreement(network_of(trainer.lightning_module))
        path = self._folders.checkpoints / f"step-{trainer.global_step:010d}"
        trainer.save_checkpoint(path)
        self._saved_at = trainer.global_step
        if trainer.is_global_zero:
            self._announce(path)

    def save_and_wait(self, trainer: Trainer) -> None:
        """Save, and wait until it is on the storage."""
        self.save(trainer)
        self.publication.finish()

    def _announce(self, path: Path) -> None:
        """Publish the checkpoint after the metrics that lead up to it, since an attempt that resumes does not record
        them again.

        The metrics are copied now, because their file grows with the next step.
        """
        self._folders.mirror.publish(self._folders.spool)
        self._folders.mirror.publish_all(self._folders.artifacts)
        best = self._best[1] if self._best else None
        metrics = self._metrics.latest if self._scored_at == self._saved_at else {}
        self.publication.do(lambda: self._publish(path, best, metrics))

    def _publish(self, path: Path, best: int | None, metrics: Mapping[str, float]) -> None:
        mirror, saved = self._folders.mirror, checkpoints.verify(path)
        checkpoints.publish(path, mirror)
        spare = self._reporter.checkpoints_to_spare() | ({best} if best is not None else set())
        kept = checkpoints.retain(self._folders.checkpoints, self._keep, spare, mirror)
        mirror.forget(path)
        self.newest = mirror.name(path)
        self._reporter.checkpoint(
            path=self.newest,
            step=saved.step,
            epoch=saved.epoch,
            digest=saved.digest,
            size_bytes=saved.size_bytes,
            kept=kept,
            metrics=metrics,
            best_step=best,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def after_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the numbers of the checkpoint only now: until here, for example in train_dataloader, the module
        draws those that it drew at the start of the first attempt."""
        if self._resumed is None:
            return
        if self._resumed["random"] is not None:
            restore_random_state(self._resumed["random"])
        _restart_pass(trainer, self._resumed["loaders"])
        self._resumed = None

    def after_train_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before, self._step = self._step, trainer.global_step
        if between_steps(trainer) and not ends_epoch(trainer) and self._is_due(trainer):
            self.save(trainer)

    def after_train_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Also saves at a step that ends an epoch: saved any earlier, its validation and metrics would be lost."""
        self._scored_at = trainer.global_step
        epochs = self._every.epochs
        if (epochs and (trainer.current_epoch + 1) % epochs == 0) or self._is_due(trainer):
            self._judge(trainer)
            self.save(trainer)

    def _judge(self, trainer: Trainer) -> None:
        """Note whether the checkpoint to be saved is the best so far. Scores are the same on every rank."""
        if self._keep_best is None:
            return
        score = self._metrics.require("train.keep_best.monitor", self._keep_best.monitor)
        sign = 1.0 if self._keep_best.mode == "min" else -1.0
        is_first = (self._best is None or math.isnan(self._best[0])) and not math.isnan(score)
        if is_first or (self._best is not None and sign * score < sign * self._best[0]):
            self._best = (score, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best"]
        self._best = (best[0], best[1]) if best else None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end, so that an attempt that dies while it finalizes leaves nothing to train again."""
        self.save_and_wait(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether the last batch came to a multiple of `every.steps`, which several optimizers may pass over."""
        every = self._every.steps
        return every is not None and trainer.global_step // every > self._before // every

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Gather the random state and the own statistics of every rank; rank 0 writes them all."""
        checkpoint[RANKS] = gather(rank_state(trainer, pl_module) | {"epoch": self._metrics.rank_state()})

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        ranks = checkpoint[RANKS]
        of_rank_0 = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
        if len(ranks) == trainer.world_size:
            restore(ranks[trainer.global_rank], trainer, pl_module)
            self._resumed = {"loaders": of_rank_0, **ranks[trainer.global_rank]}
            self._metrics.restore_rank_state(ranks[trainer.global_rank]["epoch"])
        else:
            # Another number of ranks wrote it: dropout draws anew, and all ranks take rank 0's own statistics.
            self._resumed = {"loaders": of_rank_0, "random": None}
            adopt(ranks, pl_module)
            self._metrics.adopt_rank_states([rank["epoch"] for rank in ranks], trainer.global_rank)
        self._saved_at = checkpoint["global_step"]


def _restart_pass(trainer: Trainer, states: list[dict[str, Any]]) -> None:
    """Let the loaders continue where the checkpoint says.

    Lightning begins the pass with other numbers and with the states of rank 0, or with none where configure_optimizers
    has asked for the number of steps, which makes the loaders before the checkpoint is read (lightning 2.6.6).
    """
    loop = trainer.fit_loop
    if loop._combined_loader is not None and loop._data_fetcher is not None:
        loop._combined_loader._load_state_dicts(states)
        iter(loop._data_fetcher)


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's checkpoints in our form: atomic, with digests, loaded as `checkpoints.load` says.

    Those that a callback of the user writes elsewhere are plain files, as Lightning makes them.
    """

    def __init__(
        self, folder: Path, *, world_size: int, fence: str, mirror: Mirror, has_own_code: bool = False
    ) -> None:
        self._folder = folder
        self._world_size = world_size
        self._fence = fence
        self._mirror = mirror
        self._has_own_code = has_own_code
        self._plain = TorchCheckpointIO()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if Path(path).parent != self._folder:
            self._plain.save_checkpoint(checkpoint, path, storage_options)
            return
        checkpoints.write(
            self._folder,
            checkpoint,
            step=checkpoint["global_step"],
            epoch=checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"],
            world_size=self._world_size,
            fence=self._fence,
        )

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if Path(path).is_file():
            return self._plain.load_checkpoint(path, map_location, weights_only)
        return checkpoints.load(Path(path), self._mirror, has_own_code=self._has_own_code)

    def remove_checkpoint(self, path: Any) -> None:
        self._plain.remove_checkpoint(path)  # checkpoints.retain decides what is kept of ours
