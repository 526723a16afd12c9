"""The measured values of a study's jobs as CSV, one line a job, for programs that judge them anew. Pure."""

from __future__ import annotations

import csv
import io

from syncnorm.service.studies.measures import measure
from syncnorm.service.studies.report import Report

_HEAD = ("number", "name", "job_id", "seed", "state", "reason")


def as_csv(report: Report) -> str:
    """UTF-8 text: the job, its value on each axis, and each metric of the spec. A value that is missing is empty.

    Numbers have all their digits, so that a table made from them is that of the report.
    """
    axes, metrics = list(report.spec.grid), report.spec.metrics
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*_HEAD, *axes, *metrics])
    for one in report.outcomes:
        measured = ["" if (value := measure(one, metric)) is None else repr(value) for metric in metrics]
        job = [one.number, one.name, one.job_id, one.seed, one.state, one.reason or ""]
        writer.writerow([*job, *(one.point[axis] for axis in axes), *measured])
    return text.getvalue()
