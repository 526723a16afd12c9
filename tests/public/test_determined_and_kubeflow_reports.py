"""Reports about Determined, Kubeflow Trainer and KubeRay: what a restart, a resume or a deletion loses.

The service is the real one, over its store on SQLite; the cluster is a stand-in whose drivers do what a test says.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from syncnorm.service.backend_errors import RefusedError
from syncnorm.service.cli.job_files.job_file import load
from syncnorm.service.jobs.job import JobState
from syncnorm.trainer.contract.protocol import Launch
from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World

# Determined


# https://github.com/determined-ai/determined/pull/2688
@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "0.00001"])
def test_determined_2688_numbers_of_a_job_file_are_numbers(text: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: a\nmodel: {name: resnet}\ndata: {name: digits, batch_size: 8}\n"
        f"optimizer: {{name: sgd, lr: {text}}}\n"
    )

    assert read_spec(load(path)).optimizer.lr == 1e-5  # type: ignore[union-attr]


# https://github.com/determined-ai/determined/pull/211
def test_determined_211_job_that_was_stopping_still_stops_after_a_restart(world: World) -> None:
    job = world.run_until(world.submit(labels={"works": "99"}), JobState.RUNNING)
    world.apply_verb(job.id, "cancel")

    world.boot()

    assert world.settle(job, steps=30).state is JobState.CANCELLED


# https://github.com/determined-ai/determined/issues/3510
def test_determined_3510_progress_is_there_after_a_restart(world: World) -> None:
    job = world.run_until(world.submit(labels={"works": "99"}), JobState.RUNNING)
    attempt = world.store.attempts.of_job(job.id)[0]
    for _ in range(3):
        world.step()
    before = world.store.attempts.of_job(job.id)[0].step

    world.boot()

    assert before is not None and before >= 3
    assert world.store.attempts.of_job(job.id)[0].step == before
    assert world.store.attempts.of_job(job.id)[0].id == attempt.id


# Kubeflow Trainer


# https://github.com/kubeflow/trainer/issues/3737
def test_kubeflow_trainer_3737_failed_job_stays_failed_when_its_submission_is_deleted(world: World) -> None:
    job = world.settle(world.submit(labels={"outcome": "user_error"}))
    assert job.state is JobState.FAILED

    world.cluster.submissions.clear()
    world.boot()
    for _ in range(30):
        world.step()

    assert world.job(job.id).state is JobState.FAILED
    assert list(world.cluster.starts.values()) == [1]


# https://github.com/kubeflow/sdk/issues/803
def test_kubeflow_sdk_803_resumed_job_is_running_while_it_runs(world: World) -> None:
    job = world.submit(labels={"works": "9"})
    world.apply_verb(job.id, "pause")
    world.step()
    world.apply_verb(job.id, "resume")

    running = world.run_until(job, JobState.RUNNING)

    assert running.attempt == 1
    assert world.settle(job).state is JobState.SUCCEEDED


# https://github.com/kubeflow/trainer/issues/2351
def test_kubeflow_trainer_2351_job_whose_launch_is_refused_has_a_state_and_a_reason(tmp_path: Path) -> None:
    class Refuses:
        def __init__(self, cluster: object) -> None:
            self._cluster = cluster

        def __getattr__(self, name: str) -> object:
            return getattr(self._cluster, name)

        def start(self, *args: object, **kwargs: object) -> None:  # noqa: ARG002
            raise RefusedError("quota exceeded")

    def wrap(port: object, name: str) -> object:
        return Refuses(port) if name == "cluster" else port

    with fresh_sqlite(tmp_path) as database:
        world = World(tmp_path, database, wrap=wrap)
        job = world.submit()
        for _ in range(200):
            world.step()
            if world.job(job.id).is_terminal:
                break

        assert world.job(job.id).state is JobState.FAILED
        assert "quota exceeded" in str(world.job(job.id).message)


# KubeRay and Ray Train


# https://github.com/ray-project/kuberay/issues/3903
def test_kuberay_3903_job_whose_ray_head_restarted_is_run_again_and_ends(world: World) -> None:
    job = world.run_until(world.submit(labels={"works": "5"}), JobState.RUNNING)

    world.cluster.restart()

    done = world.settle(job)
    assert (done.state, done.attempt) == (JobState.SUCCEEDED, 2)


# https://github.com/ray-project/ray/issues/45516
def test_ray_45516_next_attempt_starts_from_the_newest_checkpoint(world: World) -> None:
    job = world.run_until(world.submit(labels={"works": "9"}), JobState.RUNNING)
    world.apply_verb(job.id, "pause")
    world.run_until(job, JobState.PAUSED)
    checkpoint = world.store.attempts.of_job(job.id)[0]

    world.apply_verb(job.id, "resume")
    world.run_until(job, JobState.RUNNING)

    launches: list[Launch] = [driver.launch for driver in world.cluster.drivers.values()]
    assert [launch.attempt for launch in launches] == [2]
    assert str(launches[0].resume_from).endswith("checkpoint")
    assert checkpoint.id in str(launches[0].resume_from) or "/1/" in str(launches[0].resume_from)
