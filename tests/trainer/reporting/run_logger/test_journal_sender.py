"""Params, tags and files reach a real MLflow soon and once, over outages and deaths, and nobody waits for them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from mlflow import MlflowClient

from syncnorm.trainer.reporting.metric_spool import MetricSender, Spool, rest_client
from syncnorm.trainer.reporting.run_logger.artifact_paths import image_path
from syncnorm.trainer.reporting.run_logger.journal import journal_path
from syncnorm.trainer.reporting.run_logger.journal_sender import JournalSender
from syncnorm.trainer.reporting.run_logger.lightning_logger import RunLogger
from syncnorm.trainer.reporting.run_logger.run_writer import Limits, RunWriter
from tests.trainer.conftest import Mlflow
from tests.trainer.reporting.run_logger.contents import files


class Attempt:
    """One attempt of a job: its logger, and its sender, which is started where a test wants it."""

    def __init__(self, job: Path, number: int, server: Mlflow, run: str) -> None:
        self.artifacts = job / "attempts" / str(number) / "artifacts"
        self.all = [job / "attempts" / str(one) / "artifacts" for one in range(1, number + 1)]
        self.server, self.run, self.step = server, run, 0
        self.spool = Spool(self.artifacts.parent / "metrics.jsonl")
        self.logger = RunLogger(
            self.spool,
            self.artifacts,
            run_id=run,
            experiment="demo",
            current_step=lambda: self.step,
            earlier=self.all[:-1],
            tracking_uri=server.uri,
        )
        self.uploaded: list[str] = []
        self.clients: list[httpx.Client] = []

    def close(self) -> None:
        self.spool.close()
        for client in self.clients:
            client.close()

    def sender(
        self, counts: Callable[[], bool | None] = lambda: True, broken: Mapping[str, int] | None = None
    ) -> JournalSender:
        """broken: answers of a real server that is short of something, by the names of files."""

        def record(response: httpx.Response) -> None:
            if response.request.method == "PUT":
                name = unquote(response.request.url.path).partition("/artifacts/")[2].partition("/artifacts/")[2]
                response.status_code = (broken or {}).get(name, response.status_code)
                if response.is_success:
                    self.uploaded.append(name)

        client = rest_client(self.server.uri)
        client.event_hooks = {"response": [record]}
        self.clients.append(client)
        return JournalSender(client, self.run, self.all, counts)


@pytest.fixture
def attempts(mlflow_server: Mlflow, tmp_path: Path) -> Any:
    run, made = mlflow_server.new_run(), list[Attempt]()

    def next_attempt() -> Attempt:
        made.append(Attempt(tmp_path, len(made) + 1, mlflow_server, run))
        return made[-1]

    yield next_attempt
    for attempt in made:
        attempt.close()


def in_run(server: Mlflow, run: str) -> dict[str, bytes]:
    """Every artifact of the run."""
    client, found, open_ = MlflowClient(server.uri), dict[str, bytes](), [""]
    while open_:
        for one in client.list_artifacts(run, open_.pop() or None):
            if one.is_dir:
                open_.append(one.path)
            else:
                url = f"{server.uri}/get-artifact"
                found[one.path] = httpx.get(url, params={"run_id": run, "path": one.path}).raise_for_status().content
    return found


def wait_until(reached: Callable[[], Any], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_everything_is_in_the_run_while_training_still_goes_on(attempts: Any, mlflow_server: Mlflow) -> None:
    attempt = attempts()
    sender = attempt.sender().start()

    attempt.logger.log_hyperparams({"lr": 0.1, "odd (name)": None, "long": "x" * 9000})
    attempt.logger.experiment.set_tag(attempt.run, "who", "me")
    attempt.logger.experiment.add_image("val/x", torch.rand(3, 8, 8), 12)
    attempt.logger.experiment.log_text(attempt.run, "naïve", "notes/Übersicht.txt")
    attempt.logger.experiment.log_text("x")
    wait_until(lambda: len(attempt.uploaded) == 4)

    run = MlflowClient(mlflow_server.uri).get_run(attempt.run)
    assert (run.data.params["lr"], run.data.params["odd _name_"]) == ("0.1", "None")
    assert len(run.data.params["long"]) == 6000
    assert {"who": "me", "mlflow.loggedImages": "True"}.items() <= run.data.tags.items()
    assert in_run(mlflow_server, attempt.run) == {
        name: (attempt.artifacts / name).read_bytes() for name in files(attempt.artifacts)
    }
    assert sender.close(30)


def test_param_that_has_another_value_holds_nothing_up(
    attempts: Any, mlflow_server: Mlflow, caplog: pytest.LogCaptureFixture
) -> None:
    attempt, client = attempts(), MlflowClient(mlflow_server.uri)
    client.log_param(attempt.run, "p7", "of the spec")
    attempt.logger.log_hyperparams({f"p{number}": number for number in range(250)})
    attempt.logger.experiment.set_tag("t", 1)

    assert attempt.sender().start().close(60)

    run = client.get_run(attempt.run)
    assert run.data.params == {f"p{number}": "of the spec" if number == 7 else str(number) for number in range(250)}
    assert run.data.tags["t"] == "1"
    assert "MLflow refused one of the params" in caplog.text


@pytest.mark.timeout(300)
def test_outage_loses_nothing_and_holds_training_up_no_longer_than_a_disk(attempts: Any, mlflow_server: Mlflow) -> None:
    attempt, longest_s = attempts(), 0.0
    sender = attempt.sender().start()
    for step in range(60):
        if step == 20:
            wait_until(lambda: attempt.uploaded)
            mlflow_server.kill()
        if step == 40:
            wait_until(lambda: sender.was_away)
            mlflow_server.start()
        attempt.step, began = step, time.monotonic()
        attempt.logger.experiment.log_text(f"step {step}")
        attempt.logger.experiment.set_tag("newest", step)
        longest_s = max(longest_s, time.monotonic() - began)

    assert sender.close(120)
    kept = in_run(mlflow_server, attempt.run)
    assert kept == {f"logged/text/text/step-{step:08d}.txt": f"step {step}".encode() for step in range(60)}
    assert MlflowClient(mlflow_server.uri).get_run(attempt.run).data.tags["newest"] == "59"
    assert longest_s < 1  # one call to a dead server takes longer


def test_resumed_attempt_delivers_what_the_killed_one_left_and_overwrites_what_it_repeats(
    attempts: Any, mlflow_server: Mlflow
) -> None:
    first = attempts()
    for first.step in range(3):
        first.logger.experiment.log_text("of 1")
        first.logger.experiment.log_metric(first.run, "m", 1.0, step=first.step)
        if first.step == 0:
            first.sender()._deliver()
    first.logger.experiment.set_tag("late", 1)
    second = attempts()
    for second.step in range(2, 4):
        second.logger.experiment.log_text("of 2")

    assert second.sender().start().close(60)

    assert second.uploaded == [f"logged/text/text/step-{step:08d}.txt" for step in (1, 2, 3)]
    contents = list(in_run(mlflow_server, first.run).values())
    assert contents == [b"of 1", b"of 1", b"of 2", b"of 2"]
    assert MlflowClient(mlflow_server.uri).get_run(first.run).data.tags["late"] == "1"


def test_third_attempt_uploads_nothing_again(attempts: Any) -> None:
    for text in ("a", "b"):
        attempt = attempts()
        attempt.logger.experiment.log_text(text, f"{text}.txt")
        assert attempt.sender().start().close(60)
        assert attempt.uploaded == [f"{text}.txt"]
    third = attempts()

    assert third.sender().start().close(60)
    assert third.uploaded == []


def test_damaged_journal_and_note_lose_only_what_is_damaged(attempts: Any) -> None:
    attempt = attempts()
    attempt.logger.experiment.log_text("a", "a.txt")
    with journal_path(attempt.artifacts).open("ab") as file:
        file.write(b'\x00\xff\n[]\n{"kind": 1}\n["file", 1, 2]\n["odd", "x", "y"]\n["file", "gone.txt", "9"]\n')
    attempt.logger.experiment.log_text("b", "b.txt")
    (attempt.artifacts.parent / "logged.json").write_text('{"1": "x"}')

    assert attempt.sender().start().close(60)
    assert attempt.uploaded == ["a.txt", "b.txt"]


def test_attempt_that_was_cut_off_and_given_up_sends_no_more(attempts: Any, mlflow_server: Mlflow) -> None:
    zombie = attempts()
    zombie.logger.experiment.log_text("zombie", "shared.txt")
    sender = zombie.sender(counts=lambda: False)
    sender.was_away = True

    assert not sender.start().close(30)
    assert in_run(mlflow_server, zombie.run) == {}


def test_file_that_mlflow_refuses_is_skipped(attempts: Any, caplog: pytest.LogCaptureFixture) -> None:
    attempt = attempts()
    for name in ("big.bin", "a.txt"):
        attempt.logger.experiment.log_text("x", name)

    assert attempt.sender(broken={"big.bin": 413}).start().close(30)
    assert attempt.uploaded == ["a.txt"]
    assert "MLflow refused a logged file; skipping it: big.bin" in caplog.text


def test_artifact_store_that_fails_for_a_file_delays_neither_others_nor_tags(
    attempts: Any, mlflow_server: Mlflow
) -> None:
    attempt = attempts()
    for name in ("slow.bin", "a.txt"):
        attempt.logger.experiment.log_text("x", name)
    attempt.logger.experiment.set_tag("t", 1)
    broken = {"slow.bin": 503}
    sender = attempt.sender(broken=broken).start()
    wait_until(lambda: attempt.uploaded == ["a.txt"])
    assert MlflowClient(mlflow_server.uri).get_run(attempt.run).data.tags["t"] == "1"
    broken.clear()

    assert sender.close(30)
    assert attempt.uploaded == ["a.txt", "slow.bin"]


def test_store_that_the_server_does_not_serve_is_written_by_mlflow_s_client(tmp_path: Path) -> None:
    server = Mlflow(tmp_path, serve_artifacts=False)
    server.start()
    try:
        attempt = Attempt(tmp_path, 1, server, server.new_run())
        attempt.logger.experiment.log_text("x", "notes/a.txt")
        attempt.logger.experiment.log_text("y", "b.txt")
        sent = attempt.sender().start().close(30)
        attempt.close()
        assert sent
        assert in_run(server, attempt.run) == {"notes/a.txt": b"x", "b.txt": b"y"}
    finally:
        server.kill()


# Training by Lightning, interrupted and resumed


class Logs(BoringModel):
    """Logs every way at every step; some steps are epochs, some come backwards. dies_at: the step of its power cut."""

    def __init__(self, dies_at: int | None = None) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["dies_at"])
        self.dies_at = dies_at

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        if self.global_step == self.dies_at:
            raise SystemExit("power cut")
        out = super().training_step(batch, batch_idx)
        self.log("loss", out["loss"], on_step=True, on_epoch=True)
        self.logger.experiment.add_scalar("by_epoch", float(self.current_epoch), self.current_epoch)
        self.logger.experiment.log_metric("backwards", float(self.global_step), 100 - self.global_step)
        self.logger.experiment.log_text(f"{batch.sum().item():.6f}")
        self.logger.experiment.add_image("x", batch.reshape(1, 1, -1).sigmoid(), self.global_step)
        return out


def train(attempt: Attempt, folder: Path, *, epochs: int, dies_at: int | None = None, resume: bool = False) -> None:
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        logger=attempt.logger,
        max_epochs=epochs,
        limit_train_batches=4,
        limit_val_batches=0,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[pl.callbacks.ModelCheckpoint(folder, filename="at-{epoch}", save_top_k=-1)],
    )
    attempt.logger._run._current_step = lambda: trainer.global_step
    try:
        trainer.fit(Logs(dies_at), ckpt_path=str(folder / "at-epoch=0.ckpt") if resume else None)
    except SystemExit:
        assert dies_at is not None


def send_all(attempt: Attempt) -> None:
    spools = [artifacts.parent / "metrics.jsonl" for artifacts in attempt.all]
    assert MetricSender(rest_client(attempt.server.uri), attempt.run, spools).start().close(60)
    assert attempt.sender().start().close(60)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_training_that_was_cut_and_resumed_leaves_the_run_of_one_that_was_not(
    attempts: Any, mlflow_server: Mlflow, tmp_path: Path
) -> None:
    whole = Attempt(tmp_path / "whole", 1, mlflow_server, mlflow_server.new_run())
    train(whole, tmp_path / "a", epochs=3)
    send_all(whole)
    whole.close()
    first = attempts()
    train(first, tmp_path / "b", epochs=3, dies_at=7)
    send_all(first)

    second = attempts()
    train(second, tmp_path / "b", epochs=3, resume=True)  # from step 4
    send_all(second)

    keys = ("loss_step", "loss_epoch", "epoch", "by_epoch", "backwards")
    for key in keys:
        expected = [(step, pytest.approx(value)) for step, value in sorted(mlflow_server.history(whole.run, key))]
        assert expected
        assert sorted(mlflow_server.history(second.run, key)) == expected
    assert in_run(mlflow_server, second.run) == in_run(mlflow_server, whole.run)


# Bounds


def writer(artifacts: Path, spool: Spool, limits: Limits, earlier: Sequence[Path] = ()) -> RunWriter:
    return RunWriter(spool, artifacts, lambda: 0, earlier, limits)


def test_number_and_bytes_of_files_are_bounded_over_all_attempts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = tmp_path / "1" / "artifacts", tmp_path / "2" / "artifacts"
    with closing(Spool(tmp_path / "s")) as spool:
        run = writer(first, spool, Limits(files=3, bytes=100))
        for name in ("a", "b", "a"):
            run.write(name, b"x" * 40)
        run = writer(second, spool, Limits(files=3, bytes=100), [first])
        run.write("a", b"y" * 40)  # takes the place of the first attempt's
        run.write("c", b"x" * 40)  # too many bytes
        run.write("d", b"x")
        run.write("e", b"x")  # too many files
        run.say_losses()

    assert (files(first), files(second)) == (["a", "b"], ["a", "d"])
    assert "files. A job keeps 9.53674e-05 MiB of them; the first left out is c" in caplog.text
    assert "in all: files 2 times" in caplog.text


def test_full_disk_fails_no_training(small_disk: Any, caplog: pytest.LogCaptureFixture) -> None:
    artifacts = small_disk.folder / "1" / "artifacts"
    with closing(Spool(small_disk.folder.parent / "s")) as spool:
        logger = RunLogger(spool, artifacts, run_id="r", experiment="e")
        logger.experiment.log_text("x", "a.txt")
        small_disk.fill()
        logger.experiment.add_image("noise", np.random.default_rng(0).random((3, 200, 200)), 1)
        small_disk.empty()
        logger.experiment.log_text("x", "b.txt")

    assert files(artifacts) == ["a.txt", "b.txt"]
    assert f"{image_path('noise', 1)}.png. It can't be written to the job's folder" in caplog.text


def test_rows_of_a_table_add_up_over_a_resume(attempts: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = attempts()
    for first.step in range(1, 5):
        first.logger.experiment.log_table({"step": [first.step], "of": [1]}, "eval.json")
    second = attempts()
    for second.step in range(3, 6):  # it resumed from step 2
        second.logger.experiment.log_table({"step": [second.step], "of": [2]}, "eval.json")

    expected = '{"columns": ["step", "of"], "data": [[1, 1], [2, 1], [3, 2], [4, 2], [5, 2]]}'
    assert (second.artifacts / "eval.json").read_text() == expected
