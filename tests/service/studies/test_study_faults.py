"""One damaged file, one study or one refused upload is that study's problem alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa

from syncnorm.service.backend_errors import RefusedError, UnexpectedAnswerError
from syncnorm.service.store import schema
from syncnorm.service.store.tables.studies import MOST_FAILURES
from syncnorm.service.studies import collect
from syncnorm.service.studies.collect import read_measured
from syncnorm.trainer.errors import StorageError
from tests.helpers.service.api import api
from tests.service.api.test_study_api import Running, context, submit, work

SMALL = {"grid": {"norm.kind": ["batch", "group"]}, "seeds": [0], "claims": []}
GOOD = [json.dumps({"key": "train/loss", "value": 1 / step, "step": step}).encode() for step in (1, 2)]
DAMAGED: dict[str, bytes] = {
    "zeros": b"\x00" * 200,
    "number": b"123",
    "text": b'"ok"',
    "null": b"null",
    "list": b"[1, 2]",
    "empty object": b"{}",
    "half": b'{"key": "train/loss", "val',
    "two in one": GOOD[0] + GOOD[0],
    "no key": b'{"value": 1.0, "step": 1}',
    "odd key": b'{"key": ["a"], "value": 1.0, "step": 1}',
    "odd value": b'{"key": "a", "value": {"x": 1}, "step": 1}',
    "word for a value": b'{"key": "a", "value": "high", "step": 1}',
    "odd step": b'{"key": "a", "value": 1.0, "step": "last"}',
    "half a step": b'{"key": "a", "value": 1.0, "step": 1.5}',
    "huge step": b'{"key": "a", "value": 1.0, "step": 1' + b"0" * 400 + b"}",
    "no text": b"\xff\xfe\x80",
    "deep": b"[" * 50_000,
}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with api(tmp_path) as pair:
        yield pair


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_line_is_left_out_and_counted(tmp_path: Path, damage: str) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([GOOD[0], DAMAGED[damage], GOOD[1], b""]))

    found = read_measured([str(tmp_path)])

    assert found == ({"train/loss": [(1, 1.0), (2, 0.5)]}, 1, frozenset())


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", '"NaN"', "1e999"])
def test_value_that_is_not_finite_is_no_damage(tmp_path: Path, value: str) -> None:
    odd = f'{{"key": "train/loss", "value": {value}, "step": 9}}'.encode()
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([GOOD[0], odd, b""]))

    assert read_measured([str(tmp_path)]) == ({"train/loss": [(1, 1.0)]}, 0, frozenset({"train/loss"}))


def test_metric_that_is_finite_again_at_the_end_has_its_last_value(tmp_path: Path) -> None:
    odd = b'{"key": "train/loss", "value": NaN, "step": 1}'
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([odd, GOOD[1], b""]))

    assert read_measured([str(tmp_path)]) == ({"train/loss": [(2, 0.5)]}, 0, frozenset())


@pytest.mark.parametrize("point", [{}, [], {"of_the_future": "x"}, {"norm.kind": 7}])
def test_place_of_a_child_that_can_not_be_read_is_named_so(running: Running, point: object) -> None:
    client, world = running
    study_id = submit(client, **SMALL)
    work(client, world, study_id)
    children = schema.study_children
    with world.database.write() as connection:
        connection.execute(sa.update(children).where(children.c.number == 2).values(point=point))

    study = client.get(f"/v1/studies/{study_id}")
    page = client.get(f"/v1/studies/{study_id}/report", params={"format": "html"})

    assert [row["point"] for row in study.json()["table"]] == [{"norm.kind": "batch"}, {"norm.kind": "unreadable"}]
    assert page.status_code == 200


def test_damaged_lines_are_said_in_the_report(running: Running) -> None:
    client, world = running
    study_id = submit(client, **SMALL)
    work(client, world, study_id)
    storage = Path(context(client).settings.storage_root)
    for number, path in enumerate(sorted(storage.glob("jobs/*/attempts/1/metrics.jsonl"))):
        path.write_bytes(b"\x00" * 20 + b"\n" + GOOD[0] + b"\n" + b"123\n" * number)
    collect._finished.cache_clear()  # as after a restart

    study = client.get(f"/v1/studies/{study_id}")
    report = client.get(f"/v1/studies/{study_id}/report", params={"format": "json"}).json()
    page = client.get(f"/v1/studies/{study_id}/report", params={"format": "html"}).text

    assert study.status_code == 200
    assert report["unreadable_lines"] == 3
    assert "Metrics that could not be read and are missing here: " in page


def test_study_that_can_not_be_published_holds_up_no_other_and_says_why(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, world = running
    bad, good = submit(client, **SMALL), submit(client, **SMALL)
    for study_id in (bad, good):
        work(client, world, study_id)
    upload = world.study_runs.upload

    def refuse(run_id: str, files: Mapping[str, bytes]) -> None:
        if run_id == world.study_runs.runs[bad]:
            raise RefusedError("MLflow refused report.html: too large", 413)
        upload(run_id, files)

    monkeypatch.setattr(world.study_runs, "upload", refuse)
    for _ in range(MOST_FAILURES + 2):
        context(client).studies.tick()

    views = {study_id: client.get(f"/v1/studies/{study_id}").json() for study_id in (bad, good)}
    assert views[good]["reported_at"] is not None
    assert views[bad]["reported_at"] is None
    assert f"{MOST_FAILURES} times in a row. RefusedError: MLflow refused report.html" in views[bad]["problem"]
    assert client.get(f"/v1/studies/{bad}/report", params={"format": "json"}).status_code == 200

    monkeypatch.undo()
    client.post(f"/v1/studies/{bad}/retry")
    context(client).studies.tick()
    again = client.get(f"/v1/studies/{bad}").json()
    assert again["reported_at"] is not None
    assert again["problem"] is None


@pytest.mark.parametrize("error", [UnexpectedAnswerError("a login page"), StorageError("away"), KeyError("run")])
def test_study_that_has_to_wait_holds_up_no_other(
    running: Running, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    client, world = running
    first, second = submit(client, **SMALL), submit(client, **SMALL)
    for study_id in (first, second):
        work(client, world, study_id)
    run_for = world.study_runs.run_for_study

    def bent(study: object) -> object:
        if study.id == first:  # type: ignore[attr-defined]
            raise error
        return run_for(study)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(world.study_runs, "run_for_study", bent)
        context(client).studies.tick()
        meanwhile = [client.get(f"/v1/studies/{one}").json()["reported_at"] is not None for one in (first, second)]
    context(client).studies.tick()

    assert meanwhile == [False, True]
    assert client.get(f"/v1/studies/{first}").json()["reported_at"] is not None
