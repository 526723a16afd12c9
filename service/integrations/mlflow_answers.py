"""Answers of MLflow's REST API (mlflow 3.17) with types, and the meaning of a status that is not 2xx. Pure."""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from syncnorm.service.backend_errors import RefusedError, UnreachableError
from syncnorm.service.integrations.http_client import HttpResponse

T = TypeVar("T")

_Id = Annotated[
    str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value), Field(min_length=1)
]
GONE = "RESOURCE_DOES_NOT_EXIST"
_REFUSALS = {400, 409, 413, 422}
_REFUSALS_WITH_CODE = {403, 404}
"""Statuses that a proxy, and MLflow's own check of the Host header, answer as well, but without an error code."""


class _Tag(BaseModel):
    key: str
    value: str = ""


class Experiment(BaseModel):
    experiment_id: _Id
    lifecycle_stage: str = "active"
    tags: list[_Tag] = []


class ExperimentFound(BaseModel):
    experiment: Experiment


class ExperimentMade(BaseModel):
    experiment_id: _Id


class _Metric(BaseModel):
    key: str


class _Data(BaseModel):
    metrics: list[_Metric] = []


class _Info(BaseModel):
    run_id: _Id
    lifecycle_stage: str = "active"
    artifact_uri: str = ""


class MlflowRun(BaseModel):
    info: _Info
    data: _Data = _Data()


class RunFound(BaseModel):
    run: MlflowRun


class RunUpdated(BaseModel):
    run_info: _Info


class RunsFound(BaseModel):
    runs: list[MlflowRun] = []


class _Point(BaseModel):
    value: float
    step: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0


class History(BaseModel):
    metrics: list[Any] = []

    def points(self) -> list[tuple[int, float]]:
        """(step, value) of the points that can be drawn: one odd point hides no other."""
        found = (_point(item) for item in self.metrics)
        return [(point.step, point.value) for point in found if point is not None and isfinite(point.value)]


class _Problem(BaseModel):
    error_code: str
    message: str = ""


_PROBLEM = TypeAdapter(_Problem)
EXPERIMENT_FOUND, EXPERIMENT_MADE = TypeAdapter(ExperimentFound), TypeAdapter(ExperimentMade)
RUN_FOUND, RUNS_FOUND, HISTORY = TypeAdapter(RunFound), TypeAdapter(RunsFound), TypeAdapter(History)
RUN_UPDATED = TypeAdapter(RunUpdated)
OBJECT = TypeAdapter(dict[str, Any])


def read(answer: HttpResponse, what: str, kind: TypeAdapter[T]) -> T:
    """The content of an answer. what: the request, for messages.

    Raises: RefusedError if MLflow itself says that this one request is wrong, UnreachableError for everything else.
    """
    if answer.is_success:
        return answer.parsed(kind)
    code, message = _problem(answer)
    says_no = answer.status in _REFUSALS and not answer.is_page
    if says_no or (answer.status in _REFUSALS_WITH_CODE and code):
        raise RefusedError(f"MLflow refused {what}: {message}", answer.status, code)
    raise UnreachableError(f"{answer.source} answered {answer.status} to {what}: {message}")


def _problem(answer: HttpResponse) -> tuple[str, str]:
    """MLflow's error code, empty if another server answered, and its message."""
    try:
        problem = _PROBLEM.validate_json(answer.content)
    except ValidationError:
        return "", answer.excerpt
    return problem.error_code, f"{problem.error_code}: {problem.message[:400]}"


def _point(item: Any) -> _Point | None:
    try:
        return _Point.model_validate(item)
    except ValidationError:
        return None
