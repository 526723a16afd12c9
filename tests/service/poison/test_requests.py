"""Whatever a request holds beside a spec: its body, its query, its headers, the ids in its path."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from pydantic import BaseModel

from syncnorm.service.api.resources.job_details import JobPatch
from syncnorm.service.api.resources.secrets import SecretValue
from syncnorm.service.api.resources.tokens import TokenRequest
from syncnorm.service.api.resources.verbs import JobSelection
from syncnorm.service.store.database import Database
from syncnorm.trainer.contract.spec import ExportSpec
from tests.service.poison.conftest import NewScene
from tests.service.poison.documents import SHARE, STUDY
from tests.service.poison.extremes import NUMBERS, TEXTS, Poison, poisons, raw
from tests.service.poison.groups import Faults, must_be_none, share_of
from tests.service.poison.scene import VICTIM, Scene

BODIES: dict[str, tuple[type[BaseModel], dict[str, Any], str, str]] = {
    "patch": (JobPatch, {"labels": {"a": "b"}, "priority": 1}, "PATCH", "/v1/jobs/{job_id}"),
    "token": (TokenRequest, {"owner": "eve", "scopes": ["read"]}, "POST", "/v1/tokens"),
    "bulk verb": (JobSelection, {"filter": {"labels": {"a": "b"}}}, "POST", "/v1/jobs:pause"),
    "secret": (SecretValue, {"value": "s"}, "PUT", "/v1/secrets/KEY"),
    "export": (ExportSpec, {"formats": ["onnx"]}, "POST", "/v1/jobs/{succeeded}/exports"),
}
"""Bodies but specs: (schema, a good one, method, path)."""
ANY_VERSION = {"If-Match": "*"}
_RAW = {"no UTF-8": b"\xff", "surrogate": b"\xed\xb3\xa9", "half": b"\xf0\x9f", "NUL": b"\x00", "newline": b"a\r\nb: c"}
VALUES: dict[str, bytes] = {
    **{name: value.encode(errors="surrogatepass")[:20_000] for name, value in TEXTS.items()},
    **{name: str(value).encode()[:6000] for name, value in NUMBERS.items() if value != raw("1e400")},
    **_RAW,
}
"""Of parameters, as the bytes that are quoted."""


def at_work(scene: Scene) -> dict[str, str]:
    """Names that paths hold, of things of which there is one."""
    succeeded = scene.submit(json.dumps(VICTIM).encode())
    study = scene.submit(json.dumps({**STUDY, "name": "s"}).encode(), to="/v1/studies")
    scene.step_until(lambda: scene.state(str(succeeded)) == "succeeded")
    job_id = scene.submit(json.dumps({**VICTIM, "labels": {"works": "999"}}).encode())
    assert None not in (succeeded, study, job_id)
    return {"job_id": str(job_id), "succeeded": str(succeeded), "study_id": str(study)}


def check_all_well(scene: Scene, names: Mapping[str, str]) -> list[str]:
    scene.step(2)
    scene.look_everywhere([names["job_id"], names["succeeded"]])
    scene.check_victim()
    scene.check_ready()
    scene.check_ends([names["job_id"]])
    scene.check_quiet()
    return scene.faults


def each(new_scene: NewScene, cases: list[Any], send: Callable[[Scene, dict[str, str], Any], object]) -> Faults:
    """One after the other in one scene."""
    found: Faults = {}
    with new_scene() as scene:
        names = at_work(scene)
        for case in cases:
            before = len(scene.faults)
            send(scene, names, case)
            if len(scene.faults) > before:
                found[case.name] = scene.faults[before:]
        del scene.faults[:]
        del scene.log.records[:]
        if left := check_all_well(scene, names):
            found["afterwards"] = left
    return found


@pytest.mark.parametrize("kind", BODIES)
def test_body_without_an_extreme_is_taken(new_scene: NewScene, kind: str) -> None:
    _, good, method, path = BODIES[kind]
    with new_scene() as scene:
        owner = None if kind == "token" else "ann"
        assert scene.call(method, path.format(**at_work(scene)), owner, json=good, headers=ANY_VERSION).is_success


def body_faults(new_scene: NewScene, kind: str, share: int, pick: Callable[[list[Poison]], list[Poison]]) -> Faults:
    model, good, method, path = BODIES[kind]

    def send(scene: Scene, names: dict[str, str], poison: Poison) -> None:
        headers = {"Content-Type": "application/json", **ANY_VERSION}
        owner = None if kind == "token" else "ann"
        scene.call(method, path.format(**names), owner, content=poison.content, headers=headers)

    return each(new_scene, pick(poisons(model, good, share=share)), send)


@pytest.mark.parametrize("kind", BODIES)
def test_extremes_of_every_body_hurt_nobody(new_scene: NewScene, database: Database, kind: str) -> None:
    must_be_none(body_faults(new_scene, kind, SHARE, lambda cases: share_of(cases, database, 12)))


@pytest.mark.chaos
@pytest.mark.parametrize("kind", BODIES)
def test_extremes_of_every_body_hurt_nobody_long(new_scene: NewScene, kind: str) -> None:
    must_be_none(body_faults(new_scene, kind, 1, lambda cases: cases))


@dataclass(frozen=True)
class Asked:
    """One parameter of one route at an extreme."""

    method: str
    path: str
    place: str
    parameter: str
    extreme: str
    value: bytes

    @property
    def name(self) -> str:
        return f"{self.method} {self.path} {self.place} {self.parameter}: {self.extreme}"

    def send(self, scene: Scene, names: Mapping[str, str]) -> None:
        known = {"name": "KEY", "token_id": "none", "sha256": "0" * 64, **names}
        quoted = quote_from_bytes(self.value, safe="")
        path = self.path
        for part, value in {**known, **({self.parameter: quoted} if self.place == "path" else {})}.items():
            path = path.replace(f"{{{part}}}", value)
        if self.place == "query":
            path += f"?{self.parameter}={quoted}"
        headers = {self.parameter: self.value} if self.place == "header" else {}
        body: dict[str, Any] = {"json": VICTIM} if (self.method, self.path) == ("POST", "/v1/jobs") else {}
        scene.call(self.method, path, headers=headers, **body)


def parameters(document: Mapping[str, Any]) -> Iterator[Asked]:
    """Of all routes that the document of the service names; streams that would never end are left out."""
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            for parameter in route.get("parameters", []):
                for extreme, value in VALUES.items():
                    asked = Asked(method.upper(), path, parameter["in"], parameter["name"], extreme, value)
                    if not _is_impossible(asked):
                        yield asked


def _is_impossible(asked: Asked) -> bool:
    """A path without an id is another path; a header takes no line breaks, nor NUL."""
    if asked.place == "path":
        return not asked.value.strip() or asked.value in (b".", b"..")
    return asked.place == "header" and any(byte in asked.value for byte in b"\r\n\0")


def parameter_faults(new_scene: NewScene, pick: Callable[[list[Asked]], list[Asked]]) -> Faults:
    with new_scene() as scene:
        cases = pick(list(parameters(scene.client.app.openapi())))  # type: ignore[attr-defined]
    return each(new_scene, cases, lambda scene, names, asked: asked.send(scene, names))


def test_extremes_of_every_parameter_hurt_nobody(new_scene: NewScene, database: Database) -> None:
    must_be_none(parameter_faults(new_scene, lambda cases: share_of(cases, database, 48)))


def test_id_that_no_database_takes_is_not_found(new_scene: NewScene) -> None:
    def pick(cases: list[Asked]) -> list[Asked]:
        return [asked for asked in cases if asked.place == "path" and asked.extreme == "NUL"]

    must_be_none(parameter_faults(new_scene, pick))


@pytest.mark.chaos
def test_extremes_of_every_parameter_hurt_nobody_long(new_scene: NewScene) -> None:
    must_be_none(parameter_faults(new_scene, lambda cases: cases))
