"""Applies the spec's normalization to a network, and reports what happened to every layer."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

from syncnorm import norm
from syncnorm.trainer.contract.norm_choice import choose_norm
from syncnorm.trainer.contract.spec import JobSpec


def convert(
    network: nn.Module, spec: JobSpec, group: dist.ProcessGroup | None
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """`network` with the spec's kind, and one entry {path, from, to} for every layer that was looked at.

    Raises: ValueError naming the module path where a layer can't be converted.
    """
    wanted = spec.norm
    converted, replacements = norm.convert(
        network,
        choose_norm(spec).kind,
        group=group,
        overrides=[override.model_dump() for override in wanted.overrides],
        eps=wanted.eps,
        momentum=wanted.momentum,
        affine=wanted.affine,
        **wanted.options,
    )
    return converted, [replacement.as_json() for replacement in replacements]
