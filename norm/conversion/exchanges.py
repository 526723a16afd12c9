"""The exchanges of modules that convert a model to another kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from torch.distributed import ProcessGroup

from syncnorm.norm.conversion.edits import Step
from syncnorm.norm.conversion.fixup import ScalarBias, fixup_steps, residual_branch
from syncnorm.norm.conversion.overrides import Override
from syncnorm.norm.conversion.self_normalizing import self_normalizing_steps
from syncnorm.norm.conversion.state_transfer import carry_tensors, changes_in_eval, place_like, typical_parameter
from syncnorm.norm.layers.weight import (
    CONVOLUTIONS,
    can_normalize_weight,
    out_channels,
    weight_normalized,
    weight_standardized,
)
from syncnorm.norm.paths import errors_named, modules_with_paths
from syncnorm.norm.reading.activations import (
    USED_ELSEWHERE,
    NearbyActivation,
    nearby_activation,
    writes_into_shared,
)
from syncnorm.norm.reading.dataflow import Flow, trace
from syncnorm.norm.reading.elementwise import Effect, effect
from syncnorm.norm.reading.norm_act import out_of_place, with_tail
from syncnorm.norm.reading.readers import Source, is_without_batch, named_tail, read_source
from syncnorm.norm.registry import build_layer

Keep = Literal["keep"]

# Kinds that are the activation too, and those that leave nothing in the place of a layer.
_ACTIVATING = ("evo_s0", "filter_response")
_REMOVING = ("none", "weight", "fixup")
_WITHOUT_ACTIVATION = {
    "evo_s0": "no activation is next to it, so it scales and shifts, and normalizes nothing",
    "filter_response": "no activation is next to it, so it is built without its threshold",
}


@dataclass(frozen=True)
class Changes:
    """Arguments in which the new layers differ from the old ones."""

    eps: float | Keep
    momentum: float | Keep | None
    affine: bool | Keep
    group: ProcessGroup | None


class Conversion:
    """The exchanges that convert a model by the first matching rule of each path. Changes nothing."""

    def __init__(
        self, model: nn.Module, rules: Sequence[Override], changes: Changes, only: Literal["all", "batch"]
    ) -> None:
        self.model = model
        self.rules = rules
        self.changes = changes
        self.only = only
        self.kind = rules[-1].kind
        self.modules = modules_with_paths(model)
        self.dims = _convolution_dims(model)
        self.typical = typical_parameter(model)
        kinds, self.in_place = (
            {rule.kind for rule in rules},
            [m for m in model.modules() if getattr(m, "inplace", False)],
        )
        uses_flow = bool(kinds & {*_ACTIVATING, "weight_standardization", "selu"})
        self.flow = trace(model) if uses_flow or (self.in_place and kinds & {*_REMOVING}) else Flow()
        self.gone: set[nn.Module] = set()

    def steps(self) -> Iterator[Step]:
        has_affine = self.changes.affine is not False
        in_branches = self._modules_of_branches() if self.kind == "fixup" else set()
        removed: list[nn.Module] = []
        for module, paths in self.modules:
            rule = self._rule(paths)
            if self.only == "batch" and rule is self.rules[-1] and is_without_batch(module, paths[0]):
                continue
            source = read_source(module, paths[0])
            with errors_named(f"{paths[0] or 'The model'} can't become {rule.kind}"):
                if source is not None:
                    steps = list(self._exchange_norm(module, paths, source, rule, is_bare=module in in_branches))
                    removed += [step.old for step in steps if step.old is module and isinstance(step.new, nn.Identity)]
                    yield from steps
                elif rule.kind == "weight" and can_normalize_weight(module):
                    yield Step(paths, module, weight_normalized(module, with_bias=has_affine), "weight normalized")
        if self.kind == "selu":
            yield from self_normalizing_steps(self.model, self.flow, with_bias=has_affine)
        if self.kind == "fixup":
            yield from fixup_steps(self.model, with_scalars=has_affine)
        if self.kind != "selu":  # whose activations work out of place
            yield from self._out_of_place(removed)

    def _exchange_norm(
        self, module: nn.Module, paths: tuple[str, ...], source: Source, rule: Override, *, is_bare: bool
    ) -> Iterator[Step]:
        tail = named_tail(module, source)
        self.gone.update(source.tail)
        nearby = self._activation(module, source, tail) if rule.kind in _ACTIVATING else NearbyActivation()
        new = self._built(module, source, rule, has_activation=nearby != NearbyActivation())
        if rule.kind == "fixup" and not is_bare and self.changes.affine is not False:
            new = ScalarBias()
            place_like(new, module, self.typical)
        notes = [nearby.stays, *changes_in_eval(source, module, new)]
        if rule.kind in _ACTIVATING and nearby == NearbyActivation():
            notes.append(_WITHOUT_ACTIVATION[rule.kind])
        if name := next((name for name, part in tail.items() if part is nearby.module), ""):
            tail[name] = nn.Identity()
            notes.append(f"{rule.kind} is the activation, and its own {type(nearby.module).__name__} goes")
        yield Step(paths, module, with_tail(new, tail) if tail else new, "; ".join(filter(None, notes)))
        if nearby.module is not None and not name:
            self.gone.add(nearby.module)
            yield Step(self._paths(nearby.module), nearby.module, nn.Identity(), f"{rule.kind} is the activation")
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
            process_group=self.changes.group or source.process_group,
            activation=has_activation,
            **{name: value for name, value in changes.items() if value != "keep"},
        )
        new = build_layer(rule.kind, spec)
        place_like(new, module, self.typical)
        carry_tensors(module, new)
        return new

    def _activation(self, layer: nn.Module, source: Source, tail: Mapping[str, nn.Module]) -> NearbyActivation:
        """The activation that the new layer replaces: the layer's own, or one next to it; or why it stays."""

        def effect_of(module: nn.Module) -> Effect | None:
            return effect(module, source.num_features, source.dims or self.dims)

        own = [module for module in tail.values() if effect_of(module) != "identity"]
        if own:
            is_alone = len(own) == 1 and effect_of(own[0]) == "activation"
            return NearbyActivation(own[0]) if is_alone else NearbyActivation(stays="what it applies itself stays")
        nearby = nearby_activation(self.flow, layer, effect_of)
        return replace(nearby, module=None, stays=USED_ELSEWHERE) if nearby.module in self.gone else nearby

    def _standardized(self, layer: nn.Module, path: str, source: Source) -> Iterator[Step]:
        conv = self._convolution_before(layer, path, source.num_features)
        if conv is None or conv in self.gone:
            return
        new = weight_standardized(conv)
        if new.get_parameter("parametrizations.weight.original")[0].numel() > 1:
            self.gone.add(conv)
            yield Step(self._paths(conv), conv, new, "weight standardized")

    def _convolution_before(self, layer: nn.Module, path: str, num_features: int) -> nn.Module | None:
        """The convolution the layer reads, else the last one registered before it in the same parent."""
        found = self.flow.before(layer, lambda module: effect(module, num_features) in ("identity", "activation"))
        if isinstance(found, CONVOLUTIONS):
            return found
        parent = self.model.get_submodule(path.rpartition(".")[0])
        children = list(parent.children())
        earlier = children[: children.index(layer)] if layer in children else []
        convs = [child for child in earlier if isinstance(child, CONVOLUTIONS) and out_channels(child) == num_features]
        return convs[-1] if convs else None

    def _out_of_place(self, removed: Sequence[nn.Module]) -> Iterator[Step]:
        """Exchange what wrote into the output of a layer, and would now write into its input, which others read too."""
        writers = {module for layer in removed for module in writes_into_shared(self.flow, layer, effect)}
        unknown = [self._paths(layer)[0] for layer in removed if layer not in self.flow.calls]
        for module in self.in_place if removed else ():
            is_writer = module in writers or (unknown and self._may_follow(module, unknown))
            if is_writer and module not in self.gone and effect(module) is not None:
                note = "not in place any more, since others may read what it would write into"
                yield Step(self._paths(module), module, out_of_place(module), note)

    def _may_follow(self, module: nn.Module, unknown: Sequence[str]) -> bool:
        """Whether `module` may read the output of a layer whose call is not known, one of the training branch for
        example: its own calls are not known either, or there may be more than are known, since it is used at several
        places, or belongs to a module around the layer."""
        paths = self._paths(module)
        owners = [path.rpartition(".")[0] for path in paths]
        is_around = any(not owner or path.startswith(f"{owner}.") for owner in owners for path in unknown)
        return module not in self.flow.calls or len(paths) > 1 or is_around

    def _modules_of_branches(self) -> set[nn.Module]:
        blocks = (module for module, _ in self.modules if residual_branch(module) is not None)
        return {part for block in blocks for part in block.modules()}

    def _paths(self, module: nn.Module) -> tuple[str, ...]:
        return next(paths for found, paths in self.modules if found is module)

    def _rule(self, paths: tuple[str, ...]) -> Override:
        return next(rule for rule in self.rules if any(fnmatchcase(path, rule.match) for path in paths))


def _convolution_dims(model: nn.Module) -> int | None:
    """The spatial dimensions of the model's convolutions, if they agree."""
    classes = (nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d)
    found = {dims for module in model.modules() for dims, kinds in enumerate(classes, 1) if isinstance(module, kinds)}
    return found.pop() if len(found) == 1 else None
