"""A pass over all training samples of this worker, apart from that of training."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader

from syncnorm.trainer.data.user.shared_loader import Order

logger = logging.getLogger(__name__)


def whole_pass(loader: Any) -> Iterable[Any] | None:
    """The batches of a whole epoch, the same in every pass, from a loader that `share` has shared out. Reading them
    moves neither the loader nor its sampler.

    None: there is no such pass, because the loader is a stream, makes its batches by itself, or its sampler can't be
    copied.
    """
    order: Order | None = getattr(loader, "order", None)
    if order is None or not order.is_sized:
        return None
    try:
        items = list(order.apart(loader.dataset))
    except Exception as error:  # whatever the user's sampler holds
        logger.warning("the sampler %s can't be copied: %s", type(loader.sampler).__name__, error)
        return None
    cut: dict[str, Any] = {"batch_sampler": items}
    if loader.batch_sampler is None:
        cut = {"sampler": items, "batch_size": None}
    return DataLoader(
        loader.dataset,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),  # numbers for its processes are not drawn from those of training
        **cut,
    )
