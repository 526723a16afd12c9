"""Which tensor of the source goes where in the network, and what is said of the rest. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from syncnorm.trainer.contract.initial_weights import PlacedTensor, shown
from syncnorm.trainer.contract.spec import InitFrom
from syncnorm.trainer.contract.text import counted
from syncnorm.trainer.weights.network import Network, Slot
from syncnorm.trainer.weights.tensor_names import hint, unwrap

COUNTER = "num_batches_tracked"
"""Frozen layers of torchvision, Detectron2 and Hugging Face have none, and it changes no output."""
_MOST_NAMED = 20


@dataclass
class Matching:
    """pairs: names in the source by the place that they go to. zeros: places that are set to 0. faults: what speaks
    against loading, in sentences, each with what to change."""

    pairs: dict[str, str] = field(default_factory=dict)
    zeros: list[str] = field(default_factory=list)
    dropped: list[PlacedTensor] = field(default_factory=list)
    left: list[PlacedTensor] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    loaded: list[PlacedTensor] = field(default_factory=list)


def match(source: Mapping[str, Slot], network: Network, how: InitFrom) -> Matching:
    """Where each tensor of `source` goes."""
    found = Matching()
    wrapped = unwrap(source, network, how)
    homeless: list[PlacedTensor] = []
    misshaped: list[PlacedTensor] = []
    for name, slot in source.items():
        why = _settle(name, wrapped.get(name), slot, network, how, found)
        if why is not None:
            tensor = PlacedTensor(name=name, shape=list(slot.shape), why=why.text)
            found.dropped.append(tensor)
            {_NO_PLACE: homeless, _NO_FIT: misshaped}.get(why.of, []).append(tensor)
    known = (network.places.get(name or "") for name in wrapped.values())
    offered = {own for place in known if place is not None for own in place.fills}
    unfilled = _leave(network, how, found, offered)
    _note_faults(found, network, how, wrapped, homeless, misshaped, unfilled)
    return found


_NO_PLACE, _NO_FIT, _FINE = "no place", "no fit", "fine"


@dataclass(frozen=True)
class _Why:
    text: str
    of: str = _FINE


def _settle(
    name: str, renamed: str | None, slot: Slot, network: Network, how: InitFrom, found: Matching
) -> _Why | None:
    """Pair a tensor with its place; else why it is dropped."""
    if renamed is None:
        return _Why("belongs to the loss of the job, not to its network")
    if any(fnmatchcase(renamed, glob) for glob in how.drop):
        return _Why("model.init_from.drop")
    place = network.places.get(renamed)
    if place is None:
        return _without_place(renamed, network)
    if place.shape != slot.shape or place.kind != slot.kind:
        what = f"shape {_shape(place.shape)}" if place.shape != slot.shape else f"{place.kind} numbers"
        given = f"shape {_shape(slot.shape)}" if place.shape != slot.shape else f"{slot.kind} numbers"
        return _Why(f"{renamed} has {what} in the network, {given} in the source", _NO_FIT)
    if (before := found.pairs.get(renamed)) is not None:
        return _Why(f"{before} goes to {renamed} already", _NO_FIT)
    found.pairs[renamed] = name
    found.loaded.append(PlacedTensor(name=renamed, shape=list(slot.shape), why="" if renamed == name else name))
    return None


def _without_place(name: str, network: Network) -> _Why:
    path, _, attribute = name.rpartition(".")
    if path in network.layers:
        return _Why(f"{network.kind} has no {attribute}")
    if attribute == COUNTER:
        return _Why("counts batches, which no output depends on")
    if attribute == "bias" and network.has_moving_biases and f"{path}.weight" in network.places:
        return _Why(f"{network.kind} subtracts the mean behind it, so the layer has no bias")
    return _Why("there is no such place in the network", _NO_PLACE)


def _leave(network: Network, how: InitFrom, found: Matching, offered: set[str]) -> list[PlacedTensor]:
    """Note the places that keep their values; returns those that should have got a tensor."""
    filled = {own for name in found.pairs for own in network.places[name].fills}
    missing = []
    for name, place in network.own.items():
        if name in filled:
            continue
        path, _, attribute = name.rpartition(".")
        why = ""
        if any(fnmatchcase(name, glob) for glob in how.drop):
            why = "model.init_from.drop"
        elif place.of_kind:
            why = f"of {network.kind}, not in the source"
        elif attribute == COUNTER:
            why = "not in the source"
        elif network.has_moving_biases and attribute == "bias" and f"{path}.weight" in found.pairs:
            why = "0, because the source has no bias there"
            found.zeros.append(name)
        tensor = PlacedTensor(name=name, shape=list(place.shape), why=why or "not in the source")
        found.left.append(tensor)
        if not why and name not in offered:
            missing.append(tensor)
    return missing


def _note_faults(
    found: Matching,
    network: Network,
    how: InitFrom,
    wrapped: Mapping[str, str | None],
    homeless: Sequence[PlacedTensor],
    misshaped: Sequence[PlacedTensor],
    missing: Sequence[PlacedTensor],
) -> None:
    if not found.pairs:
        text = f"no tensor of the source has a place in the network; it offers {_some(found.dropped)}"
        found.faults.append((f"{text}, and the network has {_some(list(_own(network)))}.", hint(network, wrapped)))
        return
    if not how.strict:
        return
    if misshaped and len(homeless) + len(misshaped) > len(found.pairs):
        found.faults.append(_of_another_network(found, homeless, misshaped))
        return
    if homeless:
        text = f"{counted(len(homeless), 'tensor')} of the source must have a place in the network: {_some(homeless)}."
        found.faults.append((text, hint(network, wrapped)))
    if misshaped:
        text = "tensors must fit their places: " + "; ".join(one.why for one in misshaped[:_MOST_NAMED])
        heads = sorted({(wrapped[one.name] or "").rpartition(".")[0] for one in misshaped})
        more = f" and {len(misshaped) - _MOST_NAMED} more" if len(misshaped) > _MOST_NAMED else ""
        globs = [f"{head}.*" for head in heads[:3] if head] or ["NAME"]
        fix = f"If that part is to be trained anew, set model.init_from.drop: {globs}."
        found.faults.append((f"{text}{more}.", fix.replace("'", '"')))
    if missing:
        text = f"{counted(len(missing), 'place')} of the network must get a tensor of the source: {_some(missing)}."
        fix = "Name them in model.init_from.drop if they are to be trained anew, or set model.init_from.strict: false."
        found.faults.append((text, fix))


def _of_another_network(
    found: Matching, homeless: Sequence[PlacedTensor], misshaped: Sequence[PlacedTensor]
) -> tuple[str, str]:
    """One fault for all: advice on single tensors would lead nowhere."""
    text = f"they look like those of another network. {counted(len(found.pairs), 'tensor')} of the source would fit, "
    without = f", and {len(homeless)} have no place in the network: {shown(homeless, 3)}" if homeless else ""
    return (
        f"{text}{len(misshaped)} have another shape, such as that {misshaped[0].why}{without}.",
        "Compare the network that the weights are of with model.name and model.init_args, such as its depth.",
    )


def _own(network: Network) -> Iterator[PlacedTensor]:
    return (PlacedTensor(name=name, shape=list(place.shape)) for name, place in network.own.items())


def _some(tensors: Sequence[PlacedTensor]) -> str:
    return shown(tensors, _MOST_NAMED) or "none"


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
