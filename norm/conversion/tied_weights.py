"""Parameters that several modules share, through a conversion that gives each module new ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from torch.nn.utils import parametrize

from syncnorm.norm.conversion.edits import Step
from syncnorm.norm.conversion.fixup import FixupLayer
from syncnorm.norm.layers.weight import TRANSPOSED


@dataclass(frozen=True)
class _Holder:
    """A module that has the parameter, under `name`."""

    path: str
    module: nn.Module
    name: str


def keep_ties(model: nn.Module, steps: Sequence[Step]) -> None:
    """Make the new modules of `steps` share what the old ones shared.

    Raises: ValueError where some of the modules with a common parameter get another form of it, and others don't. That
    is so for the tied embedding and head of a language model, of which only the head can be weight-normalized.
    """
    new = {step.old: step.new for step in steps}
    for holders in _shared(model):
        replaced = [holder for holder in holders if _has_own(new, holder)]
        if not replaced:
            continue
        first = replaced[0]
        for other in holders:
            if other not in replaced or _form(new, other) != _form(new, first):
                raise ValueError(
                    f"Modules that share a parameter must be converted alike, but {first.path}.{first.name} is also "
                    f"{other.path}.{other.name}, of a {type(other.module).__name__} that can't be. Give each its "
                    f"own, or leave {first.path} as it is by an override to another kind, such as none."
                )
            _tie(_part(new, first), _part(new, other), first.name, other.name)


def _shared(model: nn.Module) -> list[list[_Holder]]:
    """The holders of every parameter that several modules have."""
    found: dict[nn.Parameter, list[_Holder]] = defaultdict(list)
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found[parameter].append(_Holder(path, module, name))
    return [holders for holders in found.values() if len(holders) > 1]


def _has_own(new: Mapping[nn.Module, nn.Module], holder: _Holder) -> bool:
    """Whether the module is replaced by one with a parameter of its own in this one's place."""
    if holder.module not in new:
        return False
    part = _part(new, holder)
    parameter = part._parameters.get(holder.name)
    is_other = parameter is not None and parameter is not holder.module._parameters[holder.name]
    return is_other or parametrize.is_parametrized(part, holder.name)


def _part(new: Mapping[nn.Module, nn.Module], holder: _Holder) -> nn.Module:
    """The module that has the new form of the parameter."""
    module = new[holder.module]
    return module.layer if isinstance(module, FixupLayer) else module


def _form(new: Mapping[nn.Module, nn.Module], holder: _Holder) -> tuple[object, ...]:
    part = _part(new, holder)
    if not parametrize.is_parametrized(part, holder.name):
        return ()
    chain = part.parametrizations[holder.name]  # type: ignore[index]
    return (*(type(each) for each in chain), isinstance(part, TRANSPOSED))  # they normalize another dimension


def _tie(first: nn.Module, other: nn.Module, name: str, other_name: str) -> None:
    """Let `other` have the parameter of `first`, or those that it is made of."""
    if parametrize.is_parametrized(first, name):
        chains, others = cast(Any, first.parametrizations), cast(Any, other.parametrizations)
        others[other_name]._parameters.update(chains[name]._parameters)
    else:
        other._parameters[other_name] = first._parameters[name]
