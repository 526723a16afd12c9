"""What becomes of an export: certified, failed or skipped. The trained weights are published whatever happens."""

from __future__ import annotations

import logging
from collections.abc import Callable

from syncnorm.trainer.contract.failure import SKIPPED, ExportReason
from syncnorm.trainer.contract.protocol import ExportRecord, ModelRecord
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.errors import (
    ExportMismatchError,
    NoExportError,
    ServiceAwayError,
    StorageAwayError,
    SupersededError,
)
from syncnorm.trainer.failure_classifier import classify, is_mlflow_away

logger = logging.getLogger(__name__)

_OF_THE_ATTEMPT = (SupersededError, ServiceAwayError, StorageAwayError)
"""Errors that say nothing about the export: another attempt may export the same network."""


def settle(export: Callable[[], ModelRecord], spec: ExportSpec) -> tuple[ModelRecord | None, ExportRecord]:
    """The model that `export` gives, if it does, and what is said of the export.

    Raises: what `export` raises where spec.required is set, or where another attempt may have more luck.
    """
    try:
        model = export()
    except _OF_THE_ATTEMPT:
        raise
    except Exception as error:
        if spec.required or is_mlflow_away(error):
            raise
        record = _record(error, spec)
        logger.warning("the export %s: %s", "was skipped" if record.state == "skipped" else "failed", record.message)
        return None, record
    return model, ExportRecord(state="certified", message=str(model.certificate.get("no_model") or ""))


def _record(error: Exception, spec: ExportSpec) -> ExportRecord:
    if isinstance(error, NoExportError):
        is_unasked = not spec.formats and spec.register_as is None
        is_skipped = error.reason in SKIPPED or is_unasked
        return ExportRecord(state="skipped" if is_skipped else "failed", reason=error.reason, message=str(error))
    if isinstance(error, ExportMismatchError):
        return ExportRecord(state="failed", reason=ExportReason.EXPORT_MISMATCH, message=str(error))
    failure = classify(error, rank=0)
    logger.error("the export failed:\n%s", failure.traceback)
    return ExportRecord(state="failed", reason=failure.reason, message=failure.message)
