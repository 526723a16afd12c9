"""Batch normalization over small chunks of a worker's batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from syncnorm.norm.layers.scripting import refuse_scripting
from syncnorm.norm.shapes import check_channels, check_running_statistics
from syncnorm.norm.torch_compat import BatchNormBase


class GhostBatchNorm(BatchNormBase):
    """Batch normalization in which `ghost_size` samples share statistics, however large the batch.

    Each chunk of the batch: y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased var of the chunk.

    Train: every chunk updates the running statistics in turn, as if it were a batch of its own: running += momentum *
    (chunk - running), var Bessel-corrected. So k chunks forget by (1 - momentum)^k a step, as in the paper; for the
    window of plain batch normalization use 1 - (1 - momentum)^(1/k). A last chunk with one value per channel joins the
    one before. Eval: uses the running statistics.

    Shape: (N, C, *) -> (N, C, *). state_dict: the keys of nn.BatchNorm2d; num_batches_tracked counts chunks.
    Ghosts larger than a worker's batch: use SyncBatchNorm on a group of workers.
    Raises: ValueError for one value per channel in training.
    See: Hoffer et al. 2017, arXiv:1705.08741, Alg. 1.

    >>> layer = norm.GhostBatchNorm(8, ghost_size=4)
    >>> layer(torch.randn(16, 8, 2, 2)).shape, int(layer.num_batches_tracked)
    (torch.Size([16, 8, 2, 2]), 4)
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        ghost_size: int = 16,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, True, device, dtype)
        self.ghost_size = ghost_size

    __prepare_scriptable__ = refuse_scripting

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if not self.training:
            use_batch = self.running_mean is None and self.running_var is None
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, use_batch, 0.0, self.eps
            )
        return torch.cat([self._normalize(chunk) for chunk in self._chunks(x)])

    def _chunks(self, x: Tensor) -> list[Tensor]:
        chunks = list(torch.split(x, self.ghost_size))
        if len(chunks) > 1 and chunks[-1].numel() == x.shape[1]:
            last = chunks.pop()
            chunks[-1] = torch.cat([chunks[-1], last])
        return chunks

    def _normalize(self, chunk: Tensor) -> Tensor:
        if not self.track_running_stats:
            return F.batch_norm(chunk, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return F.batch_norm(
            chunk, self.running_mean, self.running_var, self.weight, self.bias, True, self._count_chunk(), self.eps
        )

    def _count_chunk(self) -> float:
        """The weight of the next chunk in the running statistics."""
        check_running_statistics(self)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if self.momentum is not None:
            return self.momentum
        return 1 / int(self.get_buffer("num_batches_tracked"))

    def _check_input_dim(self, input: Tensor) -> None:
        check_channels(self, input)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, ghost_size={self.ghost_size}"
