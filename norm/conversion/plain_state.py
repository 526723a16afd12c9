"""The state_dict of a converted model in its original classes, where these can compute the same in eval mode."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from syncnorm.norm.conversion.edits import Step, steps_taken
from syncnorm.norm.conversion.fixup import FixupLayer, ScalarBias
from syncnorm.norm.kind import KINDS
from syncnorm.norm.layers.box_cox import BoxCox
from syncnorm.norm.layers.evo_norm import EvoNormS0
from syncnorm.norm.layers.filter_response_norm import FilterResponseNorm
from syncnorm.norm.layers.instance_norm import InstanceNorm
from syncnorm.norm.layers.weight import LINEAR_LAYERS
from syncnorm.norm.reading.dataflow import trace
from syncnorm.norm.reading.norm_act import is_identity
from syncnorm.norm.reading.readers import formula, num_groups, read_source

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_OF_SAMPLES = "normalizes with statistics of each sample"
_DOES: dict[type[nn.Module], str] = {
    nn.GroupNorm: _OF_SAMPLES,
    InstanceNorm: _OF_SAMPLES,
    FilterResponseNorm: f"{_OF_SAMPLES} and has a learned threshold",
    EvoNormS0: f"{_OF_SAMPLES} and is the activation, too",
    BoxCox: "raises values to a learned exponent",
    ScalarBias: "adds a learned number before the activation",
    FixupLayer: "adds learned numbers around a zero-padded convolution",
    nn.SELU: "is another activation",
}


class _NoPlainFormError(ValueError):
    """A layer computes what its original class can't."""


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict for the model that `convert` was given: its keys, and the same outputs in eval mode.

    A model that was never converted gives its own. Kinds with running statistics become batch normalization again. A
    removed layer becomes one that changes nothing. A normalized weight becomes the weight it stands for, and the bias
    it was given goes into the normalization behind it.

    Raises: ValueError if a layer computes what its original class can't, such as group normalization in the place of
    batch normalization. It names the layers and what to use instead.

    >>> import copy
    >>> plain = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
    >>> model, _ = norm.convert(copy.deepcopy(plain), "weight")
    >>> plain.load_state_dict(norm.plain_state_dict(model))
    <All keys matched successfully>
    >>> x = torch.randn(2, 3, 8, 8)
    >>> torch.testing.assert_close(plain.eval()(x), model.eval()(x))
    """
    steps = steps_taken(model)
    shifts = _moved_biases(model, steps)
    like = next((each for each in model.parameters() if each.is_floating_point()), torch.empty(0))
    found, refused = dict[str, Mapping[str, Tensor]](), dict[str, str]()
    for step in steps:
        try:
            tensors = _tensors(step, shifts, like)
        except _NoPlainFormError as error:
            refused[step.paths[0]] = str(error)
        else:
            found |= dict.fromkeys(step.paths, tensors)
    if refused:
        raise ValueError(_refusal(refused))
    replaced = tuple(f"{path}." if path else "" for path in found)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith(replaced)}
    return kept | {
        f"{path}.{name}" if path else name: value for path, tensors in found.items() for name, value in tensors.items()
    }


def _refusal(refused: Mapping[str, str]) -> str:
    (path, why), count = next(iter(refused.items())), len(refused)
    more = f" (and {count - 1} more)" if count > 1 else ""
    return (
        f"Each layer must compute what its original class can in eval mode, but {path or 'the model'}{more} {why}. "
        "Load the model's own state_dict into a network that norm.convert has converted alike, or use an exported form."
    )


def _tensors(step: Step, shifts: Mapping[nn.Module, Tensor], like: Tensor) -> Mapping[str, Tensor]:
    """The state_dict of the original at the place of `step`."""
    layer, original = step.new, step.old
    if isinstance(layer, LINEAR_LAYERS):
        return _of_weights(layer, original)
    if read_source(original, step.paths[0]) is not None:
        return _of_norm(layer, original, step.paths[0], shifts.get(layer), like)
    is_dropout = isinstance(original, _DROPOUTS)  # alpha dropout does as little in eval mode
    if is_dropout or type(layer) is type(original):
        return {}
    raise _refused(layer, original)


def _refused(layer: nn.Module, original: nn.Module) -> _NoPlainFormError:
    does = next((text for kind, text in _DOES.items() if isinstance(layer, kind)), "computes something else")
    name = type(layer).__name__
    return _NoPlainFormError(f"{'an' if name[0] in 'EI' else 'a'} {name}, {does}, where {type(original).__name__} was")


def _of_weights(layer: nn.Module, original: nn.Module) -> dict[str, Tensor]:
    """weight: what a reparametrized one stands for. A bias that the original lacks is elsewhere by now."""
    found = {"weight": cast(Tensor, layer.weight).detach()}
    return found | ({} if original.bias is None else {"bias": cast(Tensor, layer.bias).detach()})


def _of_norm(layer: nn.Module, original: nn.Module, path: str, shift: Tensor | None, like: Tensor) -> dict[str, Tensor]:
    has_statistics = isinstance(getattr(original, "running_mean", None), Tensor)
    old, new = read_source(original, path), read_source(layer, path)
    if isinstance(layer, nn.Identity) and has_statistics and old is not None:
        return _filled(original, _of_nothing(original, old.eps, shift, like))
    if old is None or new is None or (old.is_activation and formula(layer) is not formula(original)):
        raise _refused(layer, original)
    if has_statistics and isinstance(getattr(layer, "running_mean", None), Tensor):
        return _filled(original, _of_statistics(layer, new.eps, old.eps))
    is_batch = KINDS[new.kind].batch_statistics and KINDS[old.kind].batch_statistics
    is_regrouped = num_groups(layer) != num_groups(original)
    if has_statistics or new.eps != old.eps or is_regrouped or not (is_batch or new.kind == old.kind):
        raise _refused(layer, original)
    return _filled(original, _affine(layer, like))


def _of_nothing(original: nn.Module, eps: float, shift: Tensor | None, like: Tensor) -> dict[str, Tensor]:
    """y = x + shift."""
    zero = torch.zeros_like(original.get_buffer("running_mean"), dtype=like.dtype, device=like.device)
    bias = zero if shift is None else shift
    if original.weight is None:
        return {"weight": zero + 1, "bias": bias, "running_mean": zero, "running_var": zero + 1 - eps}
    return {"weight": zero + math.sqrt(1 + eps), "bias": bias, "running_mean": zero, "running_var": zero + 1}


def _of_statistics(layer: nn.Module, eps: float, original_eps: float) -> dict[str, Tensor]:
    """Where eps differs, the weight makes up for it, so that the variance stays what was measured."""
    found = {name: layer.get_buffer(name) for name in ("running_mean", "running_var")}
    tracked = getattr(layer, "num_batches_tracked", None)
    found |= {"num_batches_tracked": tracked} if isinstance(tracked, Tensor) else {}
    affine, var = _affine(layer, found["running_var"]), found["running_var"].double()
    if eps != original_eps:
        affine["weight"] = (affine["weight"] * ((var + original_eps) / (var + eps)).sqrt()).to(affine["weight"].dtype)
    return found | affine


def _affine(layer: nn.Module, like: Tensor) -> dict[str, Tensor]:
    """weight and bias; those of a layer without any change nothing."""
    channels = cast(int, getattr(layer, "num_features", None) or layer.num_channels)
    start = {"weight": torch.ones(channels), "bias": torch.zeros(channels)}
    given = {name: getattr(layer, name, None) for name in start}
    return {
        name: value.detach() if isinstance(value, Tensor) else start[name].to(like) for name, value in given.items()
    }


def _filled(original: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of `original` with `tensors`. What else it has, such as an activation's, is the trained one."""
    state = {name: value for name, value in original.state_dict().items() if isinstance(value, Tensor)}
    neutral = {"weight": 1.0, "bias": 0.0}
    for name, value in neutral.items():
        if name not in state and not bool((tensors[name] == value).all()):
            raise _NoPlainFormError(f"has a {name}, and its original {type(original).__name__} has none")
    return state | {name: tensors[name] for name in state.keys() & tensors.keys()}


def _moved_biases(model: nn.Module, steps: list[Step]) -> dict[nn.Module, Tensor]:
    """Biases that layers got for their lost normalization, by the layer that stands where it was."""
    given = [(step, bias) for step in steps if (bias := _new_bias(step)) is not None]
    if not given:
        return {}
    flow, places = trace(model), {step.new: step.old for step in steps}
    found: dict[nn.Module, Tensor] = {}
    for step, bias in given:
        reader = flow.after(step.new, lambda module: is_identity(module) and module not in places)
        original = None if reader is None else places.get(reader)
        if not isinstance(reader, nn.Identity) or not isinstance(getattr(original, "running_mean", None), Tensor):
            raise ValueError(
                f"Each layer must compute what its original class can, but {step.paths[0]} learned a bias that its "
                f"original {type(step.old).__name__} lacks, and it is not followed by a normalization that could take "
                "it. Convert with affine=False, use an exported form, or load the model's own state_dict."
            )
        found[reader] = bias
    return found


def _new_bias(step: Step) -> Tensor | None:
    """The bias of a layer whose original has none, unless it is 0."""
    if not isinstance(step.new, LINEAR_LAYERS) or step.old.bias is not None or step.new.bias is None:
        return None
    bias = step.new.bias.detach()
    return bias if bool(bias.any()) else None
