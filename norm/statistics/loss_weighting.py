"""Weights that make DDP's average over workers equal the mean over the whole batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from syncnorm.norm.distributed.collectives import gather_rows


def loss_weight(
    num_samples: float | Tensor, group: dist.ProcessGroup | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """W * n / N: the factor of this worker's mean loss; n is `num_samples`, N its sum over the W workers.

    DDP averages gradients over workers, (1/W) sum_r dL_r. With L_r = mean_r * W * n_r / N that is the gradient of the
    mean over all N samples, however unevenly they are spread. Without the weight, 3 and 5 samples give a gradient
    that is 9 % off.

    num_samples: what the loss averages over on this worker: samples, pixels that are not ignored, tokens. 0 is legal:
    then the weight is 0, and the loss must be finite (`sum() / max(n, 1)`, not `mean()`, of nothing).
    group: the workers over which gradients are averaged. One collective of one number; every worker must call it.
    Returns: () of `dtype`, on the device of num_samples; 1 without torch.distributed, and where N is 0.

    >>> norm.loss_weight(5)
    tensor(1.)
    """
    own = torch.as_tensor(num_samples, dtype=torch.float64).reshape(1)
    counts = gather_rows(own, group)
    total = counts.sum()
    weight = torch.where(total > 0, len(counts) * own[0] / total, torch.ones_like(total))
    return weight.to(dtype)
