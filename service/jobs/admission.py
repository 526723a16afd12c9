"""From the body of a submit to a Job, or to all reasons for refusing it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Protocol

from packaging.utils import canonicalize_name

from syncnorm.service.jobs.job import Job, JobState, new_job_id
from syncnorm.service.jobs.stored_spec import StoredSpec
from syncnorm.trainer.contract.catalog.names import LIBRARIES
from syncnorm.trainer.contract.norm_choice import choose_norm
from syncnorm.trainer.contract.plan import NodeCapacity, findings
from syncnorm.trainer.contract.spec import JobSpec, SecretRef
from syncnorm.trainer.contract.spec.requirement_lines import conflicts, lines_of_file
from syncnorm.trainer.errors import Problem, SpecError
from syncnorm.trainer.storage import data_urls
from syncnorm.trainer.storage.storage import is_url

_ALLOWED_MODELS = r"torchvision\.models\.((detection|optical_flow|quantization|segmentation|video)\.)?[A-Za-z]\w*"
"""Public names only: the modules behind them also hold functions that fetch and unpickle any file."""
_ALLOWED_LOSSES = r"torch\.nn\.\w+Loss"
_ALLOWED_METRICS = r"torchmetrics\.(classification|regression)\.\w+"
_ALL = "an operator can allow all with SYNCNORM_ALLOW_CODE=on"
_PATH_ARGS = ("root", "path", "val_path", "annotations", "val_root", "val_annotations")


def against_plan(spec: JobSpec, nodes: Sequence[NodeCapacity] | None) -> list[Problem]:
    """The findings of severity `error` that its plan would show, as far as they need no torch."""
    return [
        Problem(finding.path, f"{finding.message} {finding.fix}")
        for finding in findings(spec, choose_norm(spec).kind, nodes)
        if finding.severity == "error"
    ]


def needs_lookup(spec: JobSpec) -> bool:
    """Whether files, packages or secrets have to be looked up, which may take time."""
    has_secrets = any(isinstance(value, SecretRef) for value in spec.env.values())
    has_source = spec.code is not None or spec.model.init_from is not None
    return has_secrets or has_source or any(name in spec.data.init_args for name in _PATH_ARGS)


def against_files(spec: JobSpec) -> list[Problem]:
    """Data folders that should be on this host and are not."""
    return [
        Problem(f"data.init_args.{name}", f"must be a folder or file that exists, or a URL; {value!r} does not exist")
        for name in _PATH_ARGS
        if isinstance(value := spec.data.init_args.get(name), str) and not is_url(value) and not _exists(value)
    ]


def _exists(path: str) -> bool:
    """False also where that can't be found out, for example of too long a name."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def against_code(spec: JobSpec) -> list[Problem]:
    """Classes other than the known ones, and uploaded code: off unless an operator allows them."""
    problems = [
        Problem(f"{name}.class_path", f"{class_path} must be {what}; {_ALL}")
        for name, class_path, what, is_allowed in (
            ("model", spec.model.class_path, "a model of torchvision.models or one of its packages", _is_allowed_model),
            ("data", spec.data.class_path, "left out: use data.name", lambda _: False),
        )
        if class_path is not None and not is_allowed(class_path)
    ]
    if spec.model.class_path is not None or (spec.model.name or "").startswith(LIBRARIES):
        problems += [
            Problem(
                f"model.init_args.{name}",
                f"must be numbers, words, or the path of a layer of torch.nn, got {value!r}; {_ALL}",
            )
            for name, value in spec.model.init_args.items()
            if not (_is_plain(value) or _is_layer(value))
        ]
    problems += [
        Problem(
            path,
            f"{part.class_path} must be a loss of torch.nn, or a metric of torchmetrics.classification or "
            f"torchmetrics.regression, with numbers and words as its init_args; {_ALL}",
        )
        for path, part in spec.model.named_parts().items()
        if not (_is_allowed_part(path, part.class_path) and all(map(_is_plain, part.init_args.values())))
    ]
    if spec.code is not None:
        problems.append(
            Problem("code", "uploaded code is switched off; an operator can allow it with SYNCNORM_ALLOW_CODE=on")
        )
    return problems


def _is_allowed_model(class_path: str) -> bool:
    return re.fullmatch(_ALLOWED_MODELS, class_path) is not None


def _is_allowed_part(path: str, class_path: str) -> bool:
    pattern = _ALLOWED_LOSSES if path == "model.loss" else _ALLOWED_METRICS
    return path != "model.inferer" and re.fullmatch(pattern, class_path) is not None


def _is_plain(value: Any) -> bool:
    """Whether it can't be the import path of something else, nor its arguments."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return (
        value is None
        or isinstance(value, int | float)
        or (isinstance(value, str) and re.fullmatch(r"[\w-]*", value) is not None)
    )


def _is_layer(value: Any) -> bool:
    """As of the parameter `norm_layer`."""
    return isinstance(value, str) and re.fullmatch(r"torch\.nn\.[A-Z]\w*", value) is not None


def against_urls(spec: JobSpec, allowed: Sequence[str]) -> list[Problem]:
    """URLs of data that workers may not read from."""
    return [
        Problem(f"data.init_args.{name}", f"{wrong}, got {value!r}")
        for name in _PATH_ARGS
        if isinstance(value := spec.data.init_args.get(name), str)
        and is_url(value)
        and (wrong := data_urls.problem(value, allowed))
    ]


def against_package(spec: JobSpec, has: Callable[[str], bool]) -> list[Problem]:
    if spec.code is None or has(spec.code.package):
        return []
    text = f"there is no package {spec.code.package}; upload it first: syncnorm package put FOLDER"
    return [Problem("code.package", text)]


def against_requirements(
    spec: JobSpec, allowed: bool, read: Callable[[str, str], str], installed: Mapping[str, str]
) -> list[Problem]:
    """What its code asks pip for and can't get. read: the text of a file in a package."""
    if spec.code is None or spec.code.requirements is None:
        return []
    if not allowed:
        text = "jobs may not bring requirements here; an operator can allow it with SYNCNORM_ALLOW_REQUIREMENTS=on"
        return [Problem("code.requirements", text)]
    asked = spec.code.requirements
    try:
        lines = lines_of_file(asked, read(spec.code.package, asked)) if isinstance(asked, str) else asked
        return [
            Problem("code.requirements", f"{conflict}. Change it, or ask your operator for another image")
            for conflict in conflicts(lines, installed)
        ]
    except FileNotFoundError:
        return [Problem("code.requirements", f"the package must hold the file {asked}, and does not")]
    except ValueError as error:
        return [Problem("code.requirements", str(error))]


def against_secrets(spec: JobSpec, owner: str, missing: Callable[[str, set[str]], set[str]]) -> list[Problem]:
    named = {variable: value.secret for variable, value in spec.env.items() if isinstance(value, SecretRef)}
    gone = missing(owner, set(named.values())) if named else set()
    return [
        Problem(f"env.{variable}", f"{owner} has no secret {name}; store it first: syncnorm secret put {name}")
        for variable, name in named.items()
        if name in gone
    ]


class ResolveWeights(Protocol):
    def __call__(self, spec: JobSpec, owner: str, *, sees_all: bool) -> tuple[JobSpec, list[Problem]]: ...


@dataclass(frozen=True)
class AdmissionChecks:
    """What speaks against a valid spec on this installation.

    capacity: the hosts of the cluster; None while it can't be asked. local_paths: workers see the same files as this
    process. has_package, missing_secrets: see `against_package` and `against_secrets`. read_packaged: the text of a
    file in a package. data_urls: addresses that jobs may read data from, where user code is not allowed.
    resolve_weights: see service/storage/weight_sources.py.
    """

    capacity: Callable[[], Sequence[NodeCapacity] | None]
    local_paths: bool
    has_package: Callable[[str], bool]
    missing_secrets: Callable[[str, set[str]], set[str]]
    read_packaged: Callable[[str, str], str]
    allow_code: bool
    allow_requirements: bool
    data_urls: Sequence[str]
    resolve_weights: ResolveWeights

    def admit(self, spec: JobSpec, owner: str, *, sees_all: bool = False, is_plan: bool = False) -> JobSpec:
        """`spec` with its names resolved. sees_all: owner may read jobs of others. is_plan: errors of its plan are no
        reason to refuse it.

        Raises: SpecError with everything that speaks against it.
        """
        resolved, problems = self.resolve_weights(spec, owner, sees_all=sees_all)
        problems = [*(self.missing if is_plan else self.refusals)(spec, owner), *problems]
        if problems:
            raise SpecError(problems)
        return resolved

    def refusals(self, spec: JobSpec, owner: str) -> list[Problem]:
        """Errors of its plan, and what is missing or not allowed."""
        return [*against_plan(spec, self.capacity()), *self.missing(spec, owner)]

    def missing(self, spec: JobSpec, owner: str) -> list[Problem]:
        """Missing files, packages and secrets, and what is not allowed."""
        problems = against_files(spec) if self.local_paths else []
        absent = against_package(spec, self.has_package)
        problems += absent + against_secrets(spec, owner, self.missing_secrets)
        if not absent:
            problems += against_requirements(spec, self.allow_requirements, self.read_packaged, _installed())
        problems += [] if self.allow_code else against_code(spec) + against_urls(spec, self.data_urls)
        return problems


@cache
def _installed() -> dict[str, str]:
    """Versions by canonical name. Workers have the same, by the pins of their image."""
    return {canonicalize_name(one.metadata["Name"]): one.version for one in distributions() if one.metadata["Name"]}


def new_job(spec: JobSpec, owner: str, now: datetime) -> Job:
    return Job(
        id=new_job_id(),
        name=spec.name,
        project=spec.project,
        owner=owner,
        state=JobState.QUEUED,
        priority=spec.priority,
        labels=spec.labels,
        norm=choose_norm(spec).kind,
        spec=StoredSpec.of(spec),
        workers=spec.resources.workers,
        min_workers=spec.resources.min_workers,
        cpus_per_worker=spec.resources.cpus_per_worker,
        gpus_per_worker=spec.resources.gpus_per_worker,
        max_failures=spec.limits.max_failures,
        grace_s=spec.limits.grace_s,
        deadline_s=spec.limits.deadline_s,
        created_at=now,
        queued_at=now,
    )
