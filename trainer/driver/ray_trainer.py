"""Ray Train's TorchTrainer without the parts that make jobs wait."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.runtime_context import RuntimeContext
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController

from syncnorm.trainer.driver.prompt_worker import PromptWorkers

_LEFT_OUT = ("PlacementGroupCleanerCallback", "DatasetsCallback")
_SETTINGS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""What Ray Train's controller reads."""


class PromptTrainer(TorchTrainer):
    """Hears within a tenth of a second that workers are done, or that one has died, and omits four actors, each of
    which is a process that imports Ray Train.

    Ray's controller asks every 2 s by default. Ours looks for answers every 0.1 s, and the workers take their time to
    answer (`prompt_worker.py`), so that they are asked twice a second. The omitted actors (ray 2.60):

    - The controller's own. It runs in this process, which has nothing else to do meanwhile, and needs its imports
      anyway. Ray starts it on this host in any case, and ends it with this process.
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

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        with _without_current_actor():
            return asyncio.run(_controlled(arguments))

    def _create_default_callbacks(self) -> list[Any]:
        defaults = super()._create_default_callbacks()  # type: ignore[misc]  # typed as the v1 trainer
        return [each for each in defaults if type(each).__name__ not in _LEFT_OUT]


class PromptController(TrainController):
    worker_group_cls = PromptWorkers


async def _controlled(arguments: dict[str, Any]) -> Any:
    controller = PromptController(**arguments)
    await controller.run()
    return controller.get_result()


@contextmanager
def _without_current_actor() -> Iterator[None]:
    """Ray Train gives workers a handle of the controller's actor, with which they could ask it for the checkpoints that
    were reported. Ours report none, and Ray has no handle of a driver."""
    asked = vars(RuntimeContext)["current_actor"]
    RuntimeContext.current_actor = None  # type: ignore[method-assign, assignment]  # a property; see above
    try:
        yield
    finally:
        RuntimeContext.current_actor = asked  # type: ignore[method-assign]
