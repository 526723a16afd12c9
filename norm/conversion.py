"""Exchange the normalization of a whole model, and put the original back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed import ProcessGroup

from norm.carry import carry_hooks, carry_tensors, place_like
from norm.paths import modules_with_paths, put
from norm.registry import build_layer, read_options
from norm.sources import Source, read_source
from norm.traits import Value

Keep = Literal["keep"]


@dataclass(frozen=True)
class Override:
    """Another kind for the layers whose module path matches the glob `match`; the first match wins."""

    match: str
    kind: str
    options: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Replacement:
    """One module that was exchanged. `also`: further paths at which the same module is used."""

    path: str
    before: str
    after: str
    also: tuple[str, ...] = ()
    note: str = ""

    def as_json(self) -> dict[str, str]:
        return {"path": self.path, "from": self.before, "to": self.after} | ({"note": self.note} if self.note else {})


@dataclass(frozen=True)
class Original:
    """What stood in a module's place before the first conversion. Not a submodule: no state_dict shows it."""

    module: nn.Module


@dataclass(frozen=True)
class _Step:
    """One planned exchange."""

    paths: tuple[str, ...]
    old: nn.Module
    new: nn.Module
    note: str = ""


def convert(
    model: nn.Module,
    kind: str,
    *,
    group: ProcessGroup | None = None,
    overrides: Sequence[Override | Mapping[str, Any]] = (),
    eps: float | Keep = "keep",
    momentum: float | Keep | None = "keep",
    affine: bool | Keep = "keep",
    **options: Value,
) -> tuple[nn.Module, list[Replacement]]:
    """Exchange every channel normalization of `model` for `kind`, in place; what was exchanged, by module path.

    A module used in several places stays one module. Hooks, parametrizations, train/eval mode, dtype and device
    survive. Parameters stay the same objects, so that an optimizer made before keeps them. Statistics, weight and bias
    go along where they mean the same; norm/README.md has the table. nn.LayerNorm normalizes the last dimensions, no
    channels, and stays.

    group: the workers that share statistics, for kinds that synchronize; None: all of them.
    eps, momentum, affine: "keep" takes them from each layer; momentum=None is the cumulative average.
    overrides: other kinds by glob over module paths, as `Override` or as mappings with the same fields.
    options: those of `kind`, see `norm.kinds()[kind].options`.
    Returns: the model (another object only if `model` itself is a normalization layer) and the replacements.
    Raises: ValueError for a layer that can't be converted; the model is then as it was.
    """
    rules = [*(_read_override(item) for item in overrides), Override("*", kind, options)]
    for rule in rules:
        read_options(rule.kind, rule.options)
    changes = _Changes(eps, momentum, affine, group)
    steps = list(_plan(model, rules, changes))
    for step in steps:
        for path in step.paths:
            model = put(model, path, step.new)
    return model, [_report(step) for step in steps]


def revert(model: nn.Module) -> nn.Module:
    """Undo every `convert` of `model`, in place: the original modules, of their original classes, in their places.

    Weight, bias and statistics come back where they mean the same, else as they were before the conversion.
    Without training in between the outputs are bit-identical to those before `convert`.
    """
    device_of = next(model.parameters(), None)
    for module, paths in modules_with_paths(model):
        if (original := _original(module)) is not None:
            original.train(module.training)
            place_like(original, module, device_of)
            carry_tensors(_layer(module), original)
            for path in paths:
                model = put(model, path, original)
    return model


@dataclass(frozen=True)
class _Changes:
    """What the new layers are to have different from the old ones."""

    eps: float | Keep
    momentum: float | Keep | None
    affine: bool | Keep
    group: ProcessGroup | None


def _plan(model: nn.Module, rules: Sequence[Override], changes: _Changes) -> Iterator[_Step]:
    device_of = next(model.parameters(), None)
    dims_of_model = _convolution_dims(model)
    parts: set[nn.Module] = set()  # of layers converted before, with something behind the normalization
    for module, paths in modules_with_paths(model):
        original = _original(module) or module
        if module in parts or (source := _source(module, original, paths[0])) is None:
            continue
        parts.update(module.modules())
        rule = next(rule for rule in rules if any(fnmatchcase(path, rule.match) for path in paths))
        if source.dims is None:
            source = replace(source, dims=dims_of_model)
        try:
            new = _exchange(_layer(module), source, rule, changes, device_of)
        except ValueError as error:
            raise ValueError(f"{paths[0] or 'The model'} can't become {rule.kind}: {error}") from error
        carry_hooks(module, new)
        object.__setattr__(new, "_norm_original", Original(original))
        yield _Step(paths, module, new)


def _exchange(
    layer: nn.Module, source: Source, rule: Override, changes: _Changes, device_of: torch.Tensor | None
) -> nn.Module:
    if source.dims is None and rule.kind == "batch":
        raise ValueError("the model does not tell the number of its spatial dimensions. Use sync_batch instead.")
    spec = replace(source.as_spec(), options=rule.options, process_group=changes.group)
    if changes.eps != "keep":
        spec = replace(spec, eps=changes.eps)
    if changes.momentum != "keep":
        spec = replace(spec, momentum=changes.momentum)
    if changes.affine != "keep":
        spec = replace(spec, affine=changes.affine)
    new = build_layer(rule.kind, spec)
    place_like(new, layer, device_of)
    carry_tensors(layer, new)
    if source.tail:
        new = nn.Sequential(new, *source.tail)
    return new.train(layer.training)


def _source(module: nn.Module, original: nn.Module, path: str) -> Source | None:
    """What `module` is now; what it was at first where that can't be seen any more, as in an Identity."""
    first = read_source(original, path)
    now = read_source(_layer(module), path) or first
    if first is None or now is None:
        return now
    return replace(now, dims=first.dims, tail=first.tail)


def _original(module: nn.Module) -> nn.Module | None:
    record = module.__dict__.get("_norm_original")
    return record.module if isinstance(record, Original) else None


def _layer(module: nn.Module) -> nn.Module:
    """The normalization itself: a converted layer may have others behind it."""
    if _original(module) is not None and isinstance(module, nn.Sequential):
        return module[0]
    return module


def _convolution_dims(model: nn.Module) -> int | None:
    """The spatial dimensions of the model's convolutions, if they agree."""
    classes = (nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d)
    found = {dims for module in model.modules() for dims, kinds in enumerate(classes, 1) if isinstance(module, kinds)}
    return found.pop() if len(found) == 1 else None


def _report(step: _Step) -> Replacement:
    return Replacement(step.paths[0], _name(step.old), _name(step.new), step.paths[1:], step.note)


def _name(module: nn.Module) -> str:
    return nn.utils.parametrize.type_before_parametrizations(module).__name__


def _read_override(item: Override | Mapping[str, Any]) -> Override:
    if isinstance(item, Override):
        return item
    if not {"match", "kind"} <= item.keys() <= {"match", "kind", "options"}:
        raise ValueError(f"An override must have match, kind and, if it likes, options; got {sorted(item)}.")
    return Override(**item)
