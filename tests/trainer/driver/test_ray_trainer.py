"""Our trainer is Ray's, but for four actors that Ray starts by default, and for how it hears of the end."""

from __future__ import annotations

import os
import queue
import threading
import time
from types import SimpleNamespace

import pytest
from ray.runtime_context import RuntimeContext
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import (
    ENABLE_PREEMPTION_WATCHER_ENV_VAR,
    HEALTH_CHECK_INTERVAL_S_ENV_VAR,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.thread_runner import ThreadRunner

from syncnorm.trainer.driver import prompt_worker, ray_trainer
from syncnorm.trainer.driver.prompt_worker import RayTrainWorker
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

    assert handed_on[HEALTH_CHECK_INTERVAL_S_ENV_VAR] == "0.1"
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
    monkeypatch.setattr(ray_trainer, "PromptController", Controller)
    of_actors = RuntimeContext.current_actor

    found = PromptTrainer(print)._initialize_and_run_controller(scaling_policy="none")

    assert found == ((os.getpid(), {"scaling_policy": "none"}), None)
    assert RuntimeContext.current_actor is of_actors


def test_ray_asks_the_class_of_workers_that_answers_at_the_end() -> None:
    """Ray's own names for them, which are not public."""
    assert issubclass(TrainController.worker_group_cls, WorkerGroup)
    assert issubclass(RayTrainWorker, WorkerGroup._worker_cls)
    assert ray_trainer.PromptController.worker_group_cls._worker_cls is RayTrainWorker
    assert RayTrainWorker.__name__ == WorkerGroup._worker_cls.__name__  # processes are told by it


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ThreadRunner:
    """Ray's thread for the training of a worker, as the worker finds it."""
    runner = ThreadRunner()
    execution = SimpleNamespace(result_queue=queue.Queue(1), training_thread_runner=runner)
    context = SimpleNamespace(execution_context=execution, preemption_context=SimpleNamespace(preemption_info=None))
    monkeypatch.setattr(prompt_worker, "get_train_context", lambda: context)
    monkeypatch.setattr("ray.train.v2._internal.execution.worker_group.worker.get_train_context", lambda: context)
    return runner


def test_a_worker_says_at_once_that_it_is_done(runner: ThreadRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_worker, "_WAIT_S", 60.0)
    runner.run(lambda: time.sleep(0.2) or "trained")

    status = RayTrainWorker().poll_status()

    assert (status.running, status.error, status.return_value) == (False, None, "trained")


def test_a_worker_says_at_once_that_it_failed(runner: ThreadRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_worker, "_WAIT_S", 60.0)

    def fail() -> None:
        raise ValueError("wavelets")

    runner.run(fail)

    assert "wavelets" in str(RayTrainWorker().poll_status().error)


def test_a_worker_that_trains_answers_too(runner: ThreadRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_worker, "_WAIT_S", 0.01)
    ending = threading.Event()
    runner.run(ending.wait)

    assert RayTrainWorker().poll_status().running

    ending.set()


def test_a_worker_that_has_not_begun_answers(runner: ThreadRunner) -> None:
    assert not runner.is_running()
    assert not RayTrainWorker().poll_status().running
