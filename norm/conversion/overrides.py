"""Which kind the layers of a model become, by their paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from syncnorm.norm.kind import KINDS, Value
from syncnorm.norm.registry import read_options


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


def read_rules(
    kind: str, options: Mapping[str, Value], overrides: Sequence[Override | Mapping[str, Any]]
) -> list[Override]:
    """The overrides, and behind them the rule for all other layers. Raises: ValueError for what can't be one."""
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
