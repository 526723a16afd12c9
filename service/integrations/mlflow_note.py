"""The note of a job's MLflow run (`mlflow.note.content`): model, result, and a link back to the job. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from syncnorm.service.integrations.mlflow_experiment import VIEW, runs_page
from syncnorm.service.jobs.export_summary import export_summary
from syncnorm.service.jobs.job import Job, JobState
from syncnorm.trainer.contract.failure import advised
from syncnorm.trainer.contract.norm_choice import choose_norm
from syncnorm.trainer.contract.plan import guarantee_rows
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.contract.text import counted, in_markdown

_MAX_MESSAGE = 2000
_PARTS = ("progress", "log", "events", "attempts", "checkpoints")
"""Sections of a job's page that a note leads to."""


def run_note(job: Job, url: str) -> str:
    """The note in Markdown; MLflow shows its first lines. url: of the job's page."""
    parts = ", ".join(f"[{part}]({url}#{part})" for part in _PARTS)
    lines = [_what(job), "", *_state(job), "", f"Job [`{job.id}`]({url}), owner {job.owner}: {parts}"]
    lines += ["", _links(job, url)]
    rows = list(_guarantees(job))
    if job.state is JobState.SUCCEEDED:
        rows += [*_export(job), *_model(job), *_scores(job)]
    if rows:
        lines += ["", "| | |", "|---|---|", *(f"| {label} | {text.replace(chr(10), ' ')} |" for label, text in rows)]
    return "\n".join(lines)


def certificate_line(certificate: dict[str, Any]) -> str:
    """The certificate in one sentence. The whole of it is export/certificate.json in the run."""
    if not certificate.get("checks"):
        return "passed" if certificate.get("passed") else "not passed"
    runtimes = dict.fromkeys(check["runtime"] for check in certificate["checks"])
    return (
        f"{'passed' if certificate['passed'] else 'NOT passed'}: {', '.join(runtimes)} answer as the trained model, "
        f"max relative difference {float(certificate['max_relative_difference']):.1e} "
        f"(allowed {certificate['tolerance']['max_relative_difference']:.0e})"
    )


def windows_line(certificate: dict[str, Any]) -> str:
    """What windows change, in a phrase; empty where nothing was measured. More is in norm/windows.json in the run."""
    found = certificate.get("windows") or {}
    if "share" not in found:
        return str(found.get("not_measured", ""))
    than = "whole samples" if found["reference"] == "whole" else "smaller windows"
    samples = counted(found["samples"], "sample")
    changed = f"another class than by {than} at {found['share']:.2%} of the positions of {samples}"
    if found.get("statistics_share") is not None:
        changed += f", {found['statistics_share']:.2%} where they see all that the network looks at"
    if found.get("validated") == "joint":
        return f"validated jointly; by windows, as an exported file is run, {changed}"
    return changed


def _links(job: Job, url: str) -> str:
    """Links from the run to what a reader wants next."""
    service = url.rpartition("/jobs/")[0]
    links = [f"[queue]({service}/)", f"[API]({service}/docs)"]
    if job.experiment_id is not None:
        label = job.labels.get("study", "")
        view = label if label.startswith("study_") else VIEW  # MLflow draws no curves of what it folds below a parent
        charts = runs_page("", job.experiment_id, charts=True, view=view)
        runs = runs_page("", job.experiment_id)
        links = [f"[charts, scores first]({charts})", f"[runs of this project]({runs})", *links]
    return f"See also: {', '.join(links)}"


def _what(job: Job) -> str:
    spec = job.spec.value
    if spec is None:
        return f"**{job.name}** has a spec that this version of the service can't read."
    model, data = spec.model.name or spec.model.class_path, spec.data.name or spec.data.class_path or "its own data"
    why = f" ({_why(spec)})" if spec.norm.kind == "auto" else ""
    samples = f" of {counted(spec.data.batch_size, 'sample')} each" if spec.data.batch_size else ""
    workers = counted(job.workers, "worker")
    return f"**{job.name}** trains `{model}` on `{data}` with `{job.norm}` normalization{why}, {workers}{samples}."


def _why(spec: JobSpec) -> str:
    choice = choose_norm(spec)
    other = f"; the alternative: {choice.alternative.kind}, {choice.alternative.why}" if choice.alternative else ""
    return f"picked by auto: {choice.why}; {'; '.join(choice.evidence)}{other}"


def _state(job: Job) -> Iterator[str]:
    reason = f" ({job.reason})" if job.reason else ""
    tried = f", {counted(job.attempt, 'attempt')}" if job.attempt else ""
    at = f", step {job.progress['step']}" if job.progress else ""
    yield f"**{job.state.value}**{reason}{tried}{at}"
    said = job.message[:_MAX_MESSAGE]
    if job.reason and job.state is JobState.FAILED:
        said = advised(said, job.reason)
    if said:
        yield from ("", *(f"> {line}" for line in in_markdown(said).splitlines()))


def _scores(job: Job) -> Iterator[tuple[str, str]]:
    metrics = (job.progress or {}).get("metrics", {})
    for name in sorted(metrics):
        if not name.startswith("norm/"):
            yield in_markdown(name), f"{float(metrics[name]):.6g}"


def _guarantees(job: Job) -> Iterator[tuple[str, str]]:
    for name, holds, why in guarantee_rows(job.guarantees):
        yield name.replace("_", " "), in_markdown(f"{holds}: {why}")


def _export(job: Job) -> Iterator[tuple[str, str]]:
    export = export_summary(job)
    if export is not None and export.state != "certified":
        yield "export", in_markdown(": ".join(filter(None, (export.state, export.message))))


def _model(job: Job) -> Iterator[tuple[str, str]]:
    if job.model is None:
        return
    certificate = job.model.get("certificate") or {}
    registered = f", registered as {in_markdown(job.model['registered'])}" if job.model.get("registered") else ""
    yield (
        "model",
        f"`{job.model['uri']}`{registered}" if job.model["uri"] else in_markdown(str(certificate.get("no_model"))),
    )
    yield "certificate", certificate_line(certificate)
    if windows := windows_line(certificate):
        yield "windows", in_markdown(windows)
    if population := certificate.get("population"):
        drifts = population["drift"]
        worst = max(drifts, key=lambda layer: float(drifts[layer]), default=None)
        off = (
            f"; running means were furthest off, by {float(drifts[worst]):.2g} standard deviations, in {worst}"
            if worst
            else ""
        )
        yield "population statistics", f"of {counted(population['samples'], 'sample')}{off}"
    if validation := certificate.get("validation"):
        used = (certificate.get("statistics") or {}).get("used", "population")
        other = "running" if used == "population" else "population"
        for name, value in sorted(validation[used].items()):
            yield (
                f"{in_markdown(name)}, exported",
                f"{float(value):.6g} ({float(validation[other][name]):.6g} with {other} statistics)",
            )
