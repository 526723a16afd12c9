"""What the command line shows: the live table, completion of job ids, job files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from service import cli
from service.client import Client
from service.show import watch
from service.specfile import SpecFileError, load
from tests.service.api import SPEC, api


def job(name: str, state: str, percent: float | None = None, eta_s: float | None = None) -> dict[str, Any]:
    progress = {"percent": percent, "eta_s": eta_s}
    spec = {"norm": {"kind": "batch"}, "resources": {"workers": 2}}
    about = {"id": f"job_{name}", "name": name, "project": "demo", "created_at": "2026-01-01T00:00:00"}
    return {**about, "state": state, "progress": progress, "spec": spec}


def test_live_table_goes_on_until_every_job_is_finished() -> None:
    looks = iter(
        [
            [job("a", "running", 40.0, 75.0), job("b", "queued")],
            [job("a", "succeeded", 100.0), job("b", "running", 5.0)],
            [job("a", "succeeded", 100.0), job("b", "failed")],
        ]
    )
    console, rests = Console(record=True, width=140, force_terminal=True), []

    last = watch(lambda: next(looks), console, rests.append)

    text = console.export_text()
    assert [one["state"] for one in last] == ["succeeded", "failed"]
    assert len(rests) == 2
    assert "40 %  1:15 left" in text
    assert "failed" in text


def test_shell_completes_the_ids_of_the_newest_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(tmp_path) as (http, _):
        ids = [http.post("/v1/jobs", json=SPEC | {"name": f"n{number}"}).json()["id"] for number in range(2)]

        def client(timeout_s: float) -> Client:
            made = Client("http://testserver", timeout_s=timeout_s)
            made._http.close()
            made._http = http  # type: ignore[assignment]
            http.close = lambda: None  # type: ignore[method-assign]
            return made

        monkeypatch.setattr(cli, "Client", client)
        found, none = cli.complete_job(ids[0]), cli.complete_job("x")

    assert found == [(ids[0], "n0 queued")]
    assert none == []


def test_completion_without_a_service_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCNORM_URL", "http://127.0.0.1:9")

    assert cli.complete_job("") == []


BAD_FILES = {
    "alias": ("a: &x [1]\nb: *x", "aliases"),
    "bomb": ("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]", "aliases"),
    "merge": ("base: &b {x: 1}\njob: {<<: *b}", "aliases"),
    "python object": ("a: !!python/object/apply:os.system [id]", "not YAML"),
    "python name": ("a: !!python/name:os.system", "not YAML"),
    "deep": ("[" * 3000, "not YAML"),
    "deep mapping": ("{a: " * 3000, "not YAML"),
    "unclosed": ("a: [1, 2", "not YAML"),
    "tab": ("a:\n\t- b", "not YAML"),
    "two documents": ("a: 1\n---\nb: 2", "not YAML"),
    "list": ("- a", "one job as a mapping"),
    "number": ("7", "one job as a mapping"),
    "empty": ("", "one job as a mapping"),
    "control": ("a: \x01", "not YAML"),
    "large": ("a: " + "x" * 2**16, "must not exceed"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_job_file_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    text, reason = BAD_FILES[name]
    (tmp_path / "job.yaml").write_text(text)

    with pytest.raises(SpecFileError, match=reason):
        load(tmp_path / "job.yaml", [])
