"""Tasks in real processes that are forked from a real parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from syncnorm.trainer.forkserver import fingerprint, fork_server, parent_process
from syncnorm.trainer.forkserver.fork_server import ForkServer, Task
from syncnorm.trainer.forkserver.parent_process import ForkError

TASKS = "tests.helpers.trainer.forked_tasks"
THREADED = "tests.helpers.trainer.threaded_import"
SLOW = "tests.helpers.trainer.slow_import"


@pytest.fixture
def forks() -> Iterator[ForkServer]:
    with closing(ForkServer([TASKS])) as server:
        yield server


def task(*arguments: str, stdin: str = "", **variables: str) -> Task:
    return Task(TASKS, arguments, {**os.environ, **variables}, stdin.encode())


def answer(forks: ForkServer, *arguments: str, stdin: str = "", timeout_s: float = 60, **variables: str) -> Any:
    return json.loads(forks.run(task(*arguments, stdin=stdin, **variables), timeout_s))


def parent_of(forks: ForkServer) -> int:
    return int(answer(forks, "echo", "parent")["parent"])


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def is_over(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def sleeping(forks: ForkServer, pool: ThreadPoolExecutor, file: Path, timeout_s: float = 60) -> tuple[Any, list[int]]:
    """A task that waits, and the ids of its processes."""
    waiting = pool.submit(forks.run, task("sleep", str(file)), timeout_s)
    until(file.exists)
    return waiting, json.loads(file.read_text())


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


# Alike a process that starts anew


def test_forked_process_is_like_one_that_starts_anew(forks: ForkServer) -> None:
    command = [sys.executable, "-m", TASKS, "show"]
    started = subprocess.run(command, capture_output=True, check=True, env=dict(os.environ)).stdout

    assert answer(forks, "show") == json.loads(started)


def test_input_and_output_are_the_tasks_own(forks: ForkServer) -> None:
    found = answer(forks, "echo", "first", stdin="a line\n" * 100_000)

    assert (found["name"], found["stdin"]) == ("first", "a line\n" * 100_000)


def test_random_numbers_differ_from_task_to_task(forks: ForkServer) -> None:
    assert len({answer(forks, "echo", "a")["random"] for _ in range(3)}) == 3


def test_task_that_spoils_its_process_changes_nothing_in_the_next(forks: ForkServer, tmp_path: Path) -> None:
    before = answer(forks, "show")

    forks.run(task("spoil", str(tmp_path)), 60)

    assert answer(forks, "show") == before


def test_variables_of_one_task_are_not_in_the_next_ones_process(forks: ForkServer) -> None:
    with_secret = answer(forks, "show", SECRET="of somebody")
    after = answer(forks, "show")

    assert with_secret["environment"]["SECRET"] == "of somebody"
    assert "SECRET" not in after["environment"]
    variables = Path(f"/proc/{parent_of(forks)}/environ").read_bytes()  # what a forked process shows there, too
    assert b"SECRET" not in variables


# Which parent


def test_parent_serves_many_tasks(forks: ForkServer) -> None:
    assert len({parent_of(forks) for _ in range(3)}) == 1


def test_other_environment_gets_another_parent(forks: ForkServer) -> None:
    before = parent_of(forks)

    after = answer(forks, "echo", "a", OMP_NUM_THREADS="7")["parent"]

    assert after != before
    until(lambda: is_over(before))
    assert forks.memory().parents == 1


def test_code_that_changed_on_the_disk_gets_another_parent(
    forks: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module.py").write_text("a = 1")
    monkeypatch.setattr(fingerprint, "PACKAGE", tmp_path)
    before = parent_of(forks)
    assert parent_of(forks) == before

    (tmp_path / "module.py").write_text("a = 10")

    assert parent_of(forks) != before


def test_replaced_parent_finishes_its_task(forks: ForkServer, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    waiting, (child, *_) = sleeping(forks, pool, tmp_path / "ids", timeout_s=4)
    before = psutil.Process(child).ppid()

    assert answer(forks, "echo", "a", OMP_NUM_THREADS="7")["parent"] != before

    assert not is_over(child)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.result()
    until(lambda: is_over(before))


def test_parents_are_bounded_in_number(forks: ForkServer, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    waiting = [
        pool.submit(forks.run, task("sleep", str(tmp_path / str(number)), N=str(number)), 60)
        for number in range(3)
        if until((tmp_path / str(number - 1)).exists if number else lambda: True) is None
    ]
    until((tmp_path / "2").exists)

    assert forks.memory().parents == 2
    with pytest.raises(ForkError, match="it ended"):
        waiting[0].result(30)
    forks.close()


def test_parent_whose_imports_start_threads_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "PAUSE_S", 60.0)
    now = [0.0]
    with closing(ForkServer([THREADED], clock=lambda: now[0])) as forks:
        with pytest.raises(ForkError, match="its imports started 1 threads"):
            forks.run(task("show"), 60)
        with pytest.raises(ForkError, match="less than 60 s ago"):
            forks.run(task("show"), 60)
        now[0] = 61.0
        with pytest.raises(ForkError, match="its imports started 1 threads"):
            forks.run(task("show"), 60)
        assert forks.memory().parents == 0


def test_parent_that_can_not_import_says_why() -> None:
    with (
        closing(ForkServer(["no_such_module"])) as forks,
        pytest.raises(ForkError, match="No module named 'no_such_module'"),
    ):
        forks.run(task("show"), 60)


def test_memory_is_reported_and_given_back_when_idle() -> None:
    with closing(ForkServer([TASKS], idle_s=2)) as forks:
        before = parent_of(forks)
        assert forks.memory().memory_bytes > 2**20

        until(lambda: forks.memory().parents == 0)

        assert parent_of(forks) != before


# What can go wrong


def test_parent_killed_while_idle_is_replaced(forks: ForkServer) -> None:
    before = parent_of(forks)
    os.kill(before, signal.SIGKILL)
    until(lambda: is_over(before))

    assert parent_of(forks) != before


def test_parent_killed_during_a_task_ends_the_task(forks: ForkServer, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    waiting, (child, *_) = sleeping(forks, pool, tmp_path / "ids")

    os.kill(psutil.Process(child).ppid(), signal.SIGKILL)

    with pytest.raises(ForkError, match="it ended"):
        waiting.result(30)
    until(lambda: is_over(child))
    assert answer(forks, "echo", "next")["name"] == "next"


def test_parent_that_hangs_is_killed(forks: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent_process, "ANSWER_S", 1.0)
    before = parent_of(forks)
    os.kill(before, signal.SIGSTOP)

    with pytest.raises(ForkError, match="it hung"):
        forks.run(task("show"), 60)

    assert is_over(before)
    assert answer(forks, "echo", "next")["name"] == "next"


def test_parent_killed_while_it_imports_costs_one_start(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_ready = parent_process.ParentProcess.wait_ready

    def kill_first(parent: parent_process.ParentProcess) -> None:
        os.kill(parent.pid, signal.SIGKILL)
        wait_ready(parent)

    monkeypatch.setattr(parent_process.ParentProcess, "wait_ready", kill_first)
    with closing(ForkServer([TASKS])) as forks, pytest.raises(ForkError, match="it ended while it started"):
        forks.run(task("show"), 60)


@pytest.mark.parametrize(("what", "code"), [(("die",), -9), (("exit", "3"), 3), (("unknown",), 1)])
def test_forked_process_that_fails_is_named_and_leaves_its_parent_alone(
    forks: ForkServer, what: tuple[str, ...], code: int
) -> None:
    before = parent_of(forks)

    with pytest.raises(ForkError, match=f"exit code {code}"):
        forks.run(task(*what), 60)

    assert parent_of(forks) == before


def test_timeout_ends_the_task_and_all_that_it_started(
    forks: ForkServer, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    waiting, pids = sleeping(forks, pool, tmp_path / "ids", timeout_s=1)

    with pytest.raises(subprocess.TimeoutExpired):
        waiting.result(30)

    until(lambda: all(map(is_over, pids)))


def test_closing_ends_parents_and_tasks(forks: ForkServer, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    waiting, pids = sleeping(forks, pool, tmp_path / "ids")
    parent = psutil.Process(pids[0]).ppid()

    forks.close()

    with pytest.raises(ForkError):
        waiting.result(30)
    until(lambda: all(map(is_over, [parent, *pids])))
    with pytest.raises(ForkError, match="the service ends"):
        forks.run(task("show"), 60)


def test_service_that_ends_while_a_parent_imports_does_not_wait_for_it(pool: ThreadPoolExecutor) -> None:
    forks = ForkServer([SLOW])
    waiting = pool.submit(forks.run, task("show"), 60)
    until(lambda: any(SLOW in " ".join(child.cmdline()) for child in psutil.Process().children()))
    began = time.monotonic()

    assert forks.memory().parents == 0
    forks.close()

    assert time.monotonic() - began < 30
    with pytest.raises(ForkError, match="it ended while it started"):
        waiting.result(30)


SERVICE = f"""
import os, sys
from syncnorm.service.confinement import hide_memory
from syncnorm.trainer.forkserver.fork_server import ForkServer, Task
if sys.argv[2] == "confined":
    hide_memory()
ForkServer(["{TASKS}"]).run(Task("{TASKS}", ["sleep", sys.argv[1]], dict(os.environ), b""), 600)
"""


@pytest.mark.parametrize("form", ["embedded", "confined"])
def test_nothing_outlives_a_service_that_was_killed(tmp_path: Path, form: str) -> None:
    file = tmp_path / "ids"
    with subprocess.Popen([sys.executable, "-c", SERVICE, str(file), form]) as service:
        until(file.exists)
        pids = json.loads(file.read_text())
        parent = psutil.Process(pids[0]).ppid()

        service.kill()

    until(lambda: all(map(is_over, [parent, *pids])))


# Many


def test_two_at_once_share_a_parent(forks: ForkServer, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    waiting, _ = sleeping(forks, pool, tmp_path / "ids", timeout_s=5)

    found = list(pool.map(lambda number: answer(forks, "echo", str(number)), range(8)))

    assert [one["name"] for one in found] == [str(number) for number in range(8)]
    assert len({one["parent"] for one in found}) == 1
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.result(30)


IDLE = 4
"""Descriptors of a parent that waits: its streams, and the socket for tasks."""


def inventory(parent: int) -> dict[str, object]:
    """What may grow: descriptors here and in the parent, its processes, shared memory."""
    return {
        "here": len(list(Path("/proc/self/fd").iterdir())),
        "parent": len(list(Path(f"/proc/{parent}/fd").iterdir())),
        "processes": [process.pid for process in psutil.Process(parent).children(recursive=True)],
        "own processes": [process.pid for process in psutil.Process().children()],
        "threads": psutil.Process(parent).num_threads(),
    }


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.chaos)])
def test_tasks_in_a_row_leave_nothing(forks: ForkServer, tmp_path: Path, count: int) -> None:
    parent = parent_of(forks)
    until(lambda: inventory(parent)["parent"] == IDLE)
    before = inventory(parent)

    for number in range(count):
        if number % 3 == 0:
            forks.run(task("spoil", str(tmp_path)), 60)
        elif number % 3 == 1:
            with pytest.raises(ForkError):
                forks.run(task("die"), 60)
        else:
            answer(forks, "echo", str(number))

    until(lambda: inventory(parent)["parent"] == IDLE)
    assert inventory(parent) == before
