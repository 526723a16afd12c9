"""Ray Train's TorchTrainer, less what costs each job twelve seconds."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer

_CLEANER = "PlacementGroupCleanerCallback"


class PromptTrainer(TorchTrainer):
    """Does without the detached actor that frees the room of a controller that died before its driver.

    Our driver ends with its controller, and once both are gone Ray frees the room by itself. The cleaner takes a
    process on the head, and a job that is over waits 12 s for it to stop, in vain (ray 2.60).
    """

    def _create_default_callbacks(self) -> list[Any]:
        defaults = super()._create_default_callbacks()  # type: ignore[misc]  # typed as the v1 trainer
        return [each for each in defaults if type(each).__name__ != _CLEANER]
