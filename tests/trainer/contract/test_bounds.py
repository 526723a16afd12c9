"""Every number and text of a spec has bounds, and what passes can be computed with and stored."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from syncnorm.service.api.resources.tokens import TokenRequest
from syncnorm.service.jobs.study_spec import StudySpec
from syncnorm.trainer.contract import protocol
from syncnorm.trainer.contract.bounds import DEEPEST, MOST_VALUES
from syncnorm.trainer.contract.catalog.names import DATASETS, MODELS
from syncnorm.trainer.contract.spec import ExportSpec, JobSpec
from syncnorm.trainer.contract.spec_reader import read_spec, read_stored
from syncnorm.trainer.errors import SpecError

DOCUMENT = {"name": "a", "model": {"name": "mlp"}, "data": {"name": "digits", "batch_size": 4}}
OWN = {**DOCUMENT, "model": {"class_path": "my.Model"}}


def messages() -> list[type[BaseModel]]:
    named = [value for value in vars(protocol).values() if isinstance(value, type)]
    return [one for one in named if issubclass(one, protocol.Message) and one not in _FROM_THE_SERVICE]


_FROM_THE_SERVICE = (protocol.Message, protocol.Launch, protocol.ExportRequest, protocol.SecretValues)


def unbounded(schema: Any, path: str = "") -> Iterator[str]:
    """AttemptEnvironment in a JSON schema where a number, text or list has no end."""
    if isinstance(schema, list):
        for index, item in enumerate(schema):
            yield from unbounded(item, f"{path}[{index}]")
        return
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    closed = "enum" in schema or "const" in schema or schema.get("format") == "date-time"
    if kind in ("integer", "number") and not closed:
        if not {"maximum", "exclusiveMaximum"} & schema.keys():
            yield f"{path}: a number without a maximum"
        if not {"minimum", "exclusiveMinimum"} & schema.keys():
            yield f"{path}: a number without a minimum"
    if kind == "string" and not closed and "maxLength" not in schema:
        yield f"{path}: a text without maxLength"
    if kind == "array" and "maxItems" not in schema:
        yield f"{path}: a list without maxItems"
    for name, item in schema.items():
        if name not in ("default", "description", "title", "required", "enum"):
            yield from unbounded(item, f"{path}.{name}")


@pytest.mark.parametrize(
    "model",
    [JobSpec, StudySpec, ExportSpec, TokenRequest, *MODELS.values(), *DATASETS.values()],
    ids=lambda m: m.__name__,
)
def test_every_number_text_and_list_of_a_request_is_bounded(model: type[BaseModel]) -> None:
    assert list(unbounded(model.model_json_schema())) == []


@pytest.mark.parametrize("model", messages(), ids=lambda m: m.__name__)
def test_every_number_text_and_list_of_a_message_is_bounded(model: type[BaseModel]) -> None:
    # A metric may be any number.
    free = re.compile(r"\.metrics(\.anyOf\[0\])?\.additionalProperties")
    left = [place for place in unbounded(model.model_json_schema()) if not free.search(place)]

    assert left == []


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"train": {"steps": 2**53}}, "train.steps"),
        ({"train": {"epochs": 10**12}}, "train.epochs"),
        ({"limits": {"deadline_s": 1e12}}, "limits.deadline_s"),
        ({"norm": {"group": 10**9}}, "norm.group"),
        ({"norm": {"eps": 1e300}}, "norm.eps"),
        ({"norm": {"kind": "batch_renorm", "options": {"r_max_steps": 2**62}}}, "norm.options.r_max_steps"),
        ({"optimizer": {"lr": 1e300}}, "optimizer.lr"),
        ({"optimizer": {"weight_decay": 1e300}}, "optimizer.weight_decay"),
        ({"schedule": {"warmup_steps": 2**53}}, "schedule.warmup_steps"),
        ({"statistics": {"every": {"steps": 2**53}}}, "statistics.every.steps"),
        ({"train": {"early_stopping": {"monitor": "x" * 10_000}}}, "train.early_stopping.monitor"),
        ({"model": {"name": "resnet", "init_args": {"depth": 6 * 10**15 + 2}}}, "model.init_args.depth"),
        ({"data": {"name": "synthetic", "batch_size": 1, "init_args": {"shape": [60_000] * 4}}}, "data.init_args"),
    ],
)
def test_extreme_is_refused_by_name(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError) as refused:
        read_spec({**DOCUMENT, **changes})

    assert path in [problem.path for problem in refused.value.problems]


def nested(levels: int) -> Any:
    return {"a": nested(levels - 1)} if levels else 1


@pytest.mark.parametrize(
    ("init_args", "where", "text"),
    [
        ({"classes": {f"class {n}": n for n in range(40_000)}}, "model.init_args", "must not hold more than"),
        ({"a": {"b": 2**63}}, "model.init_args.a.b", "must be a whole number of 64 bit"),
        ({"a": [1.0, math.inf]}, "model.init_args.a.1", "must be a finite number"),
        ({"a": "x" * 70_000}, "model.init_args.a", "must not exceed 65,536 characters"),
        ({"a": "\x00"}, "model.init_args.a", "must not contain NUL"),
        ({"k" * 300: 1}, "model.init_args", "must have keys of 1 to 250 characters"),
        (nested(DEEPEST + 1), "model.init_args" + ".a" * DEEPEST, "must not be nested deeper"),
    ],
)
def test_free_part_of_a_spec_is_bounded(init_args: dict[str, Any], where: str, text: str) -> None:
    document = {**OWN, "model": {"class_path": "my.Model", "init_args": init_args}}

    with pytest.raises(SpecError, match=text) as refused:
        read_spec(document)

    assert refused.value.problems[0].path == where


def test_free_part_takes_what_people_write() -> None:
    classes = {f"person ({n})": n for n in range(1000)}
    document = {**OWN, "model": {"class_path": "my.Model", "init_args": {"classes": classes, "n": 2**63 - 1}}}

    assert read_spec(document).model.init_args["classes"] == classes


@pytest.mark.parametrize("place", ["top", "init_args"])
def test_many_problems_are_told_as_some_and_a_number(place: str) -> None:
    wrong = {f"unknown_{n}": n for n in range(MOST_VALUES - 100)}
    document = {**DOCUMENT, **wrong} if place == "top" else {**DOCUMENT, "model": {"name": "mlp", "init_args": wrong}}

    with pytest.raises(SpecError) as refused:
        read_spec(document)

    assert len(refused.value.problems) == 51
    assert refused.value.problems[-1].message == "and 9,850 more problems; correct these first"


def test_message_about_a_long_value_is_short() -> None:
    with pytest.raises(SpecError) as refused:
        read_spec({**DOCUMENT, "name": "x" * 100_000})

    assert len(str(refused.value)) < 500


def test_stored_spec_of_a_version_without_bounds_is_read() -> None:
    document = json.loads(read_spec(DOCUMENT).model_dump_json())
    document["limits"]["deadline_s"] = 1e12
    document["train"] |= {"epochs": None, "steps": 2**53}
    document["norm"] |= {"group": 10**9, "eps": 1e-300}

    spec = read_stored(document)

    assert (spec.limits.deadline_s, spec.train.steps) == (315_360_000.0, 10**12)
    assert (spec.norm.group, spec.norm.eps) == (4096, 1e-20)
    assert document["train"]["steps"] == 2**53
    datetime.now(UTC) + timedelta(seconds=spec.limits.deadline_s or 0)
