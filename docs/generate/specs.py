"""The pages of the job spec and the study spec, from the strings under their fields."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from docs.generate.markdown import fence, generated, joined
from docs.generate.schemas import Schema, default_of, references, type_of
from syncnorm.service.jobs.study_spec import StudySpec
from syncnorm.trainer.contract.spec import JobSpec
from tests.helpers.paths import EXAMPLES

JOB = """
You describe a job in YAML or JSON. Unknown fields are refused, and every error names the path of its field. This page
lists all fields with what they take, their defaults, and when they take effect. To see what your job comes to before it
starts, run `syncnorm plan job.yaml`. For example:
"""
STUDY = """
A study runs a family of jobs. [Studies](studies.md) shows you how to write one, and how its claims are judged. This
page lists all fields of its file.
"""


def job_spec() -> str:
    example = (EXAMPLES / "digits-sync-batch.yaml").read_text(encoding="utf-8")
    head = generated("The job spec", "the strings under the fields in trainer/contract/spec/", JOB)
    return "\n\n".join([head, fence(example, "yaml"), *_sections(JobSpec)])


def study_spec() -> str:
    head = generated("The study spec", "the strings under the fields in service/jobs/study_spec.py", STUDY)
    return "\n\n".join([head, *_sections(StudySpec)])


def _sections(model: type[BaseModel]) -> Iterator[str]:
    document = model.model_json_schema()
    parts = document.get("$defs", {})
    named = [name for name in references(document) if name in parts]
    shared = {name for name in named if named.count(name) > 1 and "properties" in parts[name]}
    yield from _fields("", document, parts, shared)
    for name in dict.fromkeys(one for one in named if one in shared):
        yield f"## {name}"
        yield from _described(parts[name])
        yield from _fields("", parts[name], parts, shared)


def _fields(prefix: str, schema: Schema, parts: dict[str, Schema], shared: set[str]) -> Iterator[str]:
    """Each field, and those of the part that it alone takes, right behind it."""
    for name, field in schema["properties"].items():
        path = f"{prefix}{name}"
        inner = [one for one in references(field) if "properties" in parts.get(one, {})]
        level = "##" if not prefix and schema.get("title") in ("JobSpec", "StudySpec") else "###"
        kind = type_of(field, lambda one: _named(one, parts, shared))
        yield f"{level} `{path}`"
        yield f"*{kind}, {default_of(field, required=name in schema.get('required', ()))}*"
        yield joined(field.get("description", ""))
        for one in dict.fromkeys(inner):
            if one not in shared:
                yield from _described(parts[one])
                yield from _fields(f"{path}{'[]' if _is_list(field) else ''}.", parts[one], parts, shared)


def _is_list(field: Schema) -> bool:
    return any(one.get("type") == "array" for one in (field, *field.get("anyOf", ())))


def _described(part: Schema) -> Iterator[str]:
    if part.get("description"):
        yield joined(part["description"])


def _named(name: str, parts: dict[str, Schema], shared: set[str]) -> str:
    if "properties" not in parts[name]:
        return type_of(parts[name], lambda one: _named(one, parts, shared))
    return f"[{name}](#{name.lower()})" if name in shared else "a map with the fields below"
