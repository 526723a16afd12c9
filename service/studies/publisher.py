"""Publishes studies to MLflow: load, decide, apply, repeated until MLflow has the report.

Nothing else depends on it: the report is made from the database and the files of attempts, with or without MLflow.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
from collections.abc import Callable
from datetime import datetime
from functools import partial

from pydantic import ValidationError

from syncnorm.service.backend_errors import DatabaseUnavailableError, UnexpectedAnswerError, UnreachableError
from syncnorm.service.background.loop import Loop
from syncnorm.service.background.outage_log import OutageLog
from syncnorm.service.jobs.job import new_fence
from syncnorm.service.jobs.study import Study, StudyState, count_states, state_of
from syncnorm.service.jobs.study_spec import StudySpec
from syncnorm.service.store.administration.leases import LeaseTable
from syncnorm.service.store.tables.studies import MOST_FAILURES, Family, StudyTable
from syncnorm.service.studies.collect import outcomes, placed
from syncnorm.service.studies.measures import Outcome
from syncnorm.service.studies.report import Report, as_html, as_json, finding, make_report
from syncnorm.service.studies.runs import StudyRuns, curves_link
from syncnorm.service.studies.values_csv import as_csv
from syncnorm.trainer.contract.text import counted, in_markdown, storable
from syncnorm.trainer.errors import StorageError

logger = logging.getLogger(__name__)

LEASE = "studies"
_LEASE_S = 60.0


class UnreadableStudyError(ValueError):
    """The stored spec of a study is none, so there is nothing to report by."""


def report_of(study: Study, family: Family, storage: str, mlflow_uri: str) -> Report:
    """The report on a study as it stands now. Raises: UnreadableStudyError."""
    try:
        spec = StudySpec.model_validate_json(json.dumps(study.spec))
    except ValidationError as error:
        raise UnreadableStudyError(f"The stored spec of study {study.id} can't be read: {error}") from error
    state = state_of(count_states(job for _, job in family))
    found = [placed(one, spec.grid) for one in outcomes(family, storage, mlflow_uri)]
    return make_report(study.id, spec, state.value, found)


def draw_report(report: Report) -> dict[str, bytes]:
    """Its pictures by name. Matplotlib is loaded with the first report, not when the service starts."""
    from syncnorm.service.studies.pictures import draw

    return draw(report.spec, report.rows)


class StudyPublisher:
    """Publishes studies; one replica at a time, under a lease in the database.

    A study whose report can't be made or published waits, and delays no other. After MOST_FAILURES it is set aside,
    with the reason in its view, until one of its jobs is retried.
    """

    def __init__(
        self,
        studies: StudyTable,
        leases: LeaseTable,
        now: Callable[[], datetime],
        runs: StudyRuns,
        storage: str,
        mlflow_uri: str,
        check_storage: Callable[[], None] = lambda: None,
    ) -> None:
        """mlflow_uri: for links, as a browser reaches it. check_storage: raises StorageError if it isn't mounted."""
        self._studies = studies
        self._leases = leases
        self._now = now
        self._check_storage = check_storage
        self._outage_log = OutageLog(logger)
        self._runs = runs
        self._storage = storage
        self._mlflow_uri = mlflow_uri
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{new_fence()[:8]}"

    def loop(self, every_s: float) -> Loop:
        """Publishes on a thread of its own; an error in one tick does not end it."""
        leave = partial(self._leases.give_back, self._holder, LEASE)
        return Loop("studies", self.tick, lambda: every_s, leave=leave)

    def tick(self) -> None:
        """Publish what is due. Raises: UnreachableError while MLflow is unavailable; a later tick does the rest."""
        for study in self._studies.unreported():
            if self._leases.take(self._holder, _LEASE_S, LEASE) is None:
                return
            self._try_to_publish(study)
        self._outage_log.recovered("mlflow")

    def _try_to_publish(self, study: Study) -> None:
        try:
            self._publish(study)
        except (UnexpectedAnswerError, StorageError) as error:
            self._outage_log.failed(
                study.id,
                "MLflow or the storage is unavailable; a study is published later",
                study=study.id,
                error=str(error),
            )
            return
        except (UnreachableError, DatabaseUnavailableError):
            raise  # it affects every other study as well
        except Exception as error:
            self._set_back(study, error)
            return
        self._outage_log.recovered(study.id)
        if study.problem is not None:
            self._studies.note(study.id, {"failures": 0, "problem": None})

    def _set_back(self, study: Study, error: Exception) -> None:
        failures, why = study.failures + 1, f"{type(error).__name__}: {error}"
        if failures >= MOST_FAILURES:
            logger.error("gave up on the report of a study", exc_info=error, extra={"study": study.id})
        else:
            logger.error("could not publish a study; retrying", exc_info=error, extra={"study": study.id})
        problem = f"The report could not be written to MLflow, {counted(failures, 'time')} in a row. {why}"
        self._studies.note(study.id, {"failures": failures, "problem": storable(problem, 2000)})

    def report(self, study: Study, family: Family) -> Report:
        """The report on a study as it stands now. Raises: StorageError, UnreadableStudyError."""
        self._check_storage()
        return report_of(study, family, self._storage, self._mlflow_uri)

    def outcomes(self, family: Family) -> list[Outcome]:
        """What became of each child so far. Raises: StorageError."""
        self._check_storage()
        return outcomes(family, self._storage, self._mlflow_uri)

    def _publish(self, study: Study) -> None:
        now = self._now()  # before reading: later changes cause another report
        family = self._studies.family(study.id)
        run = self._runs.run_for_study(study)
        if study.run_id is None:
            self._studies.note(study.id, {"experiment_id": run.experiment_id, "run_id": run.run_id})
        for child, job in family:
            if job is not None and job.run_id is not None and job.run_id != child.grouped_run:
                self._runs.group(job.run_id, run.run_id)
                self._studies.note_grouped(child, job.run_id)
        if state_of(count_states(job for _, job in family)) is StudyState.FINISHED:
            report = self.report(study, family)
            self._runs.upload(run.run_id, report_files(report))
            self._runs.finish(
                run.run_id, run_status(report.outcomes), _note(report, run.experiment_id), _metrics(report)
            )
            self._studies.note(study.id, {"reported_at": now})
            logger.info("published the report of a study", extra={"study": study.id})


def report_files(report: Report) -> dict[str, bytes]:
    """The artifacts of the study's run."""
    pictures = draw_report(report)
    text = {
        "report.html": as_html(report, pictures),
        "values.csv": as_csv(report),
        "report.json": json.dumps(as_json(report), indent=1),
        "study.json": report.spec.model_dump_json(indent=1),
    }
    return {name: content.encode() for name, content in text.items()} | {
        f"{name}.png": png for name, png in pictures.items()
    }


def run_status(children: tuple[Outcome, ...]) -> str:
    """The status of the run: FINISHED if there is something to compare. A child that diverged is a finding, counted in
    `study/failed`.

    KILLED if children were cancelled, so that nobody takes the study for complete.
    """
    states = {child.state for child in children}
    if "succeeded" in states:
        return "KILLED" if "cancelled" in states else "FINISHED"
    return "FAILED" if "failed" in states else "KILLED"


def _note(report: Report, experiment_id: str) -> str:
    findings = "\n".join(f"- {in_markdown(finding(judgement))}" for judgement in report.judgements)
    counts = ", ".join(f"{count} {state}" for state, count in report.counts.items())
    curves = curves_link(experiment_id, report.study_id)
    seeds = ", ".join(map(str, report.spec.seeds))
    return (
        f"Study `{report.study_id}`: {counts}. Seeds: {seeds}. See {curves}. The report is among the artifacts."
        f"\n\n{findings}"
    )


def _metrics(report: Report) -> dict[str, float]:
    """Numbers of jobs by outcome, and of claims that hold."""
    found = {"study/failed": 0.0} | {f"study/{state}": float(count) for state, count in report.counts.items()}
    for judgement in report.judgements:
        key = f"study/claims {judgement.verdict}"
        found[key] = found.get(key, 0.0) + 1
    return {key: value for key, value in found.items() if math.isfinite(value)}
