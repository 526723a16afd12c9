"""The session on a GPU, where there is none: its steps exist, and one that hangs or fails costs the others nothing."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import service_jobs, session, steps, wheels
from benchmarks.gpu.figures import FIGURES, Figure, read, record
from benchmarks.gpu.installation import join, split
from benchmarks.gpu.resnet_step import figures_of
from benchmarks.gpu.steps import STEPS, Step, reason_to_skip
from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers.paths import ROOT


def test_dry_run_names_each_step_and_why_it_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = session.main(["--dry-run", "--out", str(tmp_path)])

    printed, written = capsys.readouterr().out, (tmp_path / "summary.md").read_text()
    assert code == 0
    for step in STEPS:
        assert f"{step.name}: skipped: " in printed
        assert f"| {step.name} | skipped |" in written
        assert step.command[1] in printed


@pytest.mark.parametrize("step", STEPS, ids=[step.name for step in STEPS])
def test_program_of_each_step_exists(step: Step) -> None:
    done = subprocess.run(
        [sys.executable, *step.command[:2], "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize(
    ("has_gpu", "missing", "left_s", "wanted"),
    [
        (True, "", 480, None),
        (False, "", 480, "there is no CUDA device"),
        (True, "ray", 480, "ray can't be imported"),
        (True, "", 3, "no time is left"),
    ],
)
def test_reasons_to_skip(has_gpu: bool, missing: str, left_s: float, wanted: str | None) -> None:
    reason = reason_to_skip(STEPS[-1], has_gpu=has_gpu, is_there=lambda name: name != missing, left_s=left_s)

    assert reason == wanted or (wanted is not None and wanted in str(reason))


def test_example_of_the_docstring_holds() -> None:
    assert doctest.testmod(steps).failed == 0


def test_step_that_hangs_or_fails_does_not_cost_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = "from benchmarks.gpu.figures import Figure, record; record([Figure('last', 'ratio', 0.4, 0.5)])"
    planned = [
        Step("hangs", "a test", ("-u", "-c", "import time; print('waiting'); time.sleep(60)"), limit_s=1),
        Step("fails", "a test", ("-c", "raise KeyError('x')"), limit_s=60),
        Step("last", "a test", ("-c", figure), limit_s=60),
    ]
    monkeypatch.setattr(session, "STEPS", planned)
    monkeypatch.setattr(session, "_has_gpu", lambda _: True)

    code = session.main(["--out", str(tmp_path)])

    written = (tmp_path / "summary.md").read_text()
    assert code == 1
    assert "| hangs | timed out | 1 s | a test | not over after 1 s, see log.txt |" in written
    assert "exit code 1, see log.txt" in written
    assert "| last | ratio | 0.400 | 0.5 | met |" in written
    assert {"waiting", "KeyError: 'x'"} <= set((tmp_path / "log.txt").read_text().splitlines())


def test_counts_of_tests_become_figures(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(
        '<testsuites><testsuite name="pytest" tests="9" failures="1" errors="0" skipped="0"/></testsuites>'
    )

    written = session.summary([], session.figures_of_tests(tmp_path))

    assert "| tests | failures | 1.000 | 0 | missed |" in written
    assert "| tests | skipped | 0.000 | 0 | met |" in written


def test_figures_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FIGURES, str(tmp_path / "figures.jsonl"))
    figures = list(
        figures_of(4, {"ours": 1.0, "torch.nn.SyncBatchNorm": 2.5, "ours, CUDA graph": 0.9, "local batch norm": 0.8})
    )

    record(figures)

    assert read(tmp_path / "figures.jsonl") == figures
    assert Figure("resnet_step", "4 images, ours / torch.nn.SyncBatchNorm", 0.4, 0.5) in figures


@pytest.mark.parametrize("name", service_jobs.JOBS)
def test_jobs_of_the_service_are_valid_and_ask_for_a_gpu(name: str) -> None:
    assert read_spec(service_jobs.document(name)).resources.gpus_per_worker == 1


def test_large_wheel_is_whole_again_once_all_its_parts_are_there(tmp_path: Path) -> None:
    wheel = tmp_path / "ray-1-cp312.whl"
    wheel.write_bytes(bytes(range(25)))

    parts = split(wheel, 10)
    last = parts[-1].rename(tmp_path / "later")
    join(tmp_path)
    before = wheel.exists()
    last.rename(parts[-1])
    join(tmp_path)

    assert [part.name.rpartition(".")[2] for part in parts] == ["1-of-3", "2-of-3", "3-of-3"]
    assert not before
    assert wheel.read_bytes() == bytes(range(25))


def test_folders_of_wheels_hold_no_more_than_they_may(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.whl" for number in range(4)]
    for file, size in zip(files, (3, 8, 6, 4), strict=True):
        file.write_bytes(bytes(size))

    assert wheels.divide(files, 10) == [[files[0], files[2]], [files[1]], [files[3]]]


def test_packages_that_the_machine_has_are_not_downloaded() -> None:
    found = wheels.closure(("pydantic", "httpx"), there={"httpx", "typing-extensions"})

    assert {"pydantic", "pydantic-core", "annotated-types"} <= found
    assert not found & {"httpx", "typing-extensions", "certifi"}
