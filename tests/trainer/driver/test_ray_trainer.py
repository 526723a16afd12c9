"""Our trainer is Ray's, but for one thing that Ray does by default."""

from __future__ import annotations

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import HEALTH_CHECK_INTERVAL_S_ENV_VAR, get_env_vars_to_propagate

from syncnorm.trainer.driver.ray_trainer import PromptTrainer

# Ray's DataContext reads every one of its settings, its deprecated ones too (ray 2.60).
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data.context")


def defaults(kind: type[TorchTrainer]) -> list[str]:
    trainer = kind(print, scaling_config=ScalingConfig(num_workers=2))
    return [type(each).__name__ for each in trainer._create_default_callbacks()]


def test_only_the_cleaner_that_jobs_wait_for_is_left_out() -> None:
    assert defaults(PromptTrainer) == [name for name in defaults(TorchTrainer) if "Cleaner" not in name]
    assert len(defaults(PromptTrainer)) == len(defaults(TorchTrainer)) - 1


def test_ray_train_hands_the_pause_between_its_questions_to_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    handed_on: dict[str, str] = {}
    monkeypatch.setenv(HEALTH_CHECK_INTERVAL_S_ENV_VAR, "")  # so that it is put back
    monkeypatch.delenv(HEALTH_CHECK_INTERVAL_S_ENV_VAR)
    monkeypatch.setattr(TorchTrainer, "fit", lambda _: handed_on.update(get_env_vars_to_propagate()))

    PromptTrainer(print, scaling_config=ScalingConfig(num_workers=2)).fit()

    assert handed_on[HEALTH_CHECK_INTERVAL_S_ENV_VAR] == "0.5"
