"""What weights are loaded into, as far as matching needs it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Slot:
    """A tensor of the source, or a place in the network. kind: `float`, `complex` or `whole` numbers."""

    shape: tuple[int, ...]
    kind: str = "float"


@dataclass(frozen=True)
class Target(Slot):
    """A place. fills, of_kind: as norm.TensorPlace has them."""

    fills: tuple[str, ...] = ()
    of_kind: bool = False


@dataclass(frozen=True)
class Network:
    """What weights are loaded into. layers: kind of each normalization layer by path, as the model was written. kind:
    the one it is trained with. has_moving_biases: whether the model has biases before its norms with some kinds only,
    as built-in ones."""

    places: Mapping[str, Target]
    layers: Mapping[str, str] = field(default_factory=dict)
    kind: str = "batch"
    has_moving_biases: bool = False

    @property
    def own(self) -> dict[str, Target]:
        return {name: place for name, place in self.places.items() if name in place.fills}
