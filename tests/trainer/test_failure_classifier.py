"""From what the ranks died of to the one reason a user reads."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule

from syncnorm import norm
from syncnorm.trainer.contract.bounds import LONGEST_TEXT
from syncnorm.trainer.contract.failure import ADVICE, FailureReason
from syncnorm.trainer.errors import CheckpointCorruptError, DisagreementError, ExportMismatchError, NonFiniteError
from syncnorm.trainer.failure_classifier import classify, explain_silence, first_cause

PEER_GONE = RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1234")


def _of_torch_without_memory() -> BaseException:
    try:
        torch.empty(10**15)
    except RuntimeError as error:
        return error
    raise AssertionError("a petabyte was there")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("wavelets"), FailureReason.USER_ERROR),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), FailureReason.USER_ERROR),
        (torch.OutOfMemoryError("CUDA out of memory"), FailureReason.OUT_OF_MEMORY),
        (MemoryError(), FailureReason.OUT_OF_MEMORY),
        (_of_torch_without_memory(), FailureReason.OUT_OF_MEMORY),
        (PermissionError(errno.EACCES, "Permission denied", "/data"), FailureReason.DATA_MISSING),
        (NonFiniteError("x"), FailureReason.NON_FINITE),
        (FileNotFoundError(errno.ENOENT, "no such folder", "/data"), FailureReason.DATA_MISSING),
        (ExportMismatchError("x"), FailureReason.EXPORT_MISMATCH),
        (CheckpointCorruptError("x"), FailureReason.CHECKPOINT_CORRUPT),
        (DisagreementError("x"), FailureReason.INTERNAL),
        (OSError(errno.ENOSPC, "No space left on device"), FailureReason.STORAGE),
    ],
)
def test_reason_of_a_rank_that_failed_by_itself(error: BaseException, reason: FailureReason) -> None:
    failure = classify(error, rank=1)

    assert (failure.reason, failure.secondary) == (reason, False)


def test_label_without_a_class_comes_with_what_to_change() -> None:
    with pytest.raises(IndexError) as error:
        torch.nn.functional.cross_entropy(torch.zeros(1, 4), torch.tensor([90]))

    message = classify(error.value, rank=0).message

    assert message.startswith("IndexError: Target 90 is out of bounds. A label must be one of the network's classes.")


@pytest.mark.filterwarnings("ignore")  # MLflow's own imports warn
class SetInPrepareData(LightningDataModule):
    def prepare_data(self) -> None:
        self.samples = [1]

    def train_dataloader(self) -> object:
        return self.samples


class NeverSet(LightningDataModule):
    def train_dataloader(self) -> object:
        return self.samples


class ModuleOfTheSame(LightningModule):
    def prepare_data(self) -> None:
        self.samples = [1]

    def train_dataloader(self) -> object:
        return self.samples


@pytest.mark.parametrize(
    ("kind", "rank", "is_told"),
    [(SetInPrepareData, 1, True), (ModuleOfTheSame, 1, True), (SetInPrepareData, 0, False), (NeverSet, 1, False)],
)
def test_attribute_that_prepare_data_sets_on_another_worker_comes_with_what_to_change(
    kind: type[LightningDataModule | LightningModule], rank: int, is_told: bool
) -> None:
    with pytest.raises(AttributeError) as caught:
        kind().train_dataloader()

    message = classify(caught.value, rank=rank).message

    assert f"'{kind.__name__}' object has no attribute 'samples'" in message
    assert ("Set it in setup" in message) is is_told


def test_mlflow_that_is_away_may_be_back_but_what_it_refuses_stays_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    from mlflow import MlflowClient, MlflowException

    with pytest.raises(MlflowException) as away:
        MlflowClient("http://127.0.0.1:9").get_run("0" * 32)
    refused = MlflowException("Registered model name cannot be empty.")

    assert classify(away.value, rank=-1).reason is FailureReason.INTERNAL
    assert ADVICE[FailureReason.INTERNAL].retryable
    assert classify(refused, rank=-1).reason is FailureReason.USER_ERROR


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PEER_GONE, FailureReason.WORKER_LOST),
        (RuntimeError("[gloo/transport] Timed out waiting 180000ms for recv"), FailureReason.COLLECTIVE_TIMEOUT),
        (norm.ExchangeError("layer2.0.bn1: rank 1 did not come"), FailureReason.COLLECTIVE_TIMEOUT),
        (norm.ExchangeError(f"layer2.0.bn1: {PEER_GONE}"), FailureReason.WORKER_LOST),
        (norm.WorkerGoneError("layer2.0.bn1: rank 1 has ended"), FailureReason.WORKER_LOST),
    ],
)
def test_rank_that_only_lost_a_peer(error: BaseException, reason: FailureReason) -> None:
    failure = classify(error, rank=0)

    assert (failure.reason, failure.secondary) == (reason, True)


def test_the_culprit_is_shown_not_the_ranks_that_noticed() -> None:
    failures = [classify(PEER_GONE, 0), classify(KeyError("wavelets"), 2), classify(KeyError("wavelets"), 1)]

    cause = first_cause(failures, world_size=3)

    assert cause is not None
    assert (cause.rank, cause.reason) == (1, FailureReason.USER_ERROR)


def test_ranks_in_different_places_show_where() -> None:
    failures = [classify(norm.ExchangeError(f"rank {rank} waited in bn{rank}"), rank) for rank in (1, 0)]

    cause = first_cause(failures, world_size=2)

    assert cause is not None
    assert "waited in bn0" in cause.message
    assert cause.reason == FailureReason.COLLECTIVE_TIMEOUT


def test_a_rank_that_hangs_is_named_with_its_host() -> None:
    waited = classify(RuntimeError("[gloo/transport] Timed out waiting 30000ms for recv operation"), 0)

    reason, message = explain_silence([waited], 2, {1: "node-b, pid 77"}, 30)

    assert reason == FailureReason.COLLECTIVE_TIMEOUT
    assert message.startswith("rank 1 (node-b, pid 77) was silent for 30 s while rank 0 waited for it: RuntimeError")


def test_a_rank_that_died_is_named_with_its_host() -> None:
    reason, message = explain_silence([classify(PEER_GONE, 0)], 2, {}, 30)

    assert reason == FailureReason.WORKER_LOST
    assert message == "The worker process of rank 1 (host unknown) ended without an error message (killed?)."


def test_a_silent_rank_was_killed_and_no_survivor_is_to_blame() -> None:
    assert first_cause([classify(PEER_GONE, 0)], world_size=2) is None


def test_traceback_and_message_travel() -> None:
    try:
        raise KeyError("wavelets")
    except KeyError as error:
        failure = classify(error, rank=0)

    assert Path(__file__).name in failure.traceback
    assert failure.message == "KeyError: 'wavelets'"


@pytest.mark.parametrize("text", ["x" * 10**7, "many lines\n" * 10**5, "wide\x00 \udcff" * 10**5])
def test_long_message_leaves_the_place_in_the_code_readable(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError as error:
        failure = classify(error, rank=0)

    assert f'{Path(__file__).name}", line' in failure.traceback
    assert "in test_long_message_leaves_the_place_in_the_code_readable" in failure.traceback
    assert len(failure.traceback) <= LONGEST_TEXT
    assert set(failure.traceback).isdisjoint("\x00\udcff")


def test_interrupt_is_told_as_one_and_not_as_what_lightning_makes_of_it() -> None:
    told = ValueError("signal only works in main thread of the main interpreter")
    told.__context__ = KeyboardInterrupt()

    failure = classify(told, rank=0)

    assert failure.message == "KeyboardInterrupt"
    assert failure.reason is FailureReason.USER_ERROR


def test_parameters_without_a_part_in_the_loss_get_a_remedy_that_a_job_has() -> None:
    error = RuntimeError(  # of Lightning 2.6, whose remedy is a strategy of its own
        "It looks like your LightningModule has parameters that were not used in producing the loss returned by "
        "training_step. If this is intentional, you must enable the detection of unused parameters in DDP"
    )

    failure = classify(error, rank=0)

    assert failure.reason is FailureReason.USER_ERROR
    assert "requires_grad=False" in failure.message
    assert "strategy" not in failure.message
