"""The files of a job over REST: which there are, their parts and versions, and what never leaves."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syncnorm.service.jobs.job import Job
from syncnorm.trainer.contract.protocol import CheckpointFact
from syncnorm.trainer.errors import StorageAwayError
from syncnorm.trainer.storage.storage import storage_at
from tests.helpers.service.api import ADMIN, SPEC, api
from tests.helpers.service.world import World
from tests.service.api.test_api import Running, problem
from tests.service.reconciler.test_later_exports import finish

WEIGHTS = random.Random(0).randbytes(100_000)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with api(tmp_path) as pair:
        yield pair


def put(world: World, job: Job, files: dict[str, bytes]) -> None:
    """Put files into the folder of a job."""
    storage = storage_at(world.reconciler.backends.environment.storage)
    for name, content in files.items():
        storage.write(f"jobs/{job.id}/{name}", content)


def published(world: World, **spec: Any) -> Job:
    """A job that has succeeded, with what a trainer leaves."""
    job = world.succeed(**spec)
    put(
        world,
        job,
        {
            "attempts/1/launch.json": b'{"token": "secret"}',
            "attempts/1/result.json": b"{}",
            "attempts/1/code/net.py": b"code",
            "attempts/1/metrics.jsonl": b"{}",
            "attempts/1/artifacts/spec.yaml": b"name: job",
            "attempts/1/artifacts/norm/statistics/step-10.safetensors": b"statistics",
            "attempts/1/export/weights.safetensors": WEIGHTS,
            "attempts/1/export/model.json": b"{}",
        },
    )
    return job


def listed(running: Running, job: Job, **params: Any) -> list[dict[str, Any]]:
    answer = running[0].get(f"/v1/jobs/{job.id}/files", params=params)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def paths(running: Running, job: Job) -> list[str]:
    return [one["path"] for one in listed(running, job)]


def checkpoint(world: World, job: Job, attempt: int, step: int, **facts: Any) -> None:
    one = world.store.attempts.get(f"{job.id}-{attempt}")
    assert one is not None
    fact = CheckpointFact(fence=one.fence, path="p", step=step, epoch=0, digest="d", size_bytes=1, **facts)
    assert world.store.reports.add_checkpoint(one.id, fact)


def test_list_has_what_was_published_with_size_kind_and_digest(running: Running) -> None:
    job = published(running[1])

    found = listed(running, job)

    assert [(one["path"], one["kind"], one["size_bytes"]) for one in found] == [
        ("export/model.json", "description", 2),
        ("export/weights.safetensors", "weights", len(WEIGHTS)),
        ("norm/statistics/step-10.safetensors", "statistics", 10),
        ("spec.yaml", "spec", 9),
    ]
    assert found[1]["digest"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert [one["path"] for one in listed(running, job, prefix="export/")] == [one["path"] for one in found[:2]]


def test_pages_of_the_list_follow_each_other(running: Running) -> None:
    client, world = running
    job = published(world)
    first = client.get(f"/v1/jobs/{job.id}/files", params={"limit": 3}).json()

    second = client.get(f"/v1/jobs/{job.id}/files", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    other = client.get(f"/v1/jobs/{job.id}/files", params={"prefix": "e", "cursor": first["next_cursor"]})

    assert [one["path"] for one in first["items"] + second["items"]] == paths(running, job)
    assert second["next_cursor"] is None
    problem(other, 422, "invalid_cursor")


def test_file_comes_whole_with_its_version_and_a_name_to_save_it_under(running: Running) -> None:
    client, world = running
    job = published(world)

    answer = client.get(f"/v1/jobs/{job.id}/files/export/weights.safetensors")

    digest = hashlib.sha256(WEIGHTS).digest()
    assert (answer.status_code, answer.content) == (200, WEIGHTS)
    assert answer.headers["etag"] == f'"{digest.hex()}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''weights.safetensors"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-length"] == str(len(WEIGHTS))


def test_part_of_a_file(running: Running) -> None:
    client, world = running
    job = published(world)
    url = f"/v1/jobs/{job.id}/files/export/weights.safetensors"
    tag = client.head(url).headers["etag"]

    part = client.get(url, headers={"Range": "bytes=99990-", "If-Range": tag})
    stale = client.get(url, headers={"Range": "bytes=99990-", "If-Range": '"other"'})
    several = client.get(url, headers={"Range": "bytes=0-1,5-6"})
    behind = client.get(url, headers={"Range": "bytes=100000-"})

    assert (part.status_code, part.content) == (206, WEIGHTS[99_990:])
    assert part.headers["content-range"] == "bytes 99990-99999/100000"
    assert part.headers["content-length"] == "10"
    assert part.headers["etag"] == tag
    assert (stale.status_code, stale.content) == (several.status_code, several.content) == (200, WEIGHTS)
    problem(behind, 416, "range_not_satisfiable")
    assert behind.headers["content-range"] == "bytes */100000"


def test_head_has_the_headers_of_the_whole_file(running: Running) -> None:
    client, world = running
    job = published(world)

    answer = client.head(f"/v1/jobs/{job.id}/files/spec.yaml", headers={"Range": "bytes=0-1"})

    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "9")


def test_known_version_is_not_sent_again(running: Running) -> None:
    client, world = running
    job = published(world)
    url = f"/v1/jobs/{job.id}/files/spec.yaml"
    tag = client.get(url).headers["etag"]

    known = client.get(url, headers={"If-None-Match": tag, "Range": "bytes=0-1"})
    put(world, job, {"attempts/1/artifacts/spec.yaml": b"name: other"})
    changed = client.get(url, headers={"If-None-Match": tag})

    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", tag)
    assert (changed.status_code, changed.content) == (200, b"name: other")


def test_empty_file(running: Running) -> None:
    client, world = running
    job = published(world)
    put(world, job, {"attempts/1/artifacts/empty": b""})
    url = f"/v1/jobs/{job.id}/files/empty"

    assert (client.get(url).status_code, client.get(url).content) == (200, b"")
    problem(client.get(url, headers={"Range": "bytes=0-"}), 416, "range_not_satisfiable")


HOSTILE = [
    "launch.json",
    "attempts/1/launch.json",
    "export/../launch.json",
    "export/%2e%2e/launch.json",
    "..%2flaunch.json",
    "export//../launch.json",
    "%2fetc/passwd",
    "export/",
    "export",
    "export/%2e/model.json",
    "export%00/model.json",
    "export\\..\\launch.json",
    "checkpoints/10/../../../1/launch.json",
    "exports/2/../../attempts/1/launch.json",
    "code/net.py",
    "result.json",
    "metrics.jsonl",
    ".tmp-x",
    "link",
    "folder/token",
    "pipe",
    "a" * 900,
    "%F0%9F%98%80",
]


@pytest.mark.parametrize("path", HOSTILE)
def test_nothing_else_of_the_storage_can_be_read(running: Running, tmp_path: Path, path: str) -> None:
    client, world = running
    job = published(world)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "token").write_text("secret")
    artifacts = tmp_path / "jobs" / job.id / "attempts" / "1" / "artifacts"
    (artifacts / "link").symlink_to(tmp_path / "secret" / "token")
    (artifacts / "folder").symlink_to(tmp_path / "secret")
    (artifacts / ".tmp-x").write_text("half")
    os.mkfifo(artifacts / "pipe")

    answer = client.get(f"/v1/jobs/{job.id}/files/{path}")

    problem(answer, 404, "not_found")
    assert "secret" not in answer.text
    assert not [one for one in paths(running, job) if one in ("link", "folder/token", "pipe", ".tmp-x")]


def test_folder_of_a_job_that_was_replaced_by_a_link_leads_nowhere(running: Running, tmp_path: Path) -> None:
    client, world = running
    victim, job = published(world), world.succeed()
    storage = tmp_path / "jobs"
    for file in (storage / job.id).rglob("*"):
        assert "export" not in file.name
    (storage / job.id).rename(tmp_path / "gone")
    (storage / job.id).symlink_to(storage / victim.id)

    assert paths(running, job) == []
    problem(client.get(f"/v1/jobs/{job.id}/files/export/weights.safetensors"), 404, "not_found")


def test_artifacts_can_not_pose_as_exports_or_checkpoints(running: Running) -> None:
    client, world = running
    job = published(world)
    put(world, job, {"attempts/1/artifacts/export/model.onnx": b"?", "attempts/1/artifacts/checkpoints/1/x": b"?"})

    assert not {"export/model.onnx", "checkpoints/1/x"} & set(paths(running, job))
    problem(client.get(f"/v1/jobs/{job.id}/files/export/model.onnx"), 404, "not_found")


def test_files_of_others_and_of_no_job_are_not_there(tmp_path: Path) -> None:
    with api(tmp_path, auth=True) as (client, world):
        ann, bob = (
            client.post("/v1/tokens", json={"owner": name, "scopes": ["read", "submit"]}).json()["token"]
            for name in ("ann", "bob")
        )
        job_id = client.post("/v1/jobs", json=SPEC, headers={"Authorization": f"Bearer {ann}"}).json()["id"]
        while not world.job(job_id).is_terminal:
            world.step()
        put(world, world.job(job_id), {"attempts/1/artifacts/spec.yaml": b"x"})

        def status(token: str | None, path: str) -> int:
            headers = {"Authorization": f"Bearer {token}"} if token else {"Authorization": ""}
            return int(client.get(f"/v1/jobs/{path}", headers=headers).status_code)

        for path in (f"{job_id}/files", f"{job_id}/files/spec.yaml"):
            assert [status(token, path) for token in (ann, ADMIN, bob, None)] == [200, 200, 404, 401]
        assert status(ann, "job_00000000000000000000000000/files/spec.yaml") == 404
        assert status(ann, "../../etc/files/passwd") == 404
        assert client.delete(f"/v1/jobs/{job_id}", headers={"Authorization": f"Bearer {ann}"}).status_code in (204, 409)


def test_deleted_job_has_no_files(running: Running) -> None:
    client, world = running
    job = published(world)

    client.delete(f"/v1/jobs/{job.id}").raise_for_status()

    problem(client.get(f"/v1/jobs/{job.id}/files"), 404, "not_found")
    problem(client.get(f"/v1/jobs/{job.id}/files/spec.yaml"), 404, "not_found")


def test_running_job_has_its_checkpoints_and_records_and_no_export_yet(running: Running) -> None:
    client, world = running
    job = world.submit(labels={"works": "999"})
    world.step()
    world.step()
    checkpoint(world, job, 1, 10)
    put(
        world,
        job,
        {
            "attempts/1/artifacts/plan.json": b"{}",
            "attempts/1/checkpoints/step-0000000010/state.pt": b"state",
            "attempts/1/checkpoints/step-0000000020/state.pt": b"not known to be complete",
            "attempts/1/export/model.json": b"{}",
        },
    )

    assert paths(running, world.job(job.id)) == ["checkpoints/10/state.pt", "plan.json"]
    assert client.get(f"/v1/jobs/{job.id}/files/checkpoints/10/state.pt").content == b"state"
    problem(client.get(f"/v1/jobs/{job.id}/files/checkpoints/20/state.pt"), 404, "not_found")
    problem(client.get(f"/v1/jobs/{job.id}/files/export/model.json"), 404, "not_found")


def test_files_of_later_attempts_and_exports_count(running: Running) -> None:
    client, world = running
    job = world.succeed(labels={"outcome": "worker_lost.succeeded"})
    put(
        world,
        job,
        {
            "attempts/1/artifacts/spec.yaml": b"first",
            "attempts/1/artifacts/norm/early.png": b"first",
            "attempts/2/artifacts/spec.yaml": b"second",
            "attempts/1/export/model.json": b"first",
            "attempts/2/export/model.json": b"second",
        },
    )
    world.export(job, formats=["onnx"])
    (export,) = finish(world, job.id)
    put(world, job, {f"exports/2/{export.starts}/export/model.onnx": b"later", "exports/2/9/export/model.onnx": b"?"})

    assert job.attempt == 2
    assert {path: client.get(f"/v1/jobs/{job.id}/files/{path}").content for path in paths(running, job)} == {
        "export/model.json": b"second",
        "exports/2/model.onnx": b"later",
        "norm/early.png": b"first",
        "spec.yaml": b"second",
    }


def test_digest_of_a_large_file_is_the_recorded_one(running: Running) -> None:
    _, world = running
    job, large = published(world), random.Random(1).randbytes(2**20 + 1)
    recorded = {"files": {"model.onnx": "0" * 64, "model.pt2": ["?"]}}
    put(
        world,
        job,
        {
            "attempts/1/export/certificate.json": json.dumps(recorded).encode(),
            "attempts/1/export/model.onnx": large,
            "attempts/1/export/model.pt2": large,
        },
    )

    found = {one["path"]: one["digest"] for one in listed(running, job)}

    assert found["export/model.onnx"] == "0" * 64  # so that its reader notices what has changed since
    assert found["export/model.pt2"] == hashlib.sha256(large).hexdigest()


def test_storage_that_is_away_is_said_before_anything_is_sent(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, world = running
    job = published(world)

    def away(*_: object) -> Any:
        raise StorageAwayError("the storage did not answer")

    monkeypatch.setattr("syncnorm.trainer.storage.storage.Folder.entry", away)
    problem(client.get(f"/v1/jobs/{job.id}/files/spec.yaml"), 503, "storage_unreachable")
    monkeypatch.setattr("syncnorm.trainer.storage.storage.Folder.entries", away)
    problem(client.get(f"/v1/jobs/{job.id}/files"), 503, "storage_unreachable")


@pytest.mark.parametrize("server", ["s3", "gs"], indirect=True)
def test_files_come_from_a_bucket_in_pieces(bucket: str, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client, world = running
    job = world.succeed()
    monkeypatch.setattr(client.app.state.context.files, "_root", bucket)  # type: ignore[attr-defined]
    monkeypatch.setattr("syncnorm.trainer.storage.object_store.PIECE_BYTES", 7)
    storage_at(bucket).write(f"jobs/{job.id}/attempts/1/artifacts/norm/a b.bin", content := bytes(range(50)))
    url = f"/v1/jobs/{job.id}/files/norm/a%20b.bin"

    whole, part = client.get(url), client.get(url, headers={"Range": "bytes=5-33"})

    assert paths(running, job) == ["norm/a b.bin"]
    assert (whole.content, part.content) == (content, content[5:34])
    assert "a%20b.bin" in whole.headers["content-disposition"]


def test_checkpoints_say_what_was_measured_and_which_is_best(running: Running) -> None:
    client, world = running
    job = world.submit(labels={"works": "999"})
    world.step()
    world.step()

    def shown() -> list[tuple[Any, ...]]:
        found = client.get(f"/v1/jobs/{job.id}/checkpoints").json()["items"]
        return [(one["step"], one["metrics"], one["best"]) for one in found]

    checkpoint(world, job, 1, 5)  # of a version that says no more
    checkpoint(world, job, 1, 10, metrics={"val/loss": 0.5})
    before = shown()
    checkpoint(world, job, 1, 20, metrics={"val/loss": float("nan")}, best_step=10)
    checkpoint(world, job, 1, 25, metrics={}, best_step=10)

    assert before == [(10, {"val/loss": 0.5}, None), (5, None, None)]
    assert shown() == [
        (25, {}, False),
        (20, {"val/loss": "NaN"}, False),
        (10, {"val/loss": 0.5}, True),
        (5, None, False),
    ]
