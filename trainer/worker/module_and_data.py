"""What a job trains and on what: a LightningModule and a LightningDataModule, the user's own or ours."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from syncnorm.trainer.contract.norm_choice import chosen_norm
from syncnorm.trainer.contract.spec import JobSpec, ScheduleSpec, TrainSpec
from syncnorm.trainer.data import Data, build_data
from syncnorm.trainer.data.loader import Loader, train_loader, val_loader
from syncnorm.trainer.data.user.datamodule import own_datamodule
from syncnorm.trainer.data.user.named_data import NamedData
from syncnorm.trainer.models import build_model
from syncnorm.trainer.models.user_model import by_class_path, is_lightning_module
from syncnorm.trainer.training.joined_step import join_micro_batches
from syncnorm.trainer.training.optim import optimizer_of_spec
from syncnorm.trainer.training.task_module import TaskModule
from syncnorm.trainer.training.tasks.named_parts import named_task, require_unnamed
from syncnorm.trainer.training.tasks.receptive_field import with_field
from syncnorm.trainer.worker.smoke_forward import check_forward, undisturbed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaders:
    """A rank's part of the training and validation batches of a built-in task.

    population: those of training, for passes apart from it, which take statistics.
    """

    train: Loader
    val: Loader
    population: Loader

    @classmethod
    def build(cls, data: Data, spec: JobSpec, rank: int, world_size: int) -> Loaders:
        # The global batch is that of resources.workers, also while an elastic job runs on fewer.
        per_worker, joined = data.samples_per_worker(spec.data.batch_size), spec.train.joined_micro_batches
        global_batch = per_worker * spec.resources.workers
        on_gpu = spec.resources.gpus_per_worker > 0
        if spec.data.last_batch == "pad":
            raise ValueError("data.last_batch: pad is for a LightningModule of yours; use weight or drop.")
        if spec.data.count is not None:
            raise ValueError("data.count must be left out, because the samples of a built-in task are counted exactly.")
        train, population = (
            train_loader(
                data,
                global_batch=global_batch * joined,
                rank=rank,
                world_size=world_size,
                seed=spec.seed,
                last_batch=spec.data.last_batch or "weight",
                pin_memory=on_gpu,
                micro_batch=per_worker if joined > 1 else 0,
            )
            for _ in range(2)
        )
        val_batch = data.val_batch_size * world_size if data.val_batch_size else global_batch
        val = val_loader(data, global_batch=val_batch, rank=rank, world_size=world_size, pin_memory=on_gpu)
        return cls(train, val, population)


class TaskData(LightningDataModule):
    """The loaders of a built-in task."""

    def __init__(self, data: Data, loaders: Loaders) -> None:
        super().__init__()
        self.data = data
        self.loaders = loaders

    def train_dataloader(self) -> Any:
        return self.loaders.train

    def val_dataloader(self) -> Any:
        return self.loaders.val


@dataclass(frozen=True)
class Assembly:
    """What Lightning fits. A TaskModule comes with TaskData; anything else is the user's own."""

    module: LightningModule
    datamodule: LightningDataModule | None
    """None: the module has loaders of its own."""
    steps: int | None
    """Optimizer steps of the whole job; None where only the user's loader knows."""

    @property
    def task_data(self) -> TaskData | None:
        return self.datamodule if isinstance(self.datamodule, TaskData) else None

    @property
    def data(self) -> Data | None:
        """The samples, where they are known before training."""
        return self.datamodule.data if isinstance(self.datamodule, TaskData | NamedData) else None


def assemble(spec: JobSpec, rank: int, world_size: int) -> Assembly:
    """Build what `spec` names, the same on every rank. Weights are drawn from torch's global generator.

    Raises: ValueError naming the field of the spec that can't be honoured.
    """
    path = spec.model.class_path
    is_own = path is not None and is_lightning_module(path)
    if is_own is None:  # Some functions only show what they make when called. With these fields it is a plain network.
        is_own = spec.data.name is None and spec.data.batch_size is None
    if path is not None and is_own:
        datamodule = _datamodule(spec)
        fill = {"num_classes": count} if (count := getattr(datamodule, "num_classes", None)) else {}
        module = by_class_path(path, spec.model.init_args, fill)
        if isinstance(module, LightningModule):
            return _own(module, datamodule, spec)
    if spec.data.name is None and spec.data.class_path is None:
        raise ValueError("data must be given for a network without loaders of its own: data.name or data.class_path.")
    data = build_data(spec.data, spec.seed)
    network = build_model(spec.model, chosen_norm(spec), data.info)
    if isinstance(network, LightningModule):  # made by a function
        return _own(network, _datamodule(spec), spec)
    return assemble_task(spec, data, rank, world_size, network)


def assemble_task(spec: JobSpec, data: Data, rank: int, world_size: int, network: nn.Module | None = None) -> Assembly:
    """A built-in task on `data`. network: in place of one built here."""
    if spec.train.test:
        raise ValueError("train.test must be left out for a plain network: it runs the test_step of a LightningModule.")
    network = network or build_model(spec.model, chosen_norm(spec), data.info)
    check_forward(network, data.info)
    data = _with_windows(data, network, spec, rank)
    task = named_task(spec.model, data.info)
    loaders = Loaders.build(data, spec, rank, world_size)
    steps = total_steps(spec.train, len(loaders.train))
    return Assembly(TaskModule(network, task, spec, steps), TaskData(data, loaders), steps)


def _with_windows(data: Data, network: nn.Module, spec: JobSpec, rank: int) -> Data:
    """With what the windows of its volumes need to know of the network."""
    if spec.train.compile and data.info.windows is not None and data.info.windows.is_joint:
        raise ValueError(
            "data.init_args.windows: joint needs a network that can stop at each normalization, which a compiled one "
            "can't. Leave train.compile out, or windows."
        )
    with undisturbed(network):
        info = with_field(data.info, network)
    if rank == 0 and info.windows is not None and (field := info.windows.field) is not None:
        how = "jointly" if info.windows.is_joint else "by windows"
        reach, strides = list(field.reach), list(field.strides)
        logger.info("volumes are run %s: the network looks %s voxels far, total stride %s", how, reach, strides)
    return replace(data, info=info)


def _datamodule(spec: JobSpec) -> LightningDataModule | None:
    if spec.data.class_path is not None:
        return own_datamodule(spec.data.class_path, spec.data.init_args)
    if spec.data.name is None:
        return None
    assert spec.data.batch_size is not None
    return NamedData(build_data(spec.data, spec.seed), spec.data.batch_size)


def _own(module: LightningModule, datamodule: LightningDataModule | None, spec: JobSpec) -> Assembly:
    if datamodule is None and not is_overridden("train_dataloader", module):
        raise ValueError(f"data must be given, because {type(module).__name__} defines no train_dataloader.")
    require_supported(module, spec)
    _require_own_windows(module, datamodule)
    if spec.train.test and not _has_test_data(module, datamodule):
        where = type(module if datamodule is None else datamodule).__name__
        raise ValueError(f"train.test must be left out, because {where} defines no test_dataloader.")
    if not has_own_optimizers(module) or (spec.optimizer is not None and spec.optimizer.override):
        module.configure_optimizers = partial(_of_spec, module, spec)  # type: ignore[method-assign]
    if spec.train.joined_micro_batches > 1:
        join_micro_batches(module, spec.train.joined_micro_batches)
    return Assembly(module, datamodule, spec.train.steps)


def _require_own_windows(module: LightningModule, datamodule: LightningDataModule | None) -> None:
    """Raises: ValueError for settings of whole volumes that a validation_step can't get."""
    windows = datamodule.data.info.windows if isinstance(datamodule, NamedData) else None
    if windows is not None and windows.needs_field:
        setting = "windows: joint" if windows.is_joint else "overlap: auto"
        raise ValueError(
            f"data.init_args.{setting} must be left out, because {type(module).__name__} is a LightningModule, whose "
            "validation_step runs whole volumes itself. Call norm.tiled there."
        )


def _has_test_data(module: LightningModule, datamodule: LightningDataModule | None) -> bool:
    return is_overridden("test_dataloader", module if datamodule is None else datamodule)


def _of_spec(module: LightningModule, spec: JobSpec) -> Any:
    schedule = spec.schedule or ScheduleSpec()
    steps = 1.0 if schedule.name == "constant" else module.trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise ValueError(
            f"schedule.name: {schedule.name} must know how many steps there are, but the training loader does not tell "
            "its length. Give train.steps."
        )
    return optimizer_of_spec(module, spec, int(steps))


def has_own_optimizers(module: LightningModule) -> bool:
    return is_overridden("configure_optimizers", module)


def require_supported(module: LightningModule, spec: JobSpec) -> None:
    """Raises: ValueError naming what the spec asks of a LightningModule that it can't get."""
    name, train = type(module).__name__, spec.train
    require_unnamed(spec.model, f"{name} is a LightningModule, whose steps compute losses and metrics themselves")
    if train.test and not is_overridden("test_step", module):
        raise ValueError(f"train.test must be left out, because {name} defines no test_step.")
    given = [field for field, part in (("optimizer", spec.optimizer), ("schedule", spec.schedule)) if part is not None]
    is_override = spec.optimizer is not None and spec.optimizer.override
    if given and has_own_optimizers(module) and not is_override:
        raise ValueError(
            f"{given[0]} must be left out, because {name}.configure_optimizers gives one too. "
            "Set optimizer.override: true to use that of the spec instead."
        )
    if module.automatic_optimization:
        return
    asked = {
        "train.accumulate": train.accumulate > 1,
        "train.clip_grad_norm": train.clip_grad_norm is not None,
        "diagnostics": bool(spec.diagnostics),
    }
    for field in (field for field, is_asked in asked.items() if is_asked):
        raise ValueError(
            f"{field} must be left out, because {name} sets automatic_optimization = False and steps its optimizers "
            "itself."
        )


def total_steps(train: TrainSpec, batches_an_epoch: int) -> int:
    """Optimizer steps of the whole job; a last, incomplete accumulation of an epoch is a step too."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None
    return math.ceil(batches_an_epoch / train.batches_per_step) * train.epochs
