"""Jobs that start from trained weights."""

from __future__ import annotations

from typing import Any

from syncnorm.trainer.contract.protocol import Launch
from tests.helpers.trainer.ranks import launch_of

BUILT_IN: dict[str, Any] = {
    "name": "tuned",
    "model": {"name": "resnet", "init_args": {"depth": 8, "width": 4}},
    "data": {"name": "digits", "batch_size": 64},
    "norm": {"kind": "sync_batch"},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "train": {"steps": 2, "checkpoint_every": {"steps": 1}},
    "resources": {"workers": 2},
}


def starting_from(document: dict[str, Any], **how: Any) -> dict[str, Any]:
    return document | {"model": document["model"] | {"init_from": how}}


def launch(attempt: int, resume_from: str | None = None, **how: Any) -> Launch:
    found = launch_of(starting_from(BUILT_IN, **how), resume_from)
    return found.model_copy(update={"attempt": attempt})
