"""Programs that a real launcher starts in processes forked from a real parent of this node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from syncnorm.trainer.forkserver import launcher, ray_worker
from syncnorm.trainer.forkserver.launcher import LAUNCHER
from tests.trainer.forkserver.test_fork_server import TASKS, is_over, until


class Node:
    """A folder with a parent, and launchers that ask it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, launcher.FOLDER: str(folder), launcher.SWITCH: "1"}

    def start_parent(self, *modules: str) -> int:
        """Its process id, once it takes requests."""
        code = f"from {LAUNCHER} import start_parent; start_parent({str(self.folder)!r}, {[TASKS, *modules]})"
        subprocess.run([sys.executable, "-c", code], check=True, env=self.environment)
        until(self._is_ready)
        return self.parent()

    def _is_ready(self) -> bool:
        """Asking for it another time hurries it."""
        launcher.start_parent(str(self.folder), [TASKS])
        return (self.folder / launcher.SOCKET).exists()

    def parent(self) -> int:
        """Its process id, once it has written it."""
        lock = self.folder / launcher.LOCK
        until(lambda: lock.read_text().isdigit())
        return int(lock.read_text())

    def run(self, *arguments: str, **variables: str) -> tuple[int, bytes, bytes]:
        command = [sys.executable, "-m", LAUNCHER, TASKS, *arguments]
        environment = {**self.environment, **variables}
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=90, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def show(self, **variables: str) -> Any:
        code, out, err = self.run("show", **variables)
        assert (code, err) == (0, b"")  # one that starts anew says so
        return json.loads(out)


@pytest.fixture
def node() -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="sn-warm-", dir="/tmp") as folder:  # a socket's path is short
        made = Node(Path(folder))
        pid = made.start_parent()
        yield made
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


def asleep(node: Node, file: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A launcher whose program waits, and the ids of the program and of what it has started."""
    process = subprocess.Popen([sys.executable, "-m", LAUNCHER, TASKS, "sleep", str(file)], env=node.environment)
    until(file.exists)
    return process, json.loads(file.read_text())


# Alike a process that starts anew


def test_warm_program_is_like_one_that_starts_anew(node: Node) -> None:
    cold = subprocess.run(
        [sys.executable, "-m", TASKS, "show"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        env=node.environment,
    )

    assert node.show() == json.loads(cold.stdout)


def test_program_gets_what_its_launcher_has(node: Node, tmp_path: Path) -> None:
    command = [sys.executable, "-m", LAUNCHER, TASKS, "show"]
    shell = f"umask 027; ulimit -n 200; nice -n 3 {' '.join(command)}"

    out = subprocess.run(
        ["sh", "-c", shell],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env=node.environment,
    )

    shown = json.loads(out.stdout)
    assert out.stderr == b""
    assert (shown["umask"], shown["limits"][0], shown["nice"], shown["folder"]) == (
        "0027",
        [200, 200],
        3,
        str(tmp_path),
    )


def test_program_that_spoils_its_process_changes_nothing_in_the_next(node: Node, tmp_path: Path) -> None:
    before = node.show()

    assert node.run("spoil", str(tmp_path))[0] == 0

    assert node.show() == before


def test_random_numbers_differ_from_program_to_program() -> None:
    with tempfile.TemporaryDirectory(prefix="sn-warm-", dir="/tmp") as folder:
        node = Node(Path(folder))
        node.start_parent("numpy", "torch")

        drawn = [json.loads(node.run("draw")[1]) for _ in range(3)]

    assert len(drawn[0]) == 3
    assert all(len(set(numbers)) == 3 for numbers in zip(*drawn, strict=True))


def test_variables_of_one_program_are_not_in_the_next_ones(node: Node) -> None:
    assert node.show(NCCL_SOCKET_IFNAME="x")["environment"]["NCCL_SOCKET_IFNAME"] == "x"

    assert "NCCL_SOCKET_IFNAME" not in node.show()["environment"]


@pytest.mark.parametrize(("arguments", "code"), [(["exit", "3"], 3), (["die"], -signal.SIGKILL)])
def test_launcher_ends_as_its_program(node: Node, arguments: list[str], code: int) -> None:
    ended, _, err = node.run(*arguments)

    assert ended == code
    assert b"anew" not in err


# Kills


def test_signals_reach_the_program(node: Node) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        process, pids = asleep(node, Path(folder) / "pids")

        process.terminate()

        assert process.wait(30) == -signal.SIGTERM
        until(lambda: all(map(is_over, pids)))


@pytest.mark.parametrize("victim", ["launcher", "guardian", "program"])
def test_program_and_all_it_started_end_with_it(node: Node, tmp_path: Path, victim: str) -> None:
    process, pids = asleep(node, tmp_path / "pids")
    guardian = psutil.Process(pids[0]).ppid()

    os.kill({"launcher": process.pid, "guardian": guardian, "program": pids[0]}[victim], signal.SIGKILL)

    assert process.wait(30) == -signal.SIGKILL
    until(lambda: is_over(pids[0]) and is_over(guardian))
    if victim != "guardian":  # what is in another session outlives it, as without a guardian
        until(lambda: all(map(is_over, pids)))
    for pid in pids:
        if not is_over(pid):
            os.kill(pid, signal.SIGKILL)


def test_programs_outlive_their_parent(node: Node, tmp_path: Path) -> None:
    process, pids = asleep(node, tmp_path / "pids")

    os.kill(node.parent(), signal.SIGKILL)
    until(lambda: is_over(node.parent()))

    assert not is_over(pids[0])
    assert process.poll() is None
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    until(lambda: all(map(is_over, pids)))


# When it starts anew


def anew(node: Node, **variables: str) -> str:
    """Why, as its launcher says."""
    code, out, err = node.run("show", **variables)
    assert code == 0
    assert json.loads(out)["arguments"] == ["show"]
    return err.decode()


def test_without_a_parent_the_program_starts_anew(node: Node) -> None:
    os.kill(node.parent(), signal.SIGKILL)
    until(lambda: is_over(node.parent()))

    assert "no parent" in anew(node)
    os.kill(node.parent(), signal.SIGKILL)  # the one that the launcher has started


def test_other_variables_start_anew(node: Node) -> None:
    assert "the parent has other variables: PYTHONHASHSEED" in anew(
        node, PYTHONHASHSEED="1", PYTHONPATH=os.environ.get("PYTHONPATH", "")
    )


def test_stopped_parent_costs_a_cold_start(node: Node) -> None:
    os.kill(node.parent(), signal.SIGSTOP)

    assert "the parent hung" in anew(node)


def test_switched_off_nothing_is_asked(node: Node) -> None:
    assert node.run("show", **{launcher.SWITCH: "0"})[2] == b""


def test_there_is_one_parent_a_node(node: Node) -> None:
    before = node.parent()

    assert node.start_parent() == before


def test_parent_ends_with_its_folder() -> None:
    with tempfile.TemporaryDirectory(prefix="sn-warm-", dir="/tmp") as folder:
        pid = Node(Path(folder)).start_parent()

    until(lambda: is_over(pid))


def test_what_a_job_imports_late_is_in_its_parent_and_starts_no_thread() -> None:
    code = (
        "import sys, os; before = dict(os.environ); from syncnorm.trainer.forkserver.node_parent import _prepare; "
        f"from {LAUNCHER} import MODULES; _prepare(MODULES); import torch, logging; "
        "print(*sys.modules); print({**os.environ} == before, torch.is_grad_enabled(), logging.root.manager.disable)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **launcher._ONE_THREAD},
    )

    *_, modules, state = parent.stdout.splitlines()
    rehearsed = {"torch.onnx._internal.exporter._torchlib.ops.nn", "torch.export.pt2_archive"}
    assert {"torch", "lightning", "mlflow.pyfunc", *rehearsed} <= {*modules.split()}
    assert "pytorch_lightning" not in modules.split()  # it takes over what Lightning logs
    assert state == "True True 0"


# Ray's workers

WORKER = ["/ray/default_worker.py", "--node-id=1"]


def test_plain_python_worker_may_be_warm() -> None:
    arguments = [*WORKER, "--language=PYTHON", '--serialized-runtime-env-context={"env_vars": {"A": "1"}}']

    assert ray_worker.warm_arguments(arguments) == WORKER
    assert (ray_worker.environment_of(arguments) or {})["A"] == "1"


@pytest.mark.parametrize(
    "context",
    [
        {"command_prefix": ["nsys"]},
        {"py_executable": "/another/python"},
        {"env_vars": {"PATH": "/x:${PATH}"}},
        {"override_worker_entrypoint": "/x"},
    ],
)
def test_worker_with_a_runtime_environment_of_its_own_starts_anew(context: dict[str, Any]) -> None:
    assert ray_worker.environment_of([*WORKER, f"--serialized-runtime-env-context={json.dumps(context)}"]) is None


@pytest.mark.parametrize("more", ["--worker-type=SPILL_WORKER", "--language=JAVA"])
def test_other_processes_of_ray_start_anew(more: str) -> None:
    language = [] if "language" in more else ["--language=PYTHON"]

    assert ray_worker.warm_arguments([*WORKER, *language, more]) is None
