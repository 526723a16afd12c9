"""Counts the parameters of a network for its plan: frozen ones, and those of each group of the optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from syncnorm.trainer.contract.plan import FrozenParameters, ParameterGroup, Parameters
from syncnorm.trainer.training.parameters.freezing import FrozenPart


def parameters_of(network: nn.Module, frozen: Sequence[FrozenPart], optimizers: Iterable[Optimizer]) -> Parameters:
    """At the first step of a job."""
    later = {p for part in frozen if part.rule.unfreeze_at is not None for p in part.parameters.values()}
    trained = (p for p in network.parameters() if p.requires_grad and p not in later)
    return Parameters(
        total=_count(network.parameters()),
        trained=_count(trained),
        frozen=[
            FrozenParameters(
                match=part.rule.match,
                parameters=_count(part.parameters.values()),
                unfreeze_at=str(part.rule.unfreeze_at) if part.rule.unfreeze_at else None,
            )
            for part in frozen
        ],
        groups=[_group(group) for optimizer in optimizers for group in optimizer.param_groups],
    )


def _group(group: dict[str, Any]) -> ParameterGroup:
    rate = group.get("initial_lr", group.get("lr"))
    return ParameterGroup(
        match=group.get("match"),
        layer=group.get("layer"),
        parameters=_count(p for p in group["params"] if p.requires_grad),
        lr=None if rate is None else float(rate),
        weight_decay=float(group.get("weight_decay") or 0.0),
    )


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters if not is_lazy(parameter))
