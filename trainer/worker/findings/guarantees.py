"""What a job promises, and why: read off the network, its loader and the spec once all of them are there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.data import DataLoader, IterableDataset

from syncnorm.norm.kind import KINDS
from syncnorm.norm.statistics.freezing import can_freeze_statistics, has_frozen_statistics
from syncnorm.trainer.contract.norm_choice import choose_norm
from syncnorm.trainer.contract.plan import Guarantee, Guarantees
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.contract.text import counted
from syncnorm.trainer.data.user.own_state import has_own_state
from syncnorm.trainer.training.task_module import TaskModule, network_of
from syncnorm.trainer.training.tasks.detection.loss_shares import unknown_losses


def guarantees(module: LightningModule, loader: Any, spec: JobSpec, exported: Guarantee) -> Guarantees:
    """loader: the training loader of this worker, as Lightning uses it. exported: what `try_export` has found."""
    return Guarantees(
        equals_one_device=equals_one_device(module, loader, spec),
        resumes_exactly=resumes_exactly(loader),
        exported=exported,
    )


def equals_one_device(module: LightningModule, loader: Any, spec: JobSpec) -> Guarantee:
    is_split = _takes_batches(module, spec) and spec.train.accumulate > spec.train.joined_micro_batches
    split = ["each micro-batch of a step takes its statistics from its own samples"] if is_split else []
    if spec.resources.workers == 1:
        together = ", and its micro-batches are normalized as one batch" if spec.train.joined_micro_batches > 1 else ""
        return Guarantee(holds="partly" if split else "yes", why="; ".join(split) or f"there is one worker{together}")
    if kept_apart := "; ".join(_apart(module, loader, spec)):
        return Guarantee(holds="no", why=kept_apart)
    if deviations := "; ".join([*split, *_deviations(module, loader)]):
        return Guarantee(holds="partly", why=deviations)
    if isinstance(module, TaskModule):
        return Guarantee(holds="yes", why="losses are weighted by samples, and statistics are those of all workers")
    return Guarantee(
        holds="yes",
        why="every worker has as many samples, and statistics are those of all workers; it needs a training_step whose "
        "loss is a mean over its samples",
    )


def _takes_batches(module: LightningModule, spec: JobSpec) -> bool:
    return KINDS[choose_norm(spec).kind].batch_statistics and not _is_wholly_frozen(network_of(module))


def _apart(module: LightningModule, loader: Any, spec: JobSpec) -> Iterator[str]:
    kind, takes_batches = choose_norm(spec).kind, _takes_batches(module, spec)
    if takes_batches and not KINDS[kind].synchronizes:
        yield f"{kind} takes its statistics from the samples of each worker alone"
    elif takes_batches and spec.norm.group not in ("world", spec.resources.workers):
        yield f"statistics are shared within groups only (norm.group: {spec.norm.group})"
    if _is_stream(loader):
        yield "every worker reads its IterableDataset by itself, which must share its samples out"


def _deviations(module: LightningModule, loader: Any) -> Iterator[str]:
    if any(isinstance(layer, _DropoutNd) and layer.p > 0 for layer in network_of(module).modules()):
        yield "every worker draws dropout masks of its own"
    if isinstance(module, TaskModule):
        yield from module.task.deviations(module.network)
    elif not unknown_losses(network_of(module)):
        yield (
            "torchvision's detectors take means over the anchors and boxes that each worker samples; with "
            "model.name: torchvision/… and the data coco they are weighted"
        )
    order = getattr(loader, "order", None)
    if order is not None and (repeated := order.repeated_items()):
        are = "is" if repeated == 1 else "are"
        yield f"{counted(repeated, 'sample')} of an epoch {are} repeated, so that all workers have as many"


def resumes_exactly(loader: Any) -> Guarantee:
    order = getattr(loader, "order", None)
    processes = loader.num_workers if isinstance(loader, DataLoader) else 0
    if order is None and not _keeps_place(loader):
        return Guarantee(
            holds="partly",
            why=f"your {type(getattr(loader, 'dataset', loader)).__name__} can't be read from the middle: after a stop "
            "within an epoch it is read from its start; give its DataLoader a state_dict and a load_state_dict to "
            "continue exactly",
        )
    if order is not None and not order.is_torchs:
        return Guarantee(
            holds="partly",
            why="the order of your sampler is drawn again from the seed and the epoch, which is exact unless the "
            "sampler keeps a state of its own",
        )
    if processes:
        return Guarantee(
            holds="partly",
            why="samples and their order are the same, but what its data-loading processes draw at random "
            "starts anew after a stop within an epoch",
        )
    if order is None:
        return Guarantee(holds="yes", why="the loader continues by its state_dict, and all other state where it was")
    return Guarantee(holds="yes", why="samples, random numbers and all state continue where they were")


def _is_wholly_frozen(network: nn.Module) -> bool:
    """Whether model.freeze holds all layers that have running statistics."""
    found = [layer for layer in network.modules() if can_freeze_statistics(layer)]
    return bool(found) and all(map(has_frozen_statistics, found))


def _keeps_place(loader: Any) -> bool:
    """Whether its own state says where to continue. Of what is no DataLoader only with a length: else Lightning reads a
    batch ahead, which the state then counts."""
    return has_own_state(loader) or (hasattr(loader, "state_dict") and sized_len(loader) is not None)


def _is_stream(loader: Any) -> bool:
    return isinstance(getattr(loader, "dataset", None), IterableDataset)
