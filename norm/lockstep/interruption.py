"""Which models can be stopped in the middle of a forward."""

from __future__ import annotations

import torch
from torch import nn


def require_interruptible(model: nn.Module, caller: str) -> None:
    """Raises: ValueError where `model` can't stop half-way. caller: who asks, named in the error."""
    for path, module in model.named_modules():
        names = {base.__name__ for base in type(module).__mro__}
        reason = (
            "runs through torch.compile"
            if module._compiled_call_impl is not None or "OptimizedModule" in names
            else "is TorchScript"
            if isinstance(module, torch.jit.ScriptModule)
            else "is sharded by FSDP"
            if names & {"FullyShardedDataParallel", "FSDPModule"}
            else None
        )
        if reason is not None:
            raise ValueError(
                f"{caller} stops forwards at each normalization layer, which {path or 'the model'} does not "
                f"allow: it {reason}. Give the plain model."
            )
