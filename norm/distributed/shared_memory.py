"""Exchange of rows through memory shared by all workers on one host: microseconds where gloo takes hundreds."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import secrets
import tempfile
import weakref
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.norm.distributed.call_headers import (
    HEADER_BYTES,
    Call,
    Direction,
    ExchangeError,
    Header,
    Ledger,
    WorkerGoneError,
)
from syncnorm.norm.distributed.gloo import check_calls
from syncnorm.norm.distributed.timeouts import timeout_s
from syncnorm.norm.native.build import library
from syncnorm.norm.torch_compat import store_of

_CAPACITY = 16640  # numbers a slot holds: up to 8319 channels in one exchange, 260 KB a worker
_HEADER = HEADER_BYTES // 8
_AREA = 64 + 2 * 8 * (_HEADER + _CAPACITY)  # bytes a worker; see kernels.c
_SLICE_S = 0.5  # between looks at whether the others still live
_LEFT = 2**64 - 1  # the round of a worker that has left


class _Meeting(ctypes.Structure):
    """`meeting` of kernels.c."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("rank", ctypes.c_long),
        ("world_size", ctypes.c_long),
        ("capacity", ctypes.c_long),
        ("round", ctypes.c_uint64),
        ("slice_s", ctypes.c_double),
    )


class ExchangeOfLayer(NamedTuple):
    """What the node in C++ needs to exchange the rows of one layer by itself.

    It outlives the transport as long as a graph may use it; `meeting.base` is 0 from then on.
    """

    meeting_address: int
    forward_address: int
    backward_address: int
    forward: Header
    backward: Header
    meeting: _Meeting
    memory: mmap.mmap
    transport: weakref.ref[SharedMemoryTransport]


def settle(exchange: ExchangeOfLayer, direction: Direction, status: int) -> None:
    """Where a round of the node in C++ did not end well; see `SharedMemoryTransport.settle`."""
    transport = exchange.transport()
    assert transport is not None  # its group is in use
    transport.settle(exchange.forward if direction == "forward" else exchange.backward, status)


class SharedMemoryTransport:
    """Every worker writes its row into its slot, announces the round, and reads all slots when all announced it."""

    name = "shared memory"

    def __init__(self, group: dist.ProcessGroup, memory: mmap.mmap, workers: list[dict[str, Any]]) -> None:
        library_ = library()
        assert library_ is not None
        self._lib = library_
        self._memory = memory
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._ranks = dist.get_process_group_ranks(group)
        self._rank = dist.get_rank(group)
        self.world_size = len(self._ranks)
        self._timeout_s = timeout_s(group)
        self._slice_s = min(_SLICE_S, self._timeout_s)
        self._meeting = _Meeting(self._base, self._rank, self.world_size, _CAPACITY, 0, self._slice_s)
        self._exchanges: weakref.WeakKeyDictionary[nn.Module, ExchangeOfLayer] = weakref.WeakKeyDictionary()
        self._ledger = Ledger()
        # Process ids mean something only within one namespace.
        same = len({worker["pids"] for worker in workers}) == 1
        self._processes = [(worker["pid"], worker["started"]) for worker in workers] if same else []
        self._views: dict[tuple[int, int], Tensor] = {}
        self._words = torch.frombuffer(memory, dtype=torch.float64)
        weakref.finalize(self, _leave, self._lib, memory, self._meeting)

    @classmethod
    def open(cls, group: dist.ProcessGroup) -> SharedMemoryTransport | None:
        """The transport, or None on all workers if any of them can't take part. Every worker must call it."""
        able = library() is not None and os.environ.get("SYNCNORM_SHARED_MEMORY", "1") != "0"
        agree = _Agreement(group)
        path, memory = "", None
        if able and dist.get_rank(group) == 0:
            path, memory = _create(dist.get_world_size(group))
        offers = agree("offer", {"path": path, "token": memory[-16:].hex() if memory else ""})
        if able and memory is None:
            memory = _attach(offers[0]["path"], bytes.fromhex(offers[0]["token"]))
        me = {"pid": os.getpid(), "started": _start_of(os.getpid()), "pids": _pid_namespace()}
        workers = agree("ready", {"ok": memory is not None, **me})
        if path:
            Path(path).unlink()  # all hold it open now; nothing is left behind however they end
        if memory is None or not all(worker["ok"] for worker in workers):
            return None
        return cls(group, memory, workers)

    def gather(self, row: Tensor, layer: nn.Module | None, direction: Direction) -> Tensor:
        if row.numel() > _CAPACITY:
            pieces = [self.gather(piece, layer, direction).clone() for piece in torch.split(row, _CAPACITY)]
            return torch.cat(pieces, 1)
        header = self._ledger.header(layer, direction, row.numel()).count()
        status = self._lib.exchange_row(ctypes.addressof(self._meeting), header.address, row.data_ptr(), row.numel())
        if status != 0:
            self.settle(header, status)
        return self._rows(row.numel())

    def exchange_of(self, layer: nn.Module, num_channels: int) -> ExchangeOfLayer | None:
        """For the node in C++, which counts the calls itself; None where a row goes in pieces."""
        lengths = (2 * num_channels + 1, 2 * num_channels)
        found = self._exchanges.get(layer)
        if found is None or found.forward.length != lengths[0]:
            if lengths[0] > _CAPACITY:
                return None
            forward = self._ledger.header(layer, "forward", lengths[0])
            backward = self._ledger.header(layer, "backward", lengths[1])
            addresses = (ctypes.addressof(self._meeting), forward.address, backward.address)
            found = ExchangeOfLayer(*addresses, forward, backward, self._meeting, self._memory, weakref.ref(self))
            self._exchanges[layer] = found
        return found

    def settle(self, header: Header, status: int) -> None:
        """Go on waiting for a round that did not end well in C: until all are there (-1), or to say why they can't."""
        deadline = None
        while status == -1:
            deadline = deadline or monotonic() + self._timeout_s - self._slice_s
            late = [w for w in range(self.world_size) if self._published(w) < self._meeting.round]
            for worker in late:
                if self._processes and _start_of(self._processes[worker][0]) != self._processes[worker][1]:
                    raise WorkerGoneError(self._absent(header, [worker], "has ended"))
            if monotonic() > deadline:
                raise ExchangeError(self._absent(header, late, f"did not arrive within {self._timeout_s:g} s"))
            status = self._lib.await_all(ctypes.addressof(self._meeting))
        if status > 0:
            self._explain(header)

    def _explain(self, header: Header) -> None:
        gone = [
            w for w in range(self.world_size) if self._published(w) == _LEFT and self._call(w) != self._call(self._rank)
        ]
        if gone:
            raise WorkerGoneError(self._absent(header, gone, "has left the process group"))
        check_calls([self._slot_header(w) for w in range(self.world_size)], self._ranks)

    def _absent(self, header: Header, workers: list[int], what: str) -> str:
        names = " and ".join(f"rank {self._ranks[worker]}" for worker in workers)
        return (
            f"rank {self._ranks[self._rank]} waits for the statistics of {header.call()}, "
            f"but {names} {what}. Look at that worker's log: it failed, or skipped this layer."
        )

    def _published(self, worker: int) -> int:
        return int(self._lib.published(self._base, worker, _CAPACITY))

    def _slot_header(self, worker: int) -> bytes:
        start = worker * _AREA + 64 + (self._meeting.round & 1) * 8 * (_HEADER + _CAPACITY)
        return self._memory[start : start + HEADER_BYTES]

    def _call(self, worker: int) -> Call:
        return Call.parse(self._slot_header(worker))

    def _rows(self, length: int) -> Tensor:
        parity = self._meeting.round & 1
        view = self._views.get((length, parity))
        if view is None:
            start = 8 + parity * (_HEADER + _CAPACITY) + _HEADER
            view = self._words.as_strided((self.world_size, length), (_AREA // 8, 1), start)
            self._views[length, parity] = view
        return view


def _leave(lib: ctypes.CDLL, _memory: mmap.mmap, meeting: _Meeting) -> None:
    """Tells who waits that nobody will come; the memory is an argument to be mapped still."""
    lib.publish(meeting.base, meeting.rank, _CAPACITY, _LEFT)
    meeting.base = None


class _Agreement:
    """Everybody's word to everybody, through the group's store: no collective that could meet another one."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._store = store_of(group)
        self._rank, self._world_size = dist.get_rank(group), dist.get_world_size(group)
        self._timeout_s = timeout_s(group)
        # A store may outlive its process group; then this is another setup, and the old words don't count.
        self._number = self._store.add(f"syncnorm/{self._rank}/setups", 1)

    def __call__(self, topic: str, mine: dict[str, Any]) -> list[dict[str, Any]]:
        keys = [f"syncnorm/{self._number}/{topic}/{rank}" for rank in range(self._world_size)]
        self._store.set(keys[self._rank], json.dumps(mine))
        for rank, key in enumerate(keys):
            try:
                self._store.wait([key], timedelta(seconds=self._timeout_s))
            except RuntimeError as error:
                raise ExchangeError(
                    f"worker {rank} of {self._world_size} did not reach its first synchronized layer within "
                    f"{self._timeout_s:g} s. Look at its log: it failed, or skipped the layer."
                ) from error
        return [json.loads(self._store.get(key)) for key in keys]


def _create(world_size: int) -> tuple[str, mmap.mmap | None]:
    size = world_size * _AREA + 16
    try:
        handle, path = tempfile.mkstemp(prefix="syncnorm-", dir="/dev/shm")
    except OSError:
        return "", None
    try:
        os.posix_fallocate(handle, 0, size)  # a full /dev/shm is found here and not by a bus error later
        memory = mmap.mmap(handle, size)
        memory[-16:] = secrets.token_bytes(16)
        return path, memory
    except OSError:
        Path(path).unlink()
        return "", None
    finally:
        os.close(handle)


def _attach(path: str, token: bytes) -> mmap.mmap | None:
    """The file of rank 0, if this worker sees the same: it may be on another host or in another container."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        memory = mmap.mmap(handle, os.fstat(handle).st_size)
    finally:
        os.close(handle)
    return memory if secrets.compare_digest(memory[-16:], token) else None


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When process `pid` began, in ticks since boot; "" once it has ended, also while nobody has collected it.

    The number tells a process from a later one that got its id.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
