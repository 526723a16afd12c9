"""Converts the normalization of a whole model, and reverts it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn
from torch.distributed import ProcessGroup
from torch.nn.utils.parametrize import type_before_parametrizations

from syncnorm.norm.conversion.activations import adjacent_activation, has_adjacent_activation, is_activation
from syncnorm.norm.conversion.dataflow import Flow, trace
from syncnorm.norm.conversion.edits import Step, apply, redo, undo
from syncnorm.norm.conversion.fixup import ScalarBias, fixup_steps, residual_branch
from syncnorm.norm.conversion.readers import Source, read_source
from syncnorm.norm.conversion.self_normalizing import self_normalizing_steps
from syncnorm.norm.conversion.state_transfer import carry_tensors, place_like
from syncnorm.norm.kind import KINDS, Value
from syncnorm.norm.layers.weight import (
    CONVOLUTIONS,
    can_normalize_weight,
    out_channels,
    weight_normalized,
    weight_standardized,
)
from syncnorm.norm.paths import modules_with_paths
from syncnorm.norm.registry import build_layer, read_options

Keep = Literal["keep"]

# Kinds that are the activation too.
_ACTIVATING = ("evo_s0", "filter_response")


@dataclass(frozen=True)
class Override:
    """Another kind for the layers whose module path matches the glob `match`; the first match wins.

    >>> rule = norm.Override("backbone.*", "frozen_batch")
    >>> model = nn.ModuleDict({"backbone": nn.Sequential(nn.BatchNorm2d(4)), "head": nn.BatchNorm2d(4)})
    >>> [(r.path, r.after) for r in norm.convert(model, "sync_batch", overrides=[rule])[1]]
    [('backbone.0', 'FrozenBatchNorm'), ('head', 'SyncBatchNorm')]
    """

    match: str
    kind: str
    options: Mapping[str, Value] = field(default_factory=dict)


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

    A model converted before is reverted first, so that conversions do not pile up. A module used in several places
    stays one module. Forward and backward hooks, parametrizations, train/eval mode, dtype and device survive. Weight,
    bias and statistics go along where they mean the same, as the same parameters. docs/reference/normalizations.md has
    the table. nn.LayerNorm normalizes the last dimensions, no channels, and stays.

    Kinds of scope `weights` and `network` remove the layers and change others, see `weight_normalized`,
    `weight_standardized`, `self_normalizing_steps` and `fixup_steps`. evo_s0 and filter_response are the activation
    too: the one beside the layer goes, unless something else uses it; where there is none they are built without.

    group: the workers that share statistics, for kinds that synchronize; None: all of them.
    eps, momentum, affine: "keep" takes them from each layer; momentum=None is the cumulative average.
    overrides: other kinds by glob over module paths, as `Override` or as mappings with the same fields.
    options: those of `kind`, see `norm.kinds()[kind].options`.
    Returns: the model (another object only if `model` itself is a normalization layer) and the replacements.
    Raises: ValueError for a layer or a model that can't be converted; the model is then as it was.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> model, replacements = norm.convert(model, "group", num_groups=4)
    >>> model[1].num_groups
    4
    >>> [replacement.path for replacement in replacements]
    ['1']
    """
    rules = _read_rules(kind, options, overrides)
    model, undone = undo(model)
    try:
        steps = list(_Conversion(model, rules, _Changes(eps, momentum, affine, group)).steps())
    except ValueError:
        redo(model, undone)
        raise
    return apply(model, steps), [_report(step) for step in steps]


def revert(model: nn.Module) -> nn.Module:
    """Undo every `convert` of `model`, in place: the original modules, of their original classes, in their places.

    Weight, bias and statistics come back where they mean the same, else as they were before the conversion; so do
    weights that a conversion initialised anew. Without training in between the outputs are bit-identical to those
    before `convert`.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> converted, _ = norm.convert(model, "sync_batch")
    >>> type(norm.revert(converted)[1]).__name__
    'BatchNorm2d'
    """
    return undo(model)[0]


@dataclass(frozen=True)
class _Changes:
    """Arguments in which the new layers differ from the old ones."""

    eps: float | Keep
    momentum: float | Keep | None
    affine: bool | Keep
    group: ProcessGroup | None


class _Conversion:
    """The exchanges that convert a model by the first matching rule of each path. Changes nothing."""

    def __init__(self, model: nn.Module, rules: Sequence[Override], changes: _Changes) -> None:
        self.model = model
        self.rules = rules
        self.changes = changes
        self.kind = rules[-1].kind
        self.modules = modules_with_paths(model)
        self.dims = _convolution_dims(model)
        self.device_of = next(model.parameters(), None)
        uses_flow = {rule.kind for rule in rules} & {*_ACTIVATING, "weight_standardization", "selu"}
        self.flow = trace(model) if uses_flow else Flow()
        self.gone: set[nn.Module] = set()

    def steps(self) -> Iterator[Step]:
        has_affine = self.changes.affine is not False
        in_branches = self._modules_of_branches() if self.kind == "fixup" else set()
        for module, paths in self.modules:
            rule = self._rule(paths)
            if (source := read_source(module, paths[0])) is not None:
                yield from self._exchange_norm(module, paths, source, rule, is_bare=module in in_branches)
            elif rule.kind == "weight" and can_normalize_weight(module):
                yield Step(paths, module, weight_normalized(module, with_bias=has_affine), "weight normalized")
        if self.kind == "selu":
            yield from self_normalizing_steps(self.model, self.flow, with_bias=has_affine)
        if self.kind == "fixup":
            yield from fixup_steps(self.model, with_scalars=has_affine)

    def _exchange_norm(
        self, module: nn.Module, paths: tuple[str, ...], source: Source, rule: Override, *, is_bare: bool
    ) -> Iterator[Step]:
        activation, note = None, ""
        if rule.kind in _ACTIVATING:
            activation, note = self._activation(module)
        try:
            has_activation = activation is not None or bool(note)
            new = self._built(module, source, rule, has_activation=has_activation)
        except ValueError as error:
            raise ValueError(f"{paths[0] or 'The model'} can't become {rule.kind}: {error}") from error
        if rule.kind == "fixup" and not is_bare and self.changes.affine is not False:
            new = ScalarBias()
            place_like(new, module, self.device_of)
        yield Step(paths, module, new, note)
        if activation is not None:
            self.gone.add(activation)
            yield Step(self._paths(activation), activation, nn.Identity(), f"{rule.kind} is the activation")
        if rule.kind == "weight_standardization":
            yield from self._standardized(module, paths[0], source)

    def _built(self, module: nn.Module, source: Source, rule: Override, *, has_activation: bool) -> nn.Module:
        dims = source.dims or self.dims
        if dims is None and rule.kind == "batch":
            raise ValueError("the number of spatial dimensions can't be read off the model. Use sync_batch instead.")
        changes = {name: getattr(self.changes, name) for name in ("eps", "momentum", "affine")}
        spec = replace(
            source.as_spec(),
            dims=dims or 2,
            options=rule.options,
            process_group=self.changes.group,
            activation=has_activation,
            **{name: value for name, value in changes.items() if value != "keep"},
        )
        new = build_layer(rule.kind, spec)
        place_like(new, module, self.device_of)
        carry_tensors(module, new)
        return nn.Sequential(new, *source.tail) if source.tail else new

    def _activation(self, layer: nn.Module) -> tuple[nn.Module | None, str]:
        """The activation that the new layer replaces, or why it stays; neither if there is none."""
        neighbour = adjacent_activation(self.flow, layer)
        if neighbour is not None and neighbour not in self.gone:
            return neighbour, ""
        if layer not in self.flow.calls:
            return None, "what follows could not be traced; an activation after it stays"
        if has_adjacent_activation(self.flow, layer):
            return None, "the activation next to it is used elsewhere too, or is not a module, and stays"
        return None, ""

    def _standardized(self, layer: nn.Module, path: str, source: Source) -> Iterator[Step]:
        conv = self._convolution_before(layer, path, source.num_features)
        if conv is None or conv in self.gone or conv.get_parameter("weight")[0].numel() == 1:
            return
        self.gone.add(conv)
        yield Step(self._paths(conv), conv, weight_standardized(conv), "weight standardized")

    def _convolution_before(self, layer: nn.Module, path: str, num_features: int) -> nn.Module | None:
        """The convolution the layer reads, else the last one registered before it in the same parent."""
        found = self.flow.before(layer, lambda module: type(module) is nn.Identity or is_activation(module))
        if isinstance(found, CONVOLUTIONS):
            return found
        parent = self.model.get_submodule(path.rpartition(".")[0])
        children = list(parent.children())
        earlier = children[: children.index(layer)] if layer in children else []
        convs = [child for child in earlier if isinstance(child, CONVOLUTIONS) and out_channels(child) == num_features]
        return convs[-1] if convs else None

    def _modules_of_branches(self) -> set[nn.Module]:
        blocks = (module for module, _ in self.modules if residual_branch(module) is not None)
        return {part for block in blocks for part in block.modules()}

    def _paths(self, module: nn.Module) -> tuple[str, ...]:
        return next(paths for found, paths in self.modules if found is module)

    def _rule(self, paths: tuple[str, ...]) -> Override:
        return next(rule for rule in self.rules if any(fnmatchcase(path, rule.match) for path in paths))


def _read_rules(
    kind: str, options: Mapping[str, Value], overrides: Sequence[Override | Mapping[str, Any]]
) -> list[Override]:
    rules = [*(_read_override(item) for item in overrides), Override("*", kind, options)]
    for rule in rules:
        read_options(rule.kind, rule.options)
    if overrides and (networks := [rule.kind for rule in rules if KINDS[rule.kind].scope == "network"]):
        raise ValueError(
            f"{networks[0]} converts a network as a whole, so it can't be mixed with others by overrides. Leave the "
            "overrides out, or use a kind of scope layer."
        )
    return rules


def _read_override(item: Override | Mapping[str, Any]) -> Override:
    if isinstance(item, Override):
        return item
    if not {"match", "kind"} <= item.keys() <= {"match", "kind", "options"}:
        raise ValueError(f"An override must have match and kind, and optionally options; got {sorted(item)}.")
    return Override(**item)


def _convolution_dims(model: nn.Module) -> int | None:
    """The spatial dimensions of the model's convolutions, if they agree."""
    classes = (nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d)
    found = {dims for module in model.modules() for dims, kinds in enumerate(classes, 1) if isinstance(module, kinds)}
    return found.pop() if len(found) == 1 else None


def _report(step: Step) -> Replacement:
    before, after = (type_before_parametrizations(module).__name__ for module in (step.old, step.new))
    return Replacement(step.paths[0], before, after, step.paths[1:], step.note)
