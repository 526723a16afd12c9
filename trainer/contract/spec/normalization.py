"""Which normalization a network gets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

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
    replace: Literal["all", "batch"] = "batch"
    """Which layers of the network become `kind`: `all` that normalize channels, or those with statistics of the `batch`
    alone, so that GroupNorm, InstanceNorm and frozen layers stay as they are. Overrides come first, whatever they name.
    Default: `all` if you name a kind, `batch` if you don't, or let `auto` choose."""
    eps: Annotated[float, Field(ge=1e-20, le=1e3)] | Literal["keep"] = "keep"
    """Added to the variance, inside the root. Default: `keep`, that of each layer; 1e-5 in built-in models, as in
    torch."""
    momentum: Annotated[float, Field(ge=0, le=1)] | Literal["keep"] | None = "keep"
    """Weight of the *new* batch in the running statistics, as in torch. null: the average over all batches. Default:
    `keep`, that of each layer; 0.1 in built-in models, as in torch."""
    affine: bool | Literal["keep"] = "keep"
    """Whether the layers learn a scale and a shift per channel. Default: `keep`, as each layer does; true in built-in
    models, as in torch."""
    placement: Literal["before", "after"] = "before"
    """Normalization before or after the activation, in built-in models. Default: before, as in Ioffe & Szegedy 2015. A
    network of yours stays as you wrote it."""
    options: dict[str, Any] = {}
    """Options that this kind alone has, such as `{num_groups: 8}` for group; `GET /v1/norms` lists them. Default: none,
    so that the kind's own defaults hold."""
    overrides: Annotated[list[NormOverride], Field(max_length=64)] = []
    """Other kinds for some layers. Default: none. Applied together with `kind`, when an attempt builds the network."""

    @model_validator(mode="before")
    @classmethod
    def _replace(cls, given: Any) -> Any:
        """Who names a kind means all layers, who does not has the batch in mind alone."""
        if not isinstance(given, dict) or "replace" in given:
            return given
        return given | {"replace": "batch" if given.get("kind", "auto") == "auto" else "all"}
