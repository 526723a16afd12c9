"""Checks that all ranks hold the same model, by digests of every parameter and buffer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

from syncnorm.trainer.contract.failure import REPORT
from syncnorm.trainer.errors import DisagreementError
from syncnorm.trainer.ranks.exchange import gather


def digests(network: nn.Module) -> dict[str, str]:
    """sha256 of the bytes of each parameter and buffer, by name."""
    return {
        name: hashlib.sha256(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in network.state_dict().items()
    }


def leave_to_ranks(parameters: Iterable[nn.Parameter]) -> None:
    """Let each rank have its own values of these."""
    for parameter in parameters:
        parameter.is_of_each_rank = True  # type: ignore[attr-defined]


def of_each_rank(network: nn.Module) -> frozenset[str]:
    """Names in the state_dict of what each rank has of its own."""
    left = {name for name, parameter in network.named_parameters() if getattr(parameter, "is_of_each_rank", False)}
    return local_statistics(network) | left


def local_statistics(network: nn.Module) -> frozenset[str]:
    """Names in the state_dict of the statistics that each rank has of its own: of layers not synchronized over all."""
    return frozenset(
        f"{path}.{name}" if path else name
        for path, layer in network.named_modules()
        if isinstance(getattr(layer, "running_mean", None), torch.Tensor) and not _is_shared_by_all(layer)
        for name, _ in layer.named_buffers(recurse=False)
        if name not in layer._non_persistent_buffers_set
    )


def check_agreement(network: nn.Module) -> dict[str, str | int]:
    """The digest of everything that must be equal on all ranks, and how many ranks there are. Entered by every rank.

    Raises: DisagreementError naming the tensor and the ranks, the same on all of them.
    """
    own, local = digests(network), of_each_rank(network)
    everyone = gather(own)
    for name in own:
        different = [rank for rank, theirs in enumerate(everyone) if theirs[name] != everyone[0][name]]
        if different and name not in local:
            raise DisagreementError(
                f"every rank must hold the same {name}, but that of rank {different[0]} differs from that of rank 0 "
                f"({len(different)} of {len(everyone)} ranks differ). Code that changes weights outside of its "
                f"optimizers must do the same on every rank. If yours does, {REPORT}"
            )
    shared = "".join(own[name] for name in sorted(own) if name not in local)
    return {"ranks": len(everyone), "sha256": hashlib.sha256(shared.encode()).hexdigest()}


def _is_shared_by_all(layer: nn.Module) -> bool:
    return getattr(layer, "process_group", layer) is None
