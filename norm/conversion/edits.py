"""Replaces modules of a model, remembers the originals, and restores them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from syncnorm.norm.conversion.state_transfer import carry_back, typical_parameter
from syncnorm.norm.modules import carry_hooks
from syncnorm.norm.paths import modules_with_paths, put


@dataclass(frozen=True)
class Step:
    """One exchange: `new` in the place of `old`, at all of its paths. `note`: what a user should know about it."""

    paths: tuple[str, ...]
    old: nn.Module
    new: nn.Module
    note: str = ""


@dataclass(frozen=True)
class Original:
    """What stood in a module's place. Not a submodule: no state_dict shows it, and it is copied along."""

    module: nn.Module


@dataclass(frozen=True)
class Replacement:
    """One module that was exchanged. `also`: further paths at which the same module is used.

    >>> _, replacements = norm.convert(nn.Sequential(nn.BatchNorm2d(4)), "instance")
    >>> replacements[0].as_json()
    {'path': '0', 'from': 'BatchNorm2d', 'to': 'InstanceNorm'}
    """

    path: str
    before: str
    after: str
    also: tuple[str, ...] = ()
    note: str = ""

    def as_json(self) -> dict[str, str]:
        return {"path": self.path, "from": self.before, "to": self.after} | ({"note": self.note} if self.note else {})


def report(step: Step) -> Replacement:
    """`step` for the user."""
    before, after = (type_before_parametrizations(module).__name__ for module in (step.old, step.new))
    return Replacement(step.paths[0], before, after, step.paths[1:], step.note)


def apply(model: nn.Module, steps: Iterable[Step]) -> nn.Module:
    """`model` after `steps`; each new module remembers the old one, and has its mode and hooks. All of them or none."""
    done: list[Step] = []
    try:
        for step in steps:
            done.append(step)
            step.new.train(step.old.training)
            carry_hooks(step.old, step.new)
            object.__setattr__(step.new, "_norm_original", Original(step.old))
            model = _put_everywhere(model, step.paths, step.new)
    except BaseException:
        for step in reversed(done):
            model = _put_everywhere(model, step.paths, step.old)
        raise
    return model


def undo(model: nn.Module, steps: Sequence[Step]) -> nn.Module:
    """`model` before `steps`, which were taken; what was learned since is carried back where it means the same. All of
    them or none."""
    typical = typical_parameter(model)
    try:
        for step in steps:
            step.old.train(step.new.training)
            carry_back(step.new, step.old, typical)
            model = _put_everywhere(model, step.paths, step.old)
    except BaseException:
        redo(model, steps)
        raise
    return model


def steps_taken(model: nn.Module) -> list[Step]:
    """Every exchange of `apply` that is in effect."""
    return [
        Step(paths, original, module)
        for module, paths in modules_with_paths(model)
        if (original := original_of(module)) is not None
    ]


def redo(model: nn.Module, steps: Iterable[Step]) -> nn.Module:
    """`model` before the `undo` of `steps`."""
    for step in steps:
        model = _put_everywhere(model, step.paths, step.new)
    return model


def original_of(module: nn.Module) -> nn.Module | None:
    """What stood in its place before `apply`."""
    record = module.__dict__.get("_norm_original")
    return record.module if isinstance(record, Original) else None


def _put_everywhere(model: nn.Module, paths: Iterable[str], module: nn.Module) -> nn.Module:
    for path in paths:
        model = put(model, path, module)
    return model
