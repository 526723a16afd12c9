"""What a job's plan says of the weights that it started from, for attempts that resume and for its certificate."""

from __future__ import annotations

import json
from typing import Any

from syncnorm.trainer.contract.initial_weights import LoadedWeights
from syncnorm.trainer.contract.plan import Inspection
from syncnorm.trainer.contract.protocol import Launch
from syncnorm.trainer.storage.attempt_layout import AttemptFolders

PLAN_FILE = "plan.json"


def resumed(inspection: Inspection, launch: Launch, folders: AttemptFolders) -> Inspection:
    """With what the attempt has noted that loaded the weights; the plan of each is stored with its checkpoints."""
    if launch.spec.model.init_from is None:
        return inspection
    found = (recorded(each) for each in reversed(folders.earlier(launch.attempt)))
    return inspection.model_copy(update={"init_from": next(filter(None, found), None)})


def recorded(attempt: AttemptFolders) -> LoadedWeights | None:
    """As the plan of an attempt has it; None without one, or if it does not say."""
    path = attempt.artifacts / PLAN_FILE
    attempt.mirror.fetch(path)
    if not path.exists():
        return None
    try:
        return LoadedWeights.model_validate(json.loads(path.read_bytes()).get("init_from"))
    except (ValueError, AttributeError):  # of another form, as another version or a power cut may leave it
        return None


def lineage(attempt: AttemptFolders) -> dict[str, Any]:
    """`init_from` for a certificate: source, digest, and which tensors are not from there; empty without weights."""
    found = recorded(attempt)
    if found is None:
        return {}
    return {
        "init_from": {
            **found.origin.model_dump(),
            "loaded": len(found.loaded),
            "dropped": [tensor.name for tensor in found.dropped],
            "left": [tensor.name for tensor in found.left],
        }
    }
