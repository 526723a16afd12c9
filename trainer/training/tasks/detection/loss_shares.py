"""Losses of a detector, so weighted that their mean over the workers is the loss of one device with all images.

Most of them are means over something else than images: over the anchors or RoIs that were sampled, or over the
foreground. So a worker's loss counts by how many of these it has: by W * n / N, for n of N on this one of W workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.norm.lockstep.turns import meet
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.training.tasks.detection.blank_image import blank_image, uncounted_by_norms
from syncnorm.trainer.training.tasks.detection.detector_draws import Counts, Padding, is_detector, watched

DIVISORS = {
    "loss_classifier": "rois",
    "loss_box_reg": "rois",
    "loss_mask": "positive_rois",
    "loss_objectness": "anchors",
    "loss_rpn_box_reg": "anchors",
}
"""By loss of torchvision's R-CNNs: what it is a mean over. Those of FCOS and SSD are over the foreground, of which they
take 1 where there is none; those of RetinaNet over images."""
_COUNTED = ("rois", "positive_rois", "anchors", "foreground")
_KNOWN = ("generalized_rcnn.GeneralizedRCNN", "retinanet.RetinaNet", "fcos.FCOS", "ssd.SSD")
_GIVEN = ("boxes", "labels", "masks")
UNCOUNTED = (
    "the losses of {} are taken for means over images; where they are means over something else, such as sampled "
    "anchors, the mean over the workers is not the loss of the whole batch"
)


def unknown_losses(network: nn.Module) -> bool:
    """Whether it is no detector of torchvision, nor holds one."""
    return not any(is_detector(module, *_KNOWN) for module in network.modules())


def weighted_losses(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The losses of a step by name, each beginning with `loss`. Entered by every worker, unless the batch is whole.

    Raises: ValueError if the network gives no losses by name.
    """
    images, targets = batch.data
    device, is_blank = next(network.parameters()).device, not images
    workers = dist.get_world_size() if dist.is_initialized() and not batch.is_whole else 1
    draws = [target["draw"] for target in targets] or [0]
    if is_blank:
        images, targets = ([one] for one in blank_image(network))
    given = [{name: target[name] for name in _GIVEN if name in target} for target in targets]
    counts = Counts(device)
    padding = Padding(device, is_shared=workers > 1, is_blank=is_blank)
    with uncounted_by_norms(network) if is_blank else nullcontext(), watched(network, draws, counts, padding=padding):
        losses = _by_name(network, network(list(images), given))
    own = torch.stack([counts[name] for name in _COUNTED]) * (not is_blank)
    of_all = meet(network, "the counts of its losses", own, partial(_summed, is_shared=workers > 1))
    known = {name: (own[place], of_all[place]) for place, name in enumerate(_COUNTED)}
    found = {}
    for name, loss in losses.items():
        divisor = DIVISORS.get(name, "foreground" if "foreground" in counts else None)
        if is_blank:
            found[name] = _kept_if(torch.zeros_like(loss, dtype=torch.bool), loss)
        elif divisor is None:
            found[name] = loss if batch.is_whole else loss * batch.weight
        else:
            found[name] = _shared(loss, *known[divisor], workers)
    return found


def _summed(of_micro_batches: Sequence[Tensor], *, is_shared: bool) -> list[Tensor]:
    """For each micro-batch the sum over all of them and, if shared, over all workers."""
    of_all = torch.stack(list(of_micro_batches)).sum(0)
    if is_shared:
        dist.all_reduce(of_all)
    return [of_all] * len(of_micro_batches)


def _shared(loss: Tensor, own: Tensor, of_all: Tensor, workers: int) -> Tensor:
    """Of a mean over `own` of `of_all` things, or a sum over them divided by 1 where there is none."""
    factor = workers * own.clamp(min=1) / of_all.clamp(min=1)
    return _kept_if((own > 0) | loss.isfinite(), loss) * factor.to(loss.dtype)


def _kept_if(condition: Tensor, loss: Tensor) -> Tensor:
    """0 otherwise. Not times 0: a mean over nothing is NaN, and stays one."""
    return torch.where(condition, loss, torch.zeros_like(loss))


def _by_name(network: nn.Module, given: Any) -> dict[str, Tensor]:
    if not isinstance(given, Mapping) or not all(
        isinstance(one, Tensor) and one.numel() == 1 for one in given.values()
    ):
        raise ValueError(
            f"a network for detection must give a dict of losses in training, but {type(network).__name__} gave a "
            f"{type(given).__name__}. Use a detector of torchvision, or one of the same form."
        )
    return {name if name.startswith("loss") else f"loss_{name}": loss.squeeze() for name, loss in given.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1
