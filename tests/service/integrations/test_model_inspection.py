"""A process that knows torch is asked about a spec."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from syncnorm.service.integrations.model_inspection import inspect
from syncnorm.service.storage.code_packages import CodePackages
from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers import own_names
from tests.helpers.paths import ROOT


def test_code_named_as_ours_is_inspected_in_a_checkout_whatever_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "own").mkdir()
    archive, packages = own_names.archive(tmp_path / "own"), CodePackages(str(tmp_path / "storage"))
    package = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    packages.put(package, io.BytesIO(archive))

    found = inspect(read_spec(own_names.spec(package, workers=2)), packages)

    assert found is not None
    assert found.conversion == [{"path": "layers.1", "from": "BatchNorm2d", "to": "SyncBatchNorm"}]
    assert [finding for finding in found.findings if finding.severity == "error"] == []
