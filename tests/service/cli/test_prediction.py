"""`syncnorm predict` as far as it needs neither torch nor nibabel; tests/vision has the masks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from syncnorm.service.cli import main as cli
from syncnorm.service.cli.commands import host, prediction


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, installed: set[str]) -> tuple[int, str]:
    monkeypatch.setattr(host, "find_spec", lambda name: name if name in installed else None)
    done = CliRunner().invoke(cli.app, ["predict", str(folder), "scan.nii.gz", "-o", "mask.nii.gz"])
    return done.exit_code, done.output


def test_it_says_which_extra_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = run(tmp_path, monkeypatch, {"lightning"})

    assert code == 2
    assert "`syncnorm predict` needs the extra medical: pip install 'syncnorm[medical]'" in " ".join(said.split())


@pytest.mark.parametrize(("code", "exit_code"), [(2, 2), (1, 70), (-9, 70)])
def test_what_went_wrong_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, exit_code: int) -> None:
    failed = SimpleNamespace(returncode=code, stderr="VOLUME: there is no file scan.nii.gz.\n", stdout="")
    monkeypatch.setattr(prediction.subprocess, "run", lambda *_, **__: failed)

    assert run(tmp_path, monkeypatch, {"lightning", "nibabel"})[0] == exit_code
    assert "VOLUME: there is no file scan.nii.gz." in run(tmp_path, monkeypatch, {"lightning", "nibabel"})[1]


@pytest.mark.parametrize(("asked", "passed"), [((), "-"), (("--windows", "joint"), "joint")])
def test_how_windows_are_run_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], passed: str
) -> None:
    commands: list[list[str]] = []
    found = {"mask": "mask.nii.gz", "shape": [2, 3, 4], "axes": "RAS", "windows": "joint", "voxels": {"0": 24}}

    def ran(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0, stdout=json.dumps(found), stderr="")

    monkeypatch.setattr(prediction.subprocess, "run", ran)
    monkeypatch.setattr(host, "find_spec", lambda name: name)

    done = CliRunner().invoke(cli.app, ["predict", str(tmp_path), "scan.nii.gz", "-o", "mask.nii.gz", *asked])

    assert done.exit_code == 0, done.output
    assert commands[0][-2:] == [passed, "scan.nii.gz"]
    assert "2 x 3 x 4 voxels, axes RAS, by joint windows, class 0 100.0%" in " ".join(done.output.split())


def test_other_ways_to_run_windows_are_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["predict", str(tmp_path), "a.nii", "-o", "b.nii", "--windows", "whole"])

    assert done.exit_code == 2
