"""Converts the normalization of a whole model, and reverts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn
from torch.distributed import ProcessGroup

from syncnorm.norm.conversion.edits import Replacement, Step, apply, redo, report, steps_taken, undo
from syncnorm.norm.conversion.exchanges import Changes, Conversion, Keep
from syncnorm.norm.conversion.overrides import Override, read_rules
from syncnorm.norm.conversion.tied_weights import keep_ties
from syncnorm.norm.kind import Value
from syncnorm.norm.reading.compiled_parts import compiled_parts
from syncnorm.norm.reading.readers import read_source, uses_batch_statistics


def convert(
    model: nn.Module,
    kind: str,
    *,
    group: ProcessGroup | None = None,
    overrides: Sequence[Override | Mapping[str, Any]] = (),
    eps: float | Keep = "keep",
    momentum: float | Keep | None = "keep",
    affine: bool | Keep = "keep",
    replace: Literal["all", "batch"] = "all",
    **options: Value,
) -> tuple[nn.Module, list[Replacement]]:
    """Exchange every channel normalization of `model` for `kind`, in place; what was exchanged, by module path.

    A model converted before is reverted first, so that conversions do not pile up. A module used in several places
    stays one module. Forward and backward hooks, parametrizations, train/eval mode, dtype and device survive. Weight,
    bias and statistics go along where they mean the same, as the same parameters. docs/reference/normalizations.md has
    the table. nn.LayerNorm normalizes the last dimensions, no channels, and stays.

    Kinds of scope `weights` and `network` remove the layers and change others, see `weight_normalized`,
    `weight_standardized`, `self_normalizing_steps` and `fixup_steps`. evo_s0 and filter_response are the activation
    too: the one next to the layer goes, unless something else uses it; where there is none they are built without.
    Dropout between the two is looked through. Activations of other libraries are recognized by what they compute.

    group: the workers that share statistics, for kinds that synchronize; None: as in each layer, else all of them.
    eps, momentum, affine: "keep" takes them from each layer; momentum=None is the cumulative average.
    replace: "batch" exchanges layers with statistics of the batch alone, and leaves instance, group and frozen ones as
    they are, subclasses of them included, and what an earlier conversion exchanged for such layers, unless an override
    names one of those: that layer is then reverted first, or all of them where they may need each other, as layers of
    evo_s0 and the kinds of scope `weights` and `network` do; "all": every one. Overrides come first.
    overrides: other kinds by glob over module paths, as `Override` or as mappings with the same fields.
    options: those of `kind`, see `norm.kinds()[kind].options`.
    Returns: the model (another object only if `model` itself is a normalization layer) and the replacements.
    Raises: ValueError for a layer or a model that can't be converted. Whatever is raised, the model is as it was.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> model, replacements = norm.convert(model, "group", num_groups=4)
    >>> model[1].num_groups
    4
    >>> [replacement.path for replacement in replacements]
    ['1']
    """
    rules = read_rules(kind, options, overrides)
    for part in compiled_parts(model):
        raise ValueError(f"Normalization must be a layer to be converted. {part.message} {part.fix}")
    undone = _to_undo(model, rules, replace)
    model = undo(model, undone)
    try:
        steps = list(Conversion(model, rules, Changes(eps, momentum, affine, group), replace).steps())
        keep_ties(model, steps)
        return apply(model, steps), [report(step) for step in steps]
    except BaseException:
        redo(model, undone)
        raise


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
    return undo(model, steps_taken(model))


def _to_undo(model: nn.Module, rules: Sequence[Override], only: Literal["all", "batch"]) -> list[Step]:
    """The exchanges of earlier conversions that a new one starts without. One for statistics of the batch alone leaves
    those that chose other statistics, unless an override names a layer of theirs. Then that one is taken back alone if
    each exchanged a normalization and nothing else. Others may need each other, as an activation that is gone needs the
    layer that is the activation now."""
    steps = steps_taken(model)
    named = [step for step in steps if any(fnmatchcase(path, one.match) for one in rules[:-1] for path in step.paths)]
    if only == "all" or (named and not all(map(_is_of_one_layer, steps))):
        return steps
    return [step for step in steps if step in named or uses_batch_statistics(step.new)]


def _is_of_one_layer(step: Step) -> bool:
    """Whether `step` exchanged a normalization, as such, for another or for none."""
    sources = [read_source(module, step.paths[0]) for module in (step.old, step.new)]
    is_norm = [source is not None and not source.is_activation for source in sources]
    return is_norm[0] and (is_norm[1] or isinstance(step.new, nn.Identity))
