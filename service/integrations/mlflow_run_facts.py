"""Tags and params of a job's MLflow run. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from syncnorm.service.jobs.job import Attempt, Job
from syncnorm.trainer.contract.mlflow_rest import mlflow_name
from syncnorm.trainer.contract.plan import guarantee_rows
from syncnorm.trainer.contract.spec import JobSpec, SourceSpec
from syncnorm.trainer.contract.text import storable, storable_json

MOST_PARAMS = 1000
"""Most params of one run. A larger spec is whole in its artifact `spec.yaml`."""
_MAX_PARAM, _MAX_TAG = 6000, 8000
"""Length limits of MLflow (mlflow 3.17)."""
_DEEPEST = 32
LEFT_OUT_TAG = "syncnorm.params_left_out"

Pairs = list[tuple[str, str]]


def run_tags(job: Job, attempts: Sequence[Attempt]) -> Pairs:
    tags = {
        "syncnorm.norm": job.norm,
        **world_size_tags(job, attempts),
        "syncnorm.attempts": str(job.attempt),
        "mlflow.user": job.owner,
        **_source_tags(job.spec.value),
        **{f"syncnorm.guarantee.{name}": f"{holds}: {why}" for name, holds, why in guarantee_rows(job.guarantees)},
        **{f"syncnorm.label.{key}": value for key, value in job.labels.items()},
    }
    left_out = sum(1 for _ in flatten(job.spec.document)) - MOST_PARAMS
    if left_out > 0:
        tags[LEFT_OUT_TAG] = f"{left_out} of the spec's values are in the artifact spec.yaml only."
    return _fit(tags.items(), _MAX_TAG)


def _source_tags(spec: JobSpec | None) -> dict[str, str]:
    """Where the job came from, in MLflow's own tags."""
    if spec is None:
        return {}
    source = spec.source or SourceSpec()
    name = source.repository or source.name or spec.model.class_path or f"syncnorm {spec.model.name}"
    git = {"commit": source.commit, "branch": source.branch, "repoURL": source.repository}
    dirty = {} if source.commit is None else {"mlflow.source.git.dirty": str(source.dirty).lower()}
    given = {f"mlflow.source.git.{key}": value for key, value in git.items() if value}
    return {"mlflow.source.name": name, "mlflow.source.type": "JOB", **given, **dirty}


def run_params(spec: Mapping[str, Any]) -> Pairs:
    """The spec as params, at most MOST_PARAMS. Arguments of user code may be many, so they come last."""
    ordered = sorted(flatten(spec), key=lambda pair: ".init_args." in pair[0])
    return _fit(ordered[:MOST_PARAMS], _MAX_PARAM)


def _fit(pairs: Iterable[tuple[str, str]], longest: int) -> Pairs:
    """Names and values that MLflow accepts, each name once."""
    fitting: dict[str, str] = {}
    for key, value in pairs:
        name, number = mlflow_name(storable(key)), 2
        while name in fitting:
            name, number = mlflow_name(f"{storable(key)} {number}"), number + 1
        fitting[name] = storable(value, longest)
    return list(fitting.items())


def flatten(value: Mapping[str, Any], prefix: str = "", depth: int = _DEEPEST) -> Iterator[tuple[str, str]]:
    """Dotted names and texts of all values in a spec. env is left out, because it may hold private values."""
    for key, item in value.items():
        name = f"{prefix}{key}"
        if name == "env" or item is None:
            continue
        if isinstance(item, Mapping) and item and depth > 0:
            yield from flatten(item, f"{name}.", depth - 1)
        else:
            yield name, item if isinstance(item, str) else json.dumps(storable_json(item))


def world_size_tags(job: Job, attempts: Sequence[Attempt]) -> dict[str, str]:
    """The number of workers of the latest attempt, and once it has changed, the history with its steps."""
    if not attempts:
        return {"syncnorm.world_size": str(job.workers)}
    tags = {"syncnorm.world_size": str(attempts[-1].workers)}
    before, changes = job.workers, []
    for attempt in attempts:
        if attempt.workers != before:
            changes.append(f"{attempt.workers} from step {attempt.resume_step}")
        before = attempt.workers
    return tags | ({"syncnorm.world_size_changes": ", ".join(changes)} if changes else {})
