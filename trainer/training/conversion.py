"""Applies the spec's normalization to a network, and reports what happened to every layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import nn

from syncnorm import norm
from syncnorm.trainer.contract.norm_choice import chosen_norm
from syncnorm.trainer.contract.spec import JobSpec, NormSpec
from syncnorm.trainer.models.memory_format import use_channels_last
from syncnorm.trainer.training.parameters.freezing import FrozenPart, find_frozen
from syncnorm.trainer.training.task_module import TaskModule, network_of


def convert(
    network: nn.Module, spec: JobSpec, group: dist.ProcessGroup | None
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """`network` with the spec's kind, and one entry {path, from, to} for every layer that was looked at.

    Raises: ValueError naming the module path where a layer can't be converted.
    """
    return convert_to(chosen_norm(spec), network, group)


def convert_to(
    wanted: NormSpec, network: nn.Module, group: dist.ProcessGroup | None
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """As `convert`. wanted: with the name of a kind, not `auto`."""
    converted, replacements = norm.convert(
        network,
        wanted.kind,
        group=group,
        overrides=[override.model_dump() for override in wanted.overrides],
        eps=wanted.eps,
        momentum=wanted.momentum,
        replace=wanted.replace,
        affine=wanted.affine,
        **wanted.options,
    )
    return converted, [replacement.as_json() for replacement in replacements]


class ConvertedNorms(LayerSync):
    """Converts a module once it is complete: after its setup and configure_model, before it gets its optimizers. What
    model.freeze names for good is frozen then, too, and train.memory_format applied.

    load: called with the converted network, to give it the weights that it starts from.
    report: one entry {path, from, to} for every layer, once it is done. kinds: how many layers of each kind there were.
    frozen: what each rule of model.freeze covers.
    """

    def __init__(
        self,
        spec: JobSpec,
        make_group: Callable[[], dist.ProcessGroup | None],
        load: Callable[[nn.Module], None] = lambda _: None,
    ) -> None:
        self._spec = spec
        self._make_group = make_group
        self._load = load
        self.report: list[dict[str, Any]] = []
        self.kinds: dict[str, int] = {}
        self.frozen: list[FrozenPart] = []
        self.group: dist.ProcessGroup | None = None

    def apply(self, model: nn.Module) -> nn.Module:
        assert isinstance(model, LightningModule)
        group = self.group = self._make_group()
        converted: nn.Module = model
        if self._spec.norm.replace == "all":
            self.kinds = norm.count_kinds(network_of(model))
        if isinstance(model, TaskModule):
            model.network, self.report = convert(model.network, self._spec, group)
        else:
            converted, self.report = convert(model, self._spec, group)
        assert isinstance(converted, LightningModule)
        self._load(network_of(converted))
        if self._spec.train.memory_format == "channels_last":
            use_channels_last(network_of(converted))
        self.frozen = find_frozen(network_of(converted), self._spec.model.freeze)
        for part in self.frozen:
            if part.rule.unfreeze_at is None:
                part.freeze()
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """Called by Lightning once training is over: the network stays as it was trained, for it is exported now."""
        return model
