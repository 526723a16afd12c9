"""Which normalization a network gets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from syncnorm.trainer.contract.spec.values import Glob, KindName, Part, Workers


class NormOverride(Part):
    """Another kind for some layers only, such as `{match: head.*, kind: layer}`. The first override that matches a
    layer wins."""

    match: Glob
    """Glob over module paths, such as `layer4.*`. No default."""
    kind: KindName
    """The kind these layers get: a name from `norm.kinds()`. No default."""
    options: dict[str, Any] = {}
    """Options of this kind, such as `{num_groups: 8}`. Default: none, so that the kind's own defaults hold."""


class NormSpec(Part):
    """Which normalization the network gets, and which workers share its statistics."""

    kind: KindName = "sync_batch"
    """A name from `norm.kinds()`, or `auto`, which picks one and says why. Default: sync_batch, because it computes
    what one device would compute with the whole batch."""
    group: Literal["world", "node"] | Workers = "world"
    """Workers that share statistics: `world` (all), `node` (those of one host), or a number of neighbouring ranks.
    Default: world. Has an effect on kinds that synchronize only."""
    eps: Annotated[float, Field(ge=1e-20, le=1e3)] = 1e-5
    """Added to the variance, inside the root. Default: 1e-5, as in torch."""
    momentum: Annotated[float, Field(ge=0, le=1)] | None = 0.1
    """Weight of the *new* batch in the running statistics, as in torch. null: the average over all batches. Default:
    0.1, as in torch."""
    affine: bool = True
    """Whether the layers learn a scale and a shift per channel. Default: true, as in torch."""
    placement: Literal["before", "after"] = "before"
    """Normalization before or after the activation, in built-in models. Default: before, as in Ioffe & Szegedy 2015. A
    network of yours stays as you wrote it."""
    options: dict[str, Any] = {}
    """Options that this kind alone has, such as `{num_groups: 8}` for group; `GET /v1/norms` lists them. Default: none,
    so that the kind's own defaults hold."""
    overrides: Annotated[list[NormOverride], Field(max_length=64)] = []
    """Other kinds for some layers. Default: none. Applied together with `kind`, when an attempt builds the network."""
