"""What a job's processes can't find out about the service: in their environment, in its memory, in its files."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from syncnorm.service.confinement import environment_of_jobs, environment_of_mlflow, make_private, notes
from syncnorm.service.settings import Settings

SECRET = {
    "SYNCNORM_HOME": "/home/ann/.syncnorm",
    "SYNCNORM_DATABASE_URL": "postgresql://syncnorm:password@db/syncnorm",
    "SYNCNORM_ADMIN_TOKEN_FILE": "/keys/admin",
    "SYNCNORM_WEBHOOK_KEY_FILE": "/keys/webhook",
    "SYNCNORM_SECRETS_KEY_FILE": "/keys/secrets",
    "SYNCNORM_TOKEN": "sn_of_a_user",
    "SYNCNORM_SOMETHING_NEW": "x",
    "PGPASSWORD": "password",
    "PGPASSFILE": "/keys/pgpass",
    "RAY_AUTH_TOKEN": "of another cluster",
    "RAY_ADDRESS": "another:6379",
    "MLFLOW_TRACKING_URI": "http://another",
    "MLFLOW_TRACKING_PASSWORD": "of another MLflow",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "k",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "p",
    "MLFLOW_BACKEND_STORE_URI": "postgresql://mlflow:password@db/mlflow",
    "MLFLOW_CRYPTO_KEK_PASSPHRASE": "p",
}
OF_THE_USER = {
    "PATH": "/usr/bin",
    "HOME": "/home/ann",
    "CUDA_VISIBLE_DEVICES": "0",
    "NCCL_DEBUG": "INFO",
    "HF_HOME": "/data/hf",
    "AWS_PROFILE": "train",
    "PGID_OF_MINE": "7",
    "SYNCNORM_SCRATCH": "/scratch",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def test_jobs_get_the_environment_without_what_is_the_service_s_own() -> None:
    assert environment_of_jobs(SECRET | OF_THE_USER, own_mlflow=True) == OF_THE_USER


def test_jobs_get_the_account_of_an_mlflow_that_asks_for_one() -> None:
    account = {"MLFLOW_TRACKING_USERNAME": "syncnorm", "MLFLOW_TRACKING_PASSWORD": "p"}

    assert environment_of_jobs(SECRET | account, own_mlflow=False) == account


def test_mlflow_gets_its_own_settings_and_nothing_of_the_service() -> None:
    found = environment_of_mlflow(SECRET | OF_THE_USER)

    assert "MLFLOW_FLASK_SERVER_SECRET_KEY" in found
    assert not [name for name in found if name.startswith(("SYNCNORM_", "PGPASS", "RAY_", "MLFLOW_TRACKING_"))]


def others_may(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode) & 0o077


@pytest.fixture
def umask() -> int:
    """As a shell has it."""
    before = os.umask(0o022)
    yield before  # type: ignore[misc]
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_state_folder_of_an_earlier_version_becomes_private(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    outside.mkdir()
    for name in (
        "service.db",
        "service.db-wal",
        "mlflow/mlflow.db",
        "mlflow/artifacts/1/x",
        "storage/jobs/spec",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("x")
    (home / "notes.txt").write_text("not of this program")
    (home / "storage" / "link").symlink_to(outside)

    make_private(home)
    (home / "storage" / "new").write_text("x")

    found = {path.relative_to(home).as_posix() for path in [home, *home.rglob("*")] if others_may(path)}
    assert found == {"notes.txt", "storage/link"}
    assert others_may(outside)


@pytest.mark.usefixtures("umask")
def test_folder_that_everybody_uses_stays_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)

    make_private(tmp_path)

    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777


LOOK = """
import ctypes, os
from syncnorm.service.confinement import hide_memory
if os.getuid() == 0:
    os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # what a change of user hides as well
def look():
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            found = open(f"/proc/{os.getppid()}/environ", "rb").read()
            open(f"/proc/{os.getppid()}/mem", "rb").close()
        except OSError as error:
            found = type(error).__name__.encode()
        os.write(writer, b"seen" if b"password" in found else found)
        os._exit(0)
    os.wait()
    return os.read(reader, 100).decode()
first = look()
hide_memory()
print(first, look())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_process_of_the_same_user_can_not_read_the_memory_of_the_service() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        env=os.environ | {"SYNCNORM_DATABASE_URL": "postgresql://syncnorm:password@db"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == ["seen", "PermissionError"]


def test_operator_is_told_where_the_first_token_is_and_what_jobs_can_read(tmp_path: Path) -> None:
    file = tmp_path / "admin.token"
    settings = Settings(home=tmp_path, auth=True, allow_code=True)

    told = notes(settings, file)

    assert told[0] == f"The first admin's token is in {file}"
    assert "The embedded MLflow asks for no token" in told[1]
    assert "Anyone who may submit code can read what this user can read" in told[2]
    assert notes(replace(settings, allow_code=False), file) == told[:2]
    assert notes(replace(settings, ray_address="http://ray-head:8265"), file) == told[:2]
    assert notes(replace(settings, mlflow_uri="http://mlflow:5000"), file) == [told[0], told[2]]
    assert notes(replace(settings, auth=False), file) == []
