"""What model.init_from may read: the checkpoints of a job that its owner may see, a model of MLflow, a file.

A job's name becomes its id when it is submitted. Which checkpoint `last` and `best` are is decided when the job first
starts, because its source may train on, and delete checkpoints, while it waits in the queue. From then on it has a copy
(trainer/weights/staging.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from syncnorm.service.backend_errors import BackendError
from syncnorm.service.jobs.job import Job
from syncnorm.service.store import Store
from syncnorm.service.store.values import JobQuery, StoredCheckpoint
from syncnorm.trainer.contract.initial_weights import KnownCheckpoint, WeightAccess
from syncnorm.trainer.contract.spec import InitFrom, JobSpec
from syncnorm.trainer.contract.text import name_some
from syncnorm.trainer.errors import Problem
from syncnorm.trainer.storage import data_urls
from syncnorm.trainer.storage.storage import is_url

_ID = re.compile(r"job_[0-9a-z]{26}")
_MOST_NAMED = 20


def weight_access(spec: JobSpec, store: Store, limits: WeightAccess) -> WeightAccess:
    """What the workers of a job may start from, as it is now. limits: for files, from the settings."""
    how = spec.model.init_from
    if how is None or how.job is None:
        return limits
    known = [KnownCheckpoint(step=one.step, path=one.path, digest=one.digest) for one in _checkpoints(store, how.job)]
    return limits.model_copy(update={"checkpoints": known})


def _checkpoints(store: Store, job_id: str) -> Sequence[StoredCheckpoint]:
    """Newest first."""
    return [one for one in store.history.checkpoints(job_id) if one.problem is None]


@dataclass(frozen=True)
class WeightSources:
    """Finds what a spec names at submit. local_paths: workers see the same files as this process. tags_of: the tags of
    a model in MLflow; None: there is no such model."""

    store: Store
    limits: WeightAccess
    local_paths: bool
    tags_of: Callable[[str], Mapping[str, str] | None]

    def resolve(self, spec: JobSpec, owner: str, *, sees_all: bool) -> tuple[JobSpec, list[Problem]]:
        """`spec` with the id of the job that it names, and what is wrong. sees_all: jobs of other owners, too."""
        how = spec.model.init_from
        if how is None:
            return spec, []
        if how.model is not None:
            return spec, self._of_model(how.model, owner, sees_all=sees_all)
        if how.file is not None:
            return spec, self._of_file(how.file)
        found = self._job(how, owner, sees_all=sees_all)
        if isinstance(found, Problem):
            return spec, [found]
        model = spec.model.model_copy(update={"init_from": how.model_copy(update={"job": found.id})})
        return spec.model_copy(update={"model": model}), self._of_checkpoint(how, found)

    def _job(self, how: InitFrom, owner: str, *, sees_all: bool) -> Job | Problem:
        """The same answer for a job that does not exist and for one of another owner."""
        assert how.job is not None
        field, ids = how.field, [how.job]
        if not _ID.fullmatch(how.job):
            query = JobQuery(name=how.job, owner=None if sees_all else owner, limit=_MOST_NAMED, full=False)
            ids = self.store.jobs.find_ids(query)
        if len(ids) > 1:  # those that never got as far as a checkpoint are no sources
            ids = [one for one in ids if _checkpoints(self.store, one)] or ids[:1]
        if len(ids) > 1:
            return Problem(field, f"must name one job, but several are called {how.job}; give an id: {name_some(ids)}")
        job = self.store.jobs.get(ids[0]) if ids else None
        if job is None or not (sees_all or job.owner == owner):
            return Problem(field, f"must be a job of yours, by id or name; you have no job {how.job}")
        return job

    def _of_checkpoint(self, how: InitFrom, job: Job) -> list[Problem]:
        which, known = how.checkpoint or "last", _checkpoints(self.store, job.id)
        field = "model.init_from.checkpoint"
        steps = ", ".join(str(step) for step in sorted({one.step for one in known}))
        if not known:
            return [Problem("model.init_from.job", f"must have a checkpoint; job {job.id} is {job.state} and has none")]
        if isinstance(which, int) and which not in {one.step for one in known}:
            return [Problem(field, f"job {job.id} has no checkpoint of step {which}; it has one of {steps}")]
        source = job.spec.value
        if which == "best" and source is not None and source.train.keep_best is None:
            text = (
                f"best needs train.keep_best in the spec of job {job.id}, which has none; use last, or one of {steps}"
            )
            return [Problem(field, text)]
        return []

    def _of_file(self, named: str) -> list[Problem]:
        field = "model.init_from.file"
        if is_url(named):
            wrong = None if self.limits.urls is None else data_urls.problem(named, self.limits.urls)
            return [Problem(field, f"{wrong}, got {named!r}")] if wrong else []
        try:
            text = self._problem_of_path(Path(named).expanduser())
        except (OSError, RuntimeError) as error:  # too long, a loop of links, no such user, no permission
            text = f"must be a path that can be looked up ({getattr(error, 'strerror', None) or error})"
        return [Problem(field, f"{text}, got {named!r}")] if text else []

    def _problem_of_path(self, path: Path) -> str | None:
        if any(path.resolve().is_relative_to(Path(folder).resolve()) for folder in self.limits.private):
            return (
                "must lie outside the service's own folders; use init_from.job or init_from.model for weights of a job"
            )
        return "must be a file that exists, or a URL" if self.local_paths and not path.is_file() else None

    def _of_model(self, uri: str, owner: str, *, sees_all: bool) -> list[Problem]:
        """Registered models are shared; one that is only logged belongs to the owner of its job."""
        field = "model.init_from.model"
        try:
            tags = self.tags_of(uri)
        except BackendError as error:
            return [] if self.limits.urls is None else [Problem(field, f"{uri} can't be looked up now: {error}")]
        if tags is None:
            return [Problem(field, f"must be a model of MLflow; it has no {uri}")]
        job = self.store.jobs.get(tags.get("syncnorm.job_id", ""))
        is_shared = "/" in uri.removeprefix("models:/") or "@" in uri
        if not (is_shared or sees_all or self.limits.urls is None) and (job is None or job.owner != owner):
            return [Problem(field, f"must be a registered model, or one of a job of yours; {uri} is neither")]
        return []
