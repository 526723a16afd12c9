"""Names of tensors: those of wrappers and other code turned into the network's. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from syncnorm.trainer.contract.spec import InitFrom
from syncnorm.trainer.contract.text import name_some
from syncnorm.trainer.weights.network import Network, Slot

_OF_OURS = "network."
_WRAPPERS = ("module.", "_orig_mod.", _OF_OURS)
"""Of DataParallel and DistributedDataParallel, torch.compile, and checkpoints of our built-in tasks."""
_OF_LOSS = "task."


def unwrap(source: Mapping[str, Slot], network: Network, how: InitFrom) -> dict[str, str | None]:
    """Names after `strip` and `rename`, by those in the source; None for what belongs to the loss of a job of ours."""
    names: dict[str, str | None] = {name: name for name in source}
    if how.strip is not None:
        names = {name: name.removeprefix(how.strip) for name in source}
    else:
        while (prefix := _wrapper(names.values(), network, how)) is not None:
            is_ours = prefix == _OF_OURS
            names = {
                name: None if now is None or (is_ours and now.startswith(_OF_LOSS)) else now.removeprefix(prefix)
                for name, now in names.items()
            }
    return {name: None if now is None else how.renamed(now) for name, now in names.items()}


def _wrapper(names: Iterable[str | None], network: Network, how: InitFrom) -> str | None:
    """The prefix of a wrapper that all names have, if they fit better without it."""
    present = [name for name in names if name is not None]
    for prefix in _WRAPPERS:
        inside = [name for name in present if name.startswith(prefix)]
        allowed = _OF_LOSS if prefix == _OF_OURS else prefix
        if not inside or not all(name.startswith((prefix, allowed)) for name in present):
            continue
        without = (how.renamed(name.removeprefix(prefix)) for name in inside)
        if _fitting(network, without) >= _fitting(network, map(how.renamed, inside)):
            return prefix
    return None


def _fitting(network: Network, names: Iterable[str]) -> int:
    return sum(name in network.places for name in names)


def hint(network: Network, wrapped: Mapping[str, str | None]) -> str:
    """What to change where names do not fit: a prefix that they have too much or too little, if one explains it."""
    names = [name for name in wrapped.values() if name is not None and name not in network.places]
    extra = Counter(prefix for name in names for prefix in _prefixes(name) if name[len(prefix) :] in network.places)
    if extra:
        return f'Set model.init_from.strip: "{extra.most_common(1)[0][0]}".'
    offered = set(names)
    lacking = Counter(prefix for place in network.own for prefix in _prefixes(place) if place[len(prefix) :] in offered)
    if lacking:
        return f'Set model.init_from.rename: {{"*": "{lacking.most_common(1)[0][0]}*"}}.'
    fix = "Correct model.init_from.strip and rename, name what is not wanted in drop"
    known = sorted({place.partition(".")[0] for place in network.own})
    return f"{fix}, or set model.init_from.strict: false. The network's names begin with {name_some(known, 6)}."


def unused(source: Collection[str], network: Network, how: InitFrom) -> Iterator[tuple[str, str]]:
    """(field, text) of each part of strip, rename and drop that fits no name."""
    names = list(source)
    if how.strip is not None:
        if not any(name.startswith(how.strip) for name in names):
            yield "model.init_from.strip", how.strip
        names = [name.removeprefix(how.strip) for name in names]
    for old, new in how.rename.items():
        alone = how.model_copy(update={"rename": {old: new}})
        if old != new and all(alone.renamed(name) == name for name in names):
            yield "model.init_from.rename", old
    known = [*(name for name in unwrap(dict.fromkeys(source, Slot(())), network, how).values() if name), *network.own]
    for glob in how.drop:
        if not any(fnmatchcase(name, glob) for name in known):
            yield "model.init_from.drop", glob


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) + "." for end in range(1, min(len(parts), 4)))
