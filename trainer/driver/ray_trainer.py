"""Ray Train's TorchTrainer without the parts that make jobs wait."""

from __future__ import annotations

import os
from typing import Any

from ray.train.torch import TorchTrainer

_LEFT_OUT = ("PlacementGroupCleanerCallback", "DatasetsCallback")
_SETTINGS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""Ray Train hands them on to its controller."""


class PromptTrainer(TorchTrainer):
    """Polls the workers twice a second, and omits three actors, each of which is a process that imports Ray Train.

    Polling tells the controller that workers are done, or that one has died; Ray's default is 2 s. The omitted actors
    (ray 2.60):

    - The one that frees a dead controller's resources. Our driver ends with its controller, and once both are gone Ray
      frees the resources by itself. It takes a process on the head, and a finished job waits 12 s for it to stop, in
      vain.
    - The one that splits Ray Datasets. Our jobs have none.
    - The one that asks whether a node is about to be drained. Only `ray.train.get_context()` would say so, and our
      ranks don't ask it: the service notices a node that goes.
    """

    def fit(self) -> Any:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        return super().fit()

    def _create_default_callbacks(self) -> list[Any]:
        defaults = super()._create_default_callbacks()  # type: ignore[misc]  # typed as the v1 trainer
        return [each for each in defaults if type(each).__name__ not in _LEFT_OUT]
