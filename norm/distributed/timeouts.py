"""How long workers wait for each other in the exchanges of norm layers."""

from __future__ import annotations

import os

import torch.distributed as dist

from syncnorm.norm.torch_compat import cpu_timeout


def timeout_s(group: dist.ProcessGroup) -> float:
    """How long a worker waits for the others: SYNCNORM_COLLECTIVE_TIMEOUT_S, or the group's own timeout."""
    chosen = os.environ.get("SYNCNORM_COLLECTIVE_TIMEOUT_S")
    if chosen:
        return float(chosen)
    try:
        timeout = cpu_timeout(group)
    except RuntimeError:  # a group for another device only, such as NCCL's
        timeout = dist.constants.default_pg_timeout
    return float(timeout.total_seconds())
