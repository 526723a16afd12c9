"""Which modules a graph can't repeat, and why, in words that follow "steps run without a CUDA graph:"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from syncnorm.trainer.contract.text import name_some
from syncnorm.trainer.training.graphs.stale_python import reads_of_a_moment
from syncnorm.trainer.training.task_module import TaskModule

_HOOKS = ("on_before_backward", "on_after_backward")
"""Those within the part of a step that is captured, which no replay calls."""


def reasons_against(module: LightningModule, callbacks: Sequence[Callback]) -> Iterator[str]:
    """What shows before the first step. It is the same on every rank."""
    name = type(module).__name__
    if not module.automatic_optimization:
        yield f"{name} steps its optimizers itself"
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        yield f"{name}.training_step takes its batches from an iterator"
    for hook in _HOOKS:
        for owner in callbacks:
            if is_overridden(hook, owner, Callback):
                yield f"{type(owner).__name__}.{hook} would not be called"
        if is_overridden(hook, module, LightningModule):
            yield f"{name}.{hook} would not be called"
    if not isinstance(module, TaskModule) and (reads := reads_of_a_moment(module)):
        yield f"{name}.training_step reads {name_some(reads)}, which would stay as it is at one step"


def reasons_after(changed: Sequence[str], *, finds_unused: bool) -> Iterator[str]:
    """What shows once steps have warmed up. changed: the attributes of the module that a step changes. finds_unused:
    whether DDP looks for parameters without a gradient."""
    if finds_unused:
        yield "some parameters get no gradient, and DDP looks for them in every step"
    if changed:
        yield f"training_step changes {name_some(changed)}, which a replay would not"
