"""Freezes what model.freeze names, and unfreezes it at its moment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from syncnorm.norm.statistics.freezing import can_freeze_statistics, freeze_statistics, unfreeze_statistics
from syncnorm.trainer.contract.spec import FreezeRule
from syncnorm.trainer.training.parameters.matching import match

FIELD = "model.freeze"


@dataclass(frozen=True, eq=False)
class FrozenPart:
    """What one rule covers and no rule before it: parameters by name, and layers with running statistics."""

    rule: FreezeRule
    parameters: dict[str, nn.Parameter]
    layers: list[nn.Module]

    def freeze(self) -> None:
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        for layer in self.layers:
            freeze_statistics(layer)

    def unfreeze(self) -> None:
        for parameter in self.parameters.values():
            parameter.requires_grad_()
        for layer in self.layers:
            unfreeze_statistics(layer)


def find_frozen(network: nn.Module, rules: Sequence[FreezeRule]) -> list[FrozenPart]:
    """A part for each rule. Nothing is frozen yet.

    Raises: ValueError if a rule names nothing in `network`, or if nothing would be trained in the first step.
    """
    found = match(network, [rule.match for rule in rules], FIELD)
    names = {parameter: name for name, parameter in network.named_parameters()}
    parts = [FrozenPart(rule, {}, []) for rule in rules]
    for parameter, name in names.items():
        # What the user's code has frozen is the user's to unfreeze.
        if parameter in found.parameters and parameter.requires_grad:
            parts[found.parameters[parameter]].parameters[name] = parameter
    for layer in network.modules():
        if layer in found.modules and can_freeze_statistics(layer):
            parts[found.modules[layer]].layers.append(layer)
    if rules and not any(parameter.requires_grad and parameter not in found.parameters for parameter in names):
        raise ValueError(f"{FIELD} must leave something to train in the first step, but it covers every parameter.")
    return parts


def require_optimized(parts: Iterable[FrozenPart], optimized: Iterable[nn.Parameter], owner: str) -> None:
    """Raises: ValueError if parameters that are to be unfrozen are in no optimizer. owner: who made the optimizers."""
    known = set(optimized)
    for part in parts:
        missing = next((name for name, parameter in part.parameters.items() if parameter not in known), None)
        if missing is not None:
            raise ValueError(
                f"{FIELD}: {part.rule.match!r} can't be unfrozen later, because {owner} gives {missing} to no "
                "optimizer. Give it to one, or leave unfreeze_at out."
            )


def require_frozen(parts: Iterable[FrozenPart]) -> None:
    """Raises: ValueError if other code has unfrozen a parameter meanwhile."""
    for part in parts:
        for name, parameter in part.parameters.items():
            if parameter.requires_grad:
                raise ValueError(
                    f"{FIELD}: {part.rule.match!r} freezes {name}, but a hook or callback of yours unfreezes it. Leave "
                    "one of them out, or use unfreeze_at."
                )
