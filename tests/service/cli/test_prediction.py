"""`syncnorm predict` as far as it needs neither torch nor nibabel; tests/vision has the masks."""

from __future__ import annotations

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
