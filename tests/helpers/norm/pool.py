"""Gloo workers, started once, that run functions of the tests as the ranks of a fresh process group."""

from __future__ import annotations

import importlib
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class RankError(RuntimeError):
    """The traceback of the worker that failed, as the cause of the exception raised in the test."""


class Pool:
    """Runs `fn(rank, world_size, *args)` on ranks 0..k-1, which are the default process group meanwhile.

    A worker's exception is raised here again, the lowest rank's first. A rank that doesn't answer within `timeout_s`,
    or dies, fails the call with a sentence, and the workers start afresh for the next one. As many start as are needed.
    """

    def __init__(self, timeout_s: float = 120) -> None:
        self._timeout_s = timeout_s
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, fn: Callable[..., Any], world_size: int, *args: object) -> list[Any]:
        """The results of every rank, in order."""
        results = self.outcomes(fn, world_size, *args)
        for rank, (ok, value, trace) in enumerate(results):
            if not ok:
                raise value from RankError(f"rank {rank}:\n{trace}")
        return [value for _, value, _ in results]

    def outcomes(self, fn: Callable[..., Any], world_size: int, *args: object) -> list[tuple[bool, Any, str]]:
        """(succeeded, result or exception, traceback) of every rank, for tests in which ranks fail."""
        self._start(world_size, fn.__module__)
        with tempfile.TemporaryDirectory() as folder:
            for rank in range(world_size):
                self._pipes[rank].send((fn, rank, world_size, str(Path(folder) / "store"), args))
            return self._collect(fn.__name__, world_size)

    def _collect(self, name: str, world_size: int) -> list[tuple[bool, Any, str]]:
        results: dict[int, tuple[bool, Any, str]] = {}
        deadline = monotonic() + self._timeout_s
        while len(results) < world_size:
            waiting = [self._pipes[rank] for rank in range(world_size) if rank not in results]
            ready = wait(waiting, max(0.0, deadline - monotonic()))
            if not ready:
                late = [rank for rank in range(world_size) if rank not in results]
                self.stop()
                raise TimeoutError(f"{name}: ranks {late} of {world_size} gave no answer within {self._timeout_s:g} s")
            for pipe in ready:
                rank = self._pipes.index(pipe)  # type: ignore[arg-type]
                try:
                    results[rank] = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
                except (EOFError, ConnectionError) as error:
                    self.stop()
                    raise RuntimeError(f"{name}: rank {rank} of {world_size} died") from error
        return [results[rank] for rank in range(world_size)]

    def _start(self, world_size: int, module: str) -> None:
        """Start the workers that are missing. Their imports, up to those of `module`, are not the test's time."""
        context = mp.get_context("spawn")
        there = len(self._processes)
        for _ in range(there, world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, module), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        for pipe in self._pipes[there:]:
            if not pipe.poll(120):
                self.stop()
                raise TimeoutError("the workers of the pool did not start within 120 s")
            pipe.recv()

    def stop(self) -> None:
        """End the workers. The next run starts new ones."""
        for pipe in self._pipes:
            pipe.close()
        deadline = monotonic() + 3
        for process in self._processes:
            process.join(max(0.0, deadline - monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._processes, self._pipes = [], []


def _serve(pipe: Connection, module: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    # The defaults of its functions are the process group of the moment in which it is imported: none yet.
    importlib.import_module("torch.distributed.nn.functional")
    importlib.import_module(module)
    torch.set_num_threads(1)
    try:
        pipe.send("ready")
        while True:
            fn, rank, world_size, store, args = pipe.recv()
            _meet(rank, world_size, store)
            pipe.send_bytes(_outcome(fn, rank, world_size, args))
    except (EOFError, BrokenPipeError):
        return  # the test session has ended, or given this worker up


def _meet(rank: int, world_size: int, store: str) -> None:
    """Form the process group. A worker that can't ends: torch would number its next group unlike the others do."""
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=30)
    )
    # A rank whose function fails at once would otherwise leave while another one still connects to it.
    dist.barrier()


def _outcome(fn: Callable[..., Any], rank: int, world_size: int, args: tuple[object, ...]) -> bytes:
    try:
        result = (True, fn(rank, world_size, *args), "")
    except Exception as error:
        result = (False, error, traceback.format_exc())
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    try:
        return pickle.dumps(result)
    except Exception:
        return pickle.dumps((False, RuntimeError(repr(result[1])), result[2]))
