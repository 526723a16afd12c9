"""The nodes in C++: compiled once, in the background, and never in the way of a job."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from syncnorm.norm.backends.by_sample.group_norm import group_norm
from syncnorm.norm.native import build, compilation, extension

pytestmark = pytest.mark.skipif(
    not extension.is_possible() or os.environ.get("SYNCNORM_NODE") == "0", reason="no compiler, or switched off"
)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache of compiled nodes; the kernels in C are there."""
    monkeypatch.setattr(extension, "cache_folder", lambda: tmp_path)
    monkeypatch.delenv("SYNCNORM_NODE", raising=False)
    extension.node.cache_clear()
    yield tmp_path
    extension.node.cache_clear()


def compiler(folder: Path, code: str) -> str:
    """A program that takes a compiler's arguments and runs this code of the shell; the last argument is the output."""
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\nfor output; do :; done\n{code}\n")
    path.chmod(0o700)
    return str(path)


def normalized() -> Tensor:
    x = torch.arange(200.0).view(1, 8, 5, 5).to(memory_format=torch.channels_last)
    return group_norm(x, 2, None, None, 1e-5)


def wait_until_idle() -> None:
    """For the compilation in the background."""
    deadline = time.monotonic() + 60
    while any(thread.name == "syncnorm-compilation" for thread in extension.threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_first_process_compiles_in_the_background_and_the_next_one_loads(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = build.cache_folder() / extension._file_name(str(extension._compiler()))  # compiled before the first test
    monkeypatch.setenv("CXX", compiler(tmp_path, f'cp {copy} "$output"'))
    extension.node.cache_clear()

    assert extension.node() is None
    wait_until_idle()
    assert extension.node() is None  # a process computes one way from its first step to its last
    extension.node.cache_clear()
    assert extension.node() is not None
    assert [path.suffix for path in cache.iterdir() if path.suffix == ".tmp"] == []


def test_compiler_that_fails_is_named_once_and_not_run_by_every_process(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = tmp_path / "runs"
    monkeypatch.setenv("CXX", compiler(tmp_path, f'echo run >> {runs}; echo "no memory left" >&2; exit 1'))
    expected = normalized()

    wait_until_idle()
    assert torch.equal(normalized(), expected)
    assert [record.message for record in caplog.records] == [
        f"normalization runs without its nodes in C++, which is slower for small tensors: {tmp_path}/c++ failed: "
        "no memory left"
    ]
    extension.node.cache_clear()
    assert extension.node() is None
    assert len(caplog.records) == 2
    assert runs.read_text().split() == ["run"]


def test_failure_is_forgotten_after_a_day(tmp_path: Path) -> None:
    target = tmp_path / "node.so"
    compilation.compile_once(target, ["false"])
    assert compilation.failure(target) is not None

    yesterday = time.time() - 90000
    os.utime(target.with_suffix(compilation.FAILED), (yesterday, yesterday))

    assert compilation.failure(target) is None


@pytest.mark.parametrize("missing", ["_compiler", "_missing_header"])
def test_without_compiler_or_headers_python_does_the_work(
    cache: Path, monkeypatch: pytest.MonkeyPatch, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(extension, missing, lambda: None if missing == "_compiler" else Path("Python.h"))
    caplog.set_level(logging.INFO)

    normalized()

    assert extension.node() is None
    assert list(cache.iterdir()) == []
    assert caplog.records == []
    with pytest.raises(RuntimeError, match=r"install g\+\+"):
        extension.compile_now()


def test_nodes_of_another_torch_are_not_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = extension._file_name("c++")

    monkeypatch.setattr(torch.version, "git_version", "another")

    assert extension._file_name("c++") != name
    assert extension._file_name("g++") != extension._file_name("c++")


def test_file_that_does_not_load_is_passed_over(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, "exit 1"))
    (cache / extension._file_name(os.environ["CXX"])).write_bytes(b"\x7fELF but cut off")

    assert normalized().shape == (1, 8, 5, 5)
    assert "normalization runs without its nodes in C++" in caplog.text


def test_cache_that_can_not_be_written_is_said_once(
    monkeypatch: pytest.MonkeyPatch, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> Path:
        raise OSError("neither the cache folder nor the temporary folder can hold compiled kernels")

    monkeypatch.setattr(extension, "cache_folder", refuse)

    normalized()
    normalized()

    assert len(caplog.records) == 1


def test_processes_that_compile_at_once_compile_once(tmp_path: Path) -> None:
    runs, target = tmp_path / "runs", tmp_path / "node.so"
    slow = compiler(tmp_path, f'echo run >> {runs}; sleep 1; echo whole > "$output"')
    script = [sys.executable, "-I", compilation.__file__, str(target), slow]

    processes = [subprocess.Popen(script) for _ in range(3)]

    assert [process.wait() for process in processes] == [0, 0, 0]
    assert runs.read_text().split() == ["run"]
    assert target.read_text() == "whole\n"
    assert {path.name for path in tmp_path.iterdir()} == {"c++", "runs", "node.so", "node.lock"}


def test_process_that_waits_finds_what_another_compiled(tmp_path: Path) -> None:
    runs, target = tmp_path / "runs", tmp_path / "node.so"
    slow = compiler(tmp_path, f'echo run >> {runs}; sleep 1; echo whole > "$output"')
    other = subprocess.Popen([sys.executable, "-I", compilation.__file__, str(target), slow])
    while not runs.exists():
        time.sleep(0.01)

    compilation.compile_once(target, [slow], wait=True)

    assert target.read_text() == "whole\n"
    assert runs.read_text().split() == ["run"]
    assert other.wait() == 0


def test_node_is_switched_off_by_its_variable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCNORM_NODE", "0")

    assert extension.node() is None
    assert list(cache.iterdir()) == []
