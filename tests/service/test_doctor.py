"""What `syncnorm doctor` makes of what it sees. The whole of it runs against real containers in tests/deploy."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.doctor import examine, judge
from service.settings import Settings
from trainer.host_report import HostReport

HEALTHY = HostReport(
    host="w1", gpus=2, cuda="12.8", storage_error=None, api_error=None, mlflow_error=None, clock_ahead_s=0.4
)


def test_healthy_worker_has_no_problem() -> None:
    check = judge(HEALTHY)

    assert check.problem is None
    assert check.detail == "2 GPUs, torch for CUDA 12.8"


@pytest.mark.parametrize(
    ("broken", "fix"),
    [
        ({"storage_error": "Read-only file system"}, "mount the same volume"),
        ({"api_error": "http://api:8000/healthz: timed out"}, "SYNCNORM_WORKER_URL"),
        ({"mlflow_error": "403"}, "--allowed-hosts"),
        ({"clock_ahead_s": -7.0}, "-7 s off"),
        ({"cuda": None}, "CUDA TORCH_INDEX"),
    ],
)
def test_each_fault_of_a_worker_is_named_with_its_fix(broken: dict[str, object], fix: str) -> None:
    check = judge(HEALTHY.model_copy(update=broken))

    assert check.problem is not None
    assert fix in check.problem


def test_worker_without_gpus_may_have_a_cpu_torch() -> None:
    check = judge(HEALTHY.model_copy(update={"gpus": 0, "cuda": None}))

    assert check.problem is None


def test_embedded_service_is_told_where_doctor_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="docker compose exec api syncnorm doctor"):
        list(examine(Settings(home=tmp_path)))


def test_parts_that_do_not_answer_are_each_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    nowhere = "http://127.0.0.1:9"
    settings = Settings(
        home=tmp_path,
        database_url=f"sqlite:///{tmp_path / 'service.db'}",
        ray_address=nowhere,
        mlflow_uri=nowhere,
        storage=str(tmp_path / "missing"),
    )

    problems = {check.name: check.problem for check in examine(settings)}

    assert "Run the migrate service" in (problems["database"] or "")
    assert "Connection refused" in (problems["mlflow"] or "")
    assert "can't be reached" in (problems["ray"] or "")
    assert "missing" in (problems["storage"] or "")
