"""What an export ends as, and which errors are no matter of the export."""

from __future__ import annotations

import pytest
import requests
from mlflow.exceptions import MlflowException

from syncnorm.trainer.contract.failure import ExportReason
from syncnorm.trainer.contract.protocol import ModelRecord
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.errors import (
    ExportMismatchError,
    NoExportError,
    ServiceAwayError,
    StorageAwayError,
    SupersededError,
)
from syncnorm.trainer.export.outcome import settle

PLAIN, NOTHING_ASKED = ExportSpec(), ExportSpec(formats=[])


def raising(error: BaseException) -> ModelRecord:
    raise error


def away() -> MlflowException:
    error = MlflowException("no answer")
    error.__cause__ = requests.ConnectionError()
    return error


def no(reason: ExportReason) -> NoExportError:
    return NoExportError(reason, "it can't.")


@pytest.mark.parametrize(
    ("error", "spec", "state", "reason"),
    [
        (ExportMismatchError("differs"), PLAIN, "failed", "export_mismatch"),
        (no(ExportReason.NOT_EXPORTABLE), PLAIN, "failed", "not_exportable"),
        (no(ExportReason.NOT_EXPORTABLE), NOTHING_ASKED, "skipped", "not_exportable"),
        (no(ExportReason.NOT_EXPORTABLE), ExportSpec(formats=[], register_as="m"), "failed", "not_exportable"),
        (no(ExportReason.NO_FORWARD), PLAIN, "skipped", "no_forward"),
        (no(ExportReason.INPUTS_UNCLEAR), PLAIN, "skipped", "inputs_unclear"),
        (no(ExportReason.LAYERS_OUTSIDE), PLAIN, "skipped", "layers_outside"),
        (KeyError("wavelets"), PLAIN, "failed", "user_error"),
        (MemoryError(), PLAIN, "failed", "out_of_memory"),
        (OSError(28, "No space left on device"), PLAIN, "failed", "storage"),
    ],
)
def test_error_of_an_export_is_said_and_raised_no_further(
    error: Exception, spec: ExportSpec, state: str, reason: str
) -> None:
    model, record = settle(lambda: raising(error), spec)

    assert (model, record.state, record.reason) == (None, state, reason)
    assert str(error.args[-1] if error.args else "") in record.message


@pytest.mark.parametrize("error", [SupersededError(), ServiceAwayError(), StorageAwayError(), away()])
def test_error_that_another_attempt_may_not_meet_is_passed_on(error: Exception) -> None:
    with pytest.raises(type(error)):
        settle(lambda: raising(error), PLAIN)


@pytest.mark.parametrize("error", [ExportMismatchError(), no(ExportReason.NO_FORWARD), KeyError()])
def test_required_export_raises(error: Exception) -> None:
    with pytest.raises(type(error)):
        settle(lambda: raising(error), ExportSpec(formats=[], required=True))


@pytest.mark.parametrize("no_model", [None, "An MLflow model takes one tensor."])
def test_certified_model_comes_with_what_it_lacks(no_model: str | None) -> None:
    record = ModelRecord(uri=None, registered=None, certificate={"no_model": no_model})

    model, said = settle(lambda: record, PLAIN)

    assert (model, said.state, said.message) == (record, "certified", no_model or "")
