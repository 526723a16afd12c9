"""Our trainer is Ray's, but for four actors that Ray starts by default, and the pause between its polls."""

from __future__ import annotations

import os

import pytest
from ray.runtime_context import RuntimeContext
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import (
    ENABLE_PREEMPTION_WATCHER_ENV_VAR,
    HEALTH_CHECK_INTERVAL_S_ENV_VAR,
    get_env_vars_to_propagate,
)

from syncnorm.trainer.driver import ray_trainer
from syncnorm.trainer.driver.ray_trainer import PromptTrainer

# Ray's DataContext reads every one of its settings, its deprecated ones too (ray 2.60).
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data.context")


def defaults(kind: type[TorchTrainer]) -> list[str]:
    trainer = kind(print, scaling_config=ScalingConfig(num_workers=2))
    return [type(each).__name__ for each in trainer._create_default_callbacks()]


def test_only_the_actors_that_jobs_need_are_started() -> None:
    left_out = {"PlacementGroupCleanerCallback", "DatasetsCallback"}

    assert defaults(PromptTrainer) == [name for name in defaults(TorchTrainer) if name not in left_out]
    assert len(defaults(PromptTrainer)) == len(defaults(TorchTrainer)) - len(left_out)


def test_ray_train_hands_our_settings_to_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    handed_on: dict[str, str] = {}
    for name in (HEALTH_CHECK_INTERVAL_S_ENV_VAR, ENABLE_PREEMPTION_WATCHER_ENV_VAR):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(TorchTrainer, "fit", lambda _: handed_on.update(get_env_vars_to_propagate()))

    PromptTrainer(print, scaling_config=ScalingConfig(num_workers=2)).fit()

    assert handed_on[HEALTH_CHECK_INTERVAL_S_ENV_VAR] == "0.5"
    assert handed_on[ENABLE_PREEMPTION_WATCHER_ENV_VAR] == "0"


class Controller:
    """Ray Train's, as far as the trainer calls it."""

    def __init__(self, **arguments: object) -> None:
        self.given = (os.getpid(), arguments)

    async def run(self) -> None:
        self.actor = RuntimeContext.current_actor

    def get_result(self) -> object:
        return self.given, self.actor


def test_the_controller_runs_in_the_driver_which_is_no_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_trainer, "TrainController", Controller)
    of_actors = RuntimeContext.current_actor

    found = PromptTrainer(print)._initialize_and_run_controller(scaling_policy="none")

    assert found == ((os.getpid(), {"scaling_policy": "none"}), None)
    assert RuntimeContext.current_actor is of_actors
