"""What the owner of a network should know about how its normalization is exchanged, as findings of the plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from syncnorm.norm.kind import KINDS
from syncnorm.trainer.contract.spec import NormSpec
from syncnorm.trainer.contract.spec_findings import Finding
from syncnorm.trainer.training.conversion import ConvertedNorms


def conversion_findings(wanted: NormSpec, norms: ConvertedNorms) -> Iterator[Finding]:
    """Of a network that mixes normalizations, and of one in which nothing is exchanged."""
    with_batch = {kind: count for kind, count in norms.kinds.items() if KINDS[kind].batch_statistics}
    others = {kind: count for kind, count in norms.kinds.items() if kind not in with_batch}
    if with_batch and others and not wanted.overrides:
        yield Finding(
            code="mixed_normalizations",
            path="norm.replace",
            message=f"The network mixes {_layers(with_batch)} with {_layers(others)}, and all become {wanted.kind}.",
            fix="Set norm.replace to batch if the others should stay as you wrote them.",
            severity="warning",
        )
    if not norms.report:
        which = "no normalization over channels" if wanted.replace == "all" else "no normalization over the batch"
        yield Finding(
            code="nothing_exchanged",
            path="norm.kind",
            message=f"The network has {which}, so it stays as you wrote it.",
            fix="Nothing, if you meant it so. Layers of a class of your own are described with norm.register_source.",
            severity="info",
        )


def _layers(kinds: Mapping[str, int]) -> str:
    """2 batch and 1 frozen_batch layers."""
    names = " and ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{names} layer" if sum(kinds.values()) == 1 else f"{names} layers"
