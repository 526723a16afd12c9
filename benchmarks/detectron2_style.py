"""Synchronized batch normalization by the algorithm that Detectron2 publishes as NaiveSyncBatchNorm, as a baseline.

Written from its description: every worker sends mean and mean of squares, averaged with equal weights by an
all-gather whose backward is an all-reduce; var = E[x^2] - E[x]^2 in the input's precision; the output is x * scale +
shift by plain tensor operations. https://github.com/facebookresearch/detectron2 (detectron2/layers/batch_norm.py)
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _AverageOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(_, values: Tensor) -> Tensor:
        gathered = [torch.zeros_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, values)
        return torch.stack(gathered).mean(0)

    @staticmethod
    def backward(_, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad / dist.get_world_size()


class Detectron2StyleSyncBatchNorm(nn.BatchNorm2d):
    """See above. Right for equal batches; running_var is the biased variance."""

    def forward(self, x: Tensor) -> Tensor:
        local = torch.cat([x.mean([0, 2, 3]), (x * x).mean([0, 2, 3])])
        mean, mean_square = _AverageOverWorkers.apply(local).chunk(2)
        var = mean_square - mean * mean
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        self.running_mean += self.momentum * (mean.detach() - self.running_mean)
        self.running_var += self.momentum * (var.detach() - self.running_var)
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)
