"""The overlap of predicted and true classes: as a loss of patches, and as a score of whole volumes."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torchmetrics import Metric

SMOOTH = 1e-5
"""Added to both sides of the ratio, as in nnU-Net and MONAI: a class that a sample lacks wants no probability."""
PIECE = 2**22
"""Positions that are summed at once: a patch is one piece, and a volume takes no more memory than some of its own."""


def dice_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus 1 − soft Dice, a value for each sample.

    Dice of class k is (2 Σ p g + SMOOTH) / (Σ p + Σ g + SMOOTH) with softmax p and one-hot g, summed over the positions
    of one sample; its mean over all classes but 0. So the loss of a batch is a mean over its samples.

    Shape: output (N, K, *spatial), target (N, *spatial) int64 -> (N,).
    See: Milletari et al. 2016, arXiv:1606.04797; Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, whose 3-D network
    takes Dice per sample, too.
    """
    positions = target[0].numel()
    logits_NKS = output.to(torch.promote_types(output.dtype, torch.float32)).flatten(2)
    pieces = zip(logits_NKS.split(PIECE, 2), target.flatten(1).split(PIECE, 1), strict=True)
    nll_N, overlap_NK, sizes_NK = (sum(parts) for parts in zip(*itertools.starmap(_sums, pieces), strict=True))
    dice_NK = (2 * overlap_NK + SMOOTH) / (sizes_NK + SMOOTH)
    loss_N: Tensor = nll_N / positions + 1 - dice_NK[:, 1:].mean(1)
    return loss_N


def _sums(logits_NKS: Tensor, target_NS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Over positions: −log p of the true class (N,), Σ p g, and Σ p + Σ g (N, K)."""
    log_p_NKS = logits_NKS.log_softmax(1)
    p_NKS, g_NKS = log_p_NKS.exp(), torch.zeros_like(log_p_NKS).scatter_(1, target_NS[:, None], 1)
    nll_N = -log_p_NKS.gather(1, target_NS[:, None]).sum((1, 2))
    return nll_N, (p_NKS * g_NKS).sum(2), (p_NKS + g_NKS).sum(2)


class Dice(Metric):
    """2 |P ∩ T| / (|P| + |T|) of each class but 0, and the mean over these classes as `dice`. Counts in fp64.

    of_each: the mean over samples of their own Dice. A sample that has a class neither in its truth nor in its
    prediction does not count for it. Otherwise all positions of all samples are counted together, as for patches, which
    often lack a class. A class that counts nowhere has no score.
    """

    full_state_update = False
    numerators: Tensor
    denominators: Tensor

    def __init__(self, num_classes: int, *, of_each: bool) -> None:
        super().__init__()
        self._num_classes, self._of_each = num_classes, of_each
        for name in ("numerators", "denominators"):
            self.add_state(name, torch.zeros(num_classes - 1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Classes, (N, *spatial)."""
        for one, truth in zip(predicted.flatten(1), target.flatten(1), strict=True):
            common = self._counts(truth[one == truth])
            sizes = self._counts(one) + self._counts(truth)
            occurs = sizes > 0
            self.numerators += torch.where(occurs, 2 * common / sizes, 0.0) if self._of_each else 2 * common
            self.denominators += occurs.double() if self._of_each else sizes

    def compute(self) -> dict[str, Tensor]:
        """`dice`, and `dice_1`, `dice_2`, … for each class that occurs."""
        found = (self.denominators > 0).nonzero().flatten().tolist()
        each = {f"dice_{index + 1}": self.numerators[index] / self.denominators[index] for index in found}
        mean = torch.stack(list(each.values())).mean() if each else self.numerators.new_full((), torch.nan)
        return {"dice": mean, **each}

    def _counts(self, classes: Tensor) -> Tensor:
        return torch.bincount(classes, minlength=self._num_classes)[1:].double()
