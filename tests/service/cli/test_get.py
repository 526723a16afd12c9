"""`syncnorm get` and `files`: which files come, under which names, and what is said where there is no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from syncnorm.service.cli import main as cli
from syncnorm.service.cli import terminal
from syncnorm.service.cli.commands import exports
from syncnorm.service.jobs.job import Job
from tests.helpers.service.api import api
from tests.helpers.service.world import World
from tests.service.api.resources.test_files import checkpoint, put
from tests.service.cli.test_commands import Sn
from tests.service.cli.test_progress import client_of

Served = tuple[Sn, World]
KEEP_BEST = {"keep_best": {"monitor": "val/loss"}}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """(the command line, the world it speaks to); a later export advances while it is waited for."""
    (tmp_path / "home").mkdir()
    with api(tmp_path / "home") as (http, world):
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))
        monkeypatch.setattr(exports.wait, "__defaults__", (lambda _s: world.step(),))
        monkeypatch.chdir(tmp_path)
        yield lambda *words: CliRunner().invoke(cli.app, list(words)), world


def model(which: Any = "last", **about: Any) -> dict[str, bytes]:
    described = {"checkpoint": {"which": which}, "plain": {"file": "plain.safetensors"}, **about}
    return {
        "weights.safetensors": f"weights {which}".encode(),
        "plain.safetensors": f"plain {which}".encode(),
        "model.json": json.dumps(described).encode(),
        "certificate.json": b'{"passed": true}',
        "model.onnx": b"onnx",
    }


def publish(world: World, job: Job, files: dict[str, bytes], folder: str = "attempts/1/export") -> None:
    put(world, job, {f"{folder}/{name}": content for name, content in files.items()})


def trained(world: World, exports: str = "succeeded", **spec: Any) -> Job:
    """A job with a model and checkpoints of steps 10 and 20, of which the first is the best."""
    job = world.submit(labels={"works": "3", "exports": exports}, **spec)
    while world.store.attempts.get(f"{job.id}-1") is None:
        world.step()
    checkpoint(world, job, 1, 10, metrics={"val/loss": 0.25}, best_step=10 if "train" in spec else None)
    checkpoint(world, job, 1, 20, metrics={"val/loss": 0.5}, best_step=10 if "train" in spec else None)
    put(world, job, {f"attempts/1/checkpoints/step-00000000{step}/state.pt": b"state" for step in (10, 20)})
    put(world, job, {"attempts/1/artifacts/spec.yaml": b"spec", "attempts/1/artifacts/norm/a.png": b"a"})
    while not world.job(job.id).is_terminal:
        world.step()
    return world.job(job.id)


def saved(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_model_comes_into_the_folder(served: Served, tmp_path: Path) -> None:
    sn, world = served
    job = trained(world)
    publish(world, job, model())

    done = sn("get", "last", "-o", str(tmp_path / "out"))
    again = json.loads(sn("get", "last", "-o", str(tmp_path / "out"), "--json").stdout)

    assert done.exit_code == 0, done.output
    expected = {name: content for name, content in model().items() if name != "plain.safetensors"}
    assert saved(tmp_path / "out") == expected
    assert sorted(done.stdout.split()) == sorted(str(tmp_path / "out" / name) for name in expected)
    assert {one["path"]: one["digest"] for one in again}["export/model.onnx"] == hashlib.sha256(b"onnx").hexdigest()


def test_plain_is_the_file_for_the_original_classes(served: Served, tmp_path: Path) -> None:
    sn, world = served
    publish(world, trained(world), model())

    done = sn("get", "last", "--plain")

    assert done.exit_code == 0, done.output
    assert sorted(name for name in saved(tmp_path) if "/" not in name) == ["model.json", "plain.safetensors"]


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"plain": {"reason": "But bn1 is a BoxCox."}}, "The weights have no plain form. But bn1 is a BoxCox."),
        ({"plain": None}, "published by a version that wrote no plain weights. Export it again"),
    ],
)
def test_model_without_a_plain_form_says_why(served: Served, about: dict[str, Any], said: str) -> None:
    sn, world = served
    files = model(**about)
    del files["plain.safetensors"]
    publish(world, trained(world), files)

    done = sn("get", "last", "--plain")

    assert (done.exit_code, done.stdout) == (2, "")
    assert said in " ".join(done.stderr.split())


def test_model_that_could_not_be_exported_comes_without_its_forms(served: Served, tmp_path: Path) -> None:
    sn, world = served
    job = world.succeed(labels={"export": "failed"})
    publish(world, job, model() | {"certificate.json": b'{"passed": false}'})

    done = sn("get", "last", "-o", "out")

    assert done.exit_code == 0, done.output
    assert sorted(saved(tmp_path / "out")) == ["certificate.json", "model.json", "weights.safetensors"]
    assert "There is no certified export, only weights. It branches on values." in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["spec.yaml"], ["spec.yaml"]),
        (["export/model.onnx", "checkpoints/10/state.pt"], ["model.onnx", "state.pt"]),
        (["checkpoints"], ["checkpoints/10/state.pt", "checkpoints/20/state.pt"]),
        (["checkpoints/10/"], ["10/state.pt"]),
        (["checkpoints/*/state.pt"], ["10/state.pt", "20/state.pt"]),
        (["export/*.onnx", "norm"], ["model.onnx", "norm/a.png"]),
    ],
)
def test_paths_are_saved_as_cp_would(served: Served, tmp_path: Path, paths: list[str], names: list[str]) -> None:
    sn, world = served
    publish(world, trained(world), model())

    done = sn("get", "last", *paths, "-o", "out")

    assert done.exit_code == 0, done.output
    assert sorted(saved(tmp_path / "out")) == names


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "The job has no file 'nothing'. It has: checkpoints/10/state.pt"),
        (["checkpoints/10/state.pt", "checkpoints/20/state.pt"], "Two of these files would be saved as state.pt"),
        (["spec.yaml", "--plain"], "can't be combined with paths"),
        (["--checkpoint", "first"], "--checkpoint must be best, last or a step, got first"),
        (["--checkpoint", "15"], "the job has no checkpoint of step 15; it has one of 10, 20"),
        (["--checkpoint", "best"], "best needs train.keep_best"),
    ],
)
def test_wrong_use_is_said_and_nothing_is_saved(served: Served, tmp_path: Path, words: list[str], said: str) -> None:
    sn, world = served
    publish(world, trained(world), model())

    done = sn("get", "last", *words, "-o", "out")

    assert done.exit_code == 2, done.output
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_last_checkpoint_and_its_step_are_what_the_job_has_published(served: Served, tmp_path: Path) -> None:
    sn, world = served
    publish(world, trained(world), model())

    for which in ("last", "20"):
        done = sn("get", "last", "--checkpoint", which, "-o", which)

        assert done.exit_code == 0, done.output
        assert saved(tmp_path / which)["weights.safetensors"] == b"weights last"
    assert world.store.exports.unreleased() == []


def test_other_checkpoint_is_exported_once_and_comes_from_there(served: Served, tmp_path: Path) -> None:
    sn, world = served
    job = trained(world, train=KEEP_BEST, export={"formats": ["onnx"], "register_as": "net"})
    publish(world, job, model())
    publish(world, job, model("best"), "exports/2/1/export")

    best = sn("get", job.id, "--checkpoint", "best", "-o", "best")
    step = sn("get", job.id, "--checkpoint", "10", "-o", "step")

    assert (best.exit_code, step.exit_code) == (0, 0), best.output + step.output
    assert "exporting the best checkpoint first" in best.stderr
    assert saved(tmp_path / "best") == saved(tmp_path / "step")
    assert saved(tmp_path / "best")["weights.safetensors"] == b"weights best"
    (export,) = world.store.exports.of_job(job.id)
    section = export.section
    assert (section["checkpoint"], section["formats"], section["register_as"]) == ("best", ["onnx"], None)


def test_export_of_a_checkpoint_that_fails_is_said(served: Served, tmp_path: Path) -> None:
    sn, world = served
    job = trained(world, "export_mismatch", train=KEEP_BEST)
    publish(world, job, model())

    done = sn("get", job.id, "--checkpoint", "best", "-o", "best")

    assert done.exit_code == 1, done.output
    assert "Export 2 failed" in done.stderr
    assert not (tmp_path / "best").exists()


def test_export_that_fails_has_published_the_weights_before(served: Served, tmp_path: Path) -> None:
    sn, world = served
    job = trained(world, "export_mismatch", train=KEEP_BEST)
    publish(world, job, model())
    publish(world, job, {"weights.safetensors": b"w", "model.json": b"{}"}, "exports/2/1/export")

    first, second = (sn("get", job.id, "--checkpoint", which, "-o", which) for which in ("best", "10"))

    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    assert saved(tmp_path / "best") == saved(tmp_path / "10") == {"weights.safetensors": b"w", "model.json": b"{}"}
    assert "There is no certified export, only weights." in second.stderr
    assert len(world.store.exports.of_job(job.id)) == 1


def test_job_without_a_model_says_what_there_is(served: Served) -> None:
    sn, world = served
    job = world.submit(labels={"works": "9"})
    world.step()
    world.step()
    checkpoint(world, job, 1, 10)
    running = sn("get", job.id)
    failed = sn("get", world.succeed(labels={"outcome": "user_error"}).id, "--checkpoint", "last")

    assert (running.exit_code, failed.exit_code) == (2, 2)
    assert "is running: its model is there once it has succeeded" in running.stderr
    assert f"Its checkpoints are of step 10: syncnorm get {job.id} checkpoints/10." in " ".join(running.stderr.split())
    assert "has failed and published no model" in failed.stderr


def test_files_are_listed_for_people_and_programs(served: Served) -> None:
    sn, world = served
    publish(world, trained(world), model())

    shown, read = sn("files", "last"), json.loads(sn("files", "last", "--json").stdout)

    assert "export/weights.safetensors" in shown.stdout
    assert {one["kind"] for one in read} >= {"weights", "plain_weights", "checkpoint", "spec", "picture"}


def test_checkpoints_show_metrics_and_the_best(served: Served) -> None:
    sn, world = served
    trained(world, train=KEEP_BEST)

    lines = sn("checkpoints", "last").stdout.splitlines()

    assert "val/loss" in lines[0]
    assert [("best" in line.split(), "0.25" in line) for line in lines[1:]] == [(False, False), (True, True)]


def test_progress_is_shown_on_a_terminal_alone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    sn, world = served
    job = trained(world)
    quiet = sn("get", job.id, "spec.yaml", "-o", "one")
    monkeypatch.setattr(terminal.err, "_force_terminal", True)

    shown = sn("get", job.id, "spec.yaml", "-o", "two")

    assert (quiet.stderr, quiet.stdout) == ("", "one/spec.yaml\n")
    assert "spec.yaml" in shown.stderr
    assert "4/4 bytes" in shown.stderr
