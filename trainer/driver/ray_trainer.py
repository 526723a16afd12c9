"""Ray Train's TorchTrainer without the parts that make jobs wait."""

from __future__ import annotations

import os
from typing import Any

from ray.train.torch import TorchTrainer

_CLEANER = "PlacementGroupCleanerCallback"
_POLL, _POLL_S = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5"


class PromptTrainer(TorchTrainer):
    """Polls the workers twice a second, and omits the actor that frees a dead controller's resources.

    Polling tells the controller that workers are done, or that one has died; Ray's default is 2 s. Our driver ends with
    its controller, and once both are gone Ray frees the resources by itself. The cleaner takes a process on the head,
    and a finished job waits 12 s for it to stop, in vain (ray 2.60).
    """

    def fit(self) -> Any:
        os.environ.setdefault(_POLL, _POLL_S)  # Ray Train hands it on to its controller
        return super().fit()

    def _create_default_callbacks(self) -> list[Any]:
        defaults = super()._create_default_callbacks()  # type: ignore[misc]  # typed as the v1 trainer
        return [each for each in defaults if type(each).__name__ != _CLEANER]
