"""What weights lose, or lack, where the network has another kind of normalization than they were trained with. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from syncnorm.trainer.contract.initial_weights import PlacedTensor
from syncnorm.trainer.contract.spec_findings import Finding
from syncnorm.trainer.contract.text import counted
from syncnorm.trainer.weights.network import Network
from syncnorm.trainer.weights.tensor_matching import COUNTER, Matching


def losses(matching: Matching, network: Network, *, is_cumulative: bool) -> Iterator[Finding]:
    """What a changed kind of normalization loses or lacks. is_cumulative: running statistics average all batches."""
    lost = _by_attribute(tensor for tensor in matching.dropped if tensor.why.startswith(f"{network.kind} has no "))
    lost.pop(COUNTER, None)
    if lost:
        layers = max(lost.values())
        yield Finding(
            code="weights_lost",
            path="norm.kind",
            message=f"{network.kind} has no place for {' and '.join(lost)} of {counted(layers, 'layer')}, which the "
            "weights of model.init_from were trained with: the network computes something else until it is trained.",
            fix="Use a kind that has them, such as sync_batch or frozen_batch, or train for some epochs.",
            severity="warning",
        )
    lacking = _by_attribute(
        tensor for tensor in matching.left if tensor.why.startswith(f"of {network.kind}, not in the source")
    )
    had_counter = lacking.pop(COUNTER, None) is None
    if lacking:
        is_for_good = network.kind == "frozen_batch"
        tail = "which frozen_batch never changes" if is_for_good else "until training sets them"
        yield Finding(
            code="weights_without_place",
            path="norm.kind",
            message=f"{' and '.join(lacking)} of {counted(max(lacking.values()), 'layer')} of {network.kind} are not "
            f"in the weights of model.init_from and keep their initial values, {tail}.",
            fix="Use the kind that the weights were trained with, or train for some epochs before you judge it.",
            severity="warning",
        )
    if is_cumulative and not had_counter and not lacking:
        yield Finding(
            code="weights_averaged_anew",
            path="norm.momentum",
            message=f"The weights of model.init_from do not say how many batches their running statistics stand for "
            f"({COUNTER}), so with a momentum of null the first batch replaces them.",
            fix="Give norm.momentum a number such as 0.1.",
            severity="warning",
        )
    if network.kind in ("fixup", "selu") and matching.pairs:
        yield Finding(
            code="initialisation_replaced",
            path="norm.kind",
            message=f"{network.kind} needs initial weights of its own, and those of model.init_from take their place.",
            fix="Drop the layers that you want initialised by the kind, or use another kind.",
            severity="warning",
        )


def _by_attribute(tensors: Iterable[PlacedTensor]) -> dict[str, int]:
    return dict(Counter(tensor.name.rpartition(".")[2] for tensor in tensors))
