"""Workers that don't meet: every case ends in seconds with the layer's and the rank's name."""

from __future__ import annotations

import os
import pickle
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from syncnorm.norm import SyncBatchNorm
from syncnorm.norm.distributed.call_headers import Call, ExchangeError, WorkerGoneError
from syncnorm.norm.distributed.gloo import check_calls
from syncnorm.norm.distributed.timing import EXCHANGE, ExchangeTimer, timing
from syncnorm.norm.distributed.transport import transport_of
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import way

WITH_TRACE = [("fused", "shared memory"), ("reference", "shared memory"), ("reference", "gloo")]
"""The node in C++ where it is compiled, and exchanges from Python."""
TRANSPORTS = ["shared memory", "gloo"]


class Net(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.stem = SyncBatchNorm(channels)
        self.body = nn.ModuleList(SyncBatchNorm(channels) for _ in range(2))
        self.skipped: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index, layer in enumerate(self.body):
            if index not in self.skipped:
                x = layer(x)
        return x


def _skips_a_layer(rank: int, world_size: int, transport: str) -> None:
    net = Net()
    with way("fused", transport):
        net(torch.randn(4, 4)).sum().backward()
        net.skipped = {0} if rank == 1 else set()
        net(torch.randn(4, 4)).sum().backward()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_layer_skipped_on_one_worker_is_named_with_the_rank(pool: Pool, transport: str) -> None:
    pool.run(_name, 3, {})  # the workers are up
    started = time.monotonic()

    outcomes = pool.outcomes(_skips_a_layer, 3, transport)

    for ok, error, _ in outcomes:
        assert not ok
        assert isinstance(error, ExchangeError)
        assert "rank 0 is in body.0 (forward, call 2" in str(error)
        assert "rank 1 is in body.1 (forward, call 2" in str(error)
        assert "rank 2 is in body.0 (forward, call 2" in str(error)
    assert time.monotonic() - started < 10


def _skips_the_last_layer(rank: int, world_size: int, transport: str) -> None:
    net = Net()
    net.skipped = {1} if rank == 0 else set()
    with way("fused", transport):
        net(torch.randn(4, 4, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_one_worker_backward_while_the_other_is_forward(pool: Pool, transport: str) -> None:
    for ok, error, _ in pool.outcomes(_skips_the_last_layer, 2, transport):
        assert not ok
        assert "rank 0 is in body.0 (backward, call 1" in str(error)
        assert "rank 1 is in body.1 (forward, call 1" in str(error)


def _other_channels(rank: int, world_size: int, transport: str, channels: tuple[int, ...]) -> None:
    with way("fused", transport):
        Net(channels[rank])(torch.randn(4, channels[rank]))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_other_channels_on_one_worker(pool: Pool, transport: str) -> None:
    for ok, error, _ in pool.outcomes(_other_channels, 2, transport, (4, 2000)):
        assert not ok
        assert isinstance(error, ExchangeError)
        assert "rank 0 is in stem (forward, call 1, 9 numbers)" in str(error)
        assert "rank 1 is in stem (forward, call 1, 4001 numbers)" in str(error)


def _leaves(rank: int, world_size: int) -> None:
    layer = SyncBatchNorm(3)
    layer(torch.randn(4, 3))
    if rank == 0:
        layer(torch.randn(4, 3))


def test_worker_that_left_the_group_is_named(pool: Pool) -> None:
    (ok, error, _), _ = pool.outcomes(_leaves, 2)

    assert not ok
    assert "rank 0 waits for the statistics of SyncBatchNorm (forward, call 2, 7 numbers)" in str(error)
    assert "rank 1 has left the process group" in str(error)
    assert isinstance(error, WorkerGoneError)


def _dies(rank: int, world_size: int) -> None:
    layer = SyncBatchNorm(3)
    layer(torch.randn(4, 3))
    if rank == 1:
        os._exit(3)
    try:
        layer(torch.randn(4, 3))
    except WorkerGoneError as error:
        assert "rank 1 has ended" in str(error)
        return
    raise AssertionError("rank 0 should not have got statistics")


def test_death_of_a_worker_ends_the_wait() -> None:
    own = Pool(timeout_s=30)
    try:
        with pytest.raises(RuntimeError, match="rank 1 of 2 died"):
            own.run(_dies, 2)
    finally:
        own.stop()


def _dies_uncollected(rank: int, world_size: int) -> float:
    layer = SyncBatchNorm(3)
    layer(torch.randn(4, 3))
    if rank == 1:
        os._exit(3)
    began = time.monotonic()
    with pytest.raises(WorkerGoneError, match="rank 1 has ended"):
        layer(torch.randn(4, 3))
    return time.monotonic() - began


def test_dead_worker_that_nobody_collected_ends_the_wait(tmp_path: Path) -> None:
    own = Pool()
    own._start(2, __name__)
    try:
        for rank, pipe in enumerate(own._pipes):
            pipe.send((_dies_uncollected, rank, 2, str(tmp_path / "store"), ()))
        assert own._pipes[0].poll(20), "rank 0 waits for a worker that is dead"
        ok, took_s, trace = pickle.loads(own._pipes[0].recv_bytes())

        # This process started it and has not asked for its exit code: it is a zombie.
        assert Path(f"/proc/{own._processes[1].pid}").exists()
        assert ok, trace
        assert took_s < 10
    finally:
        own.stop()


def test_process_is_told_from_a_later_one_with_its_id() -> None:
    from syncnorm.norm.distributed.shared_memory import _start_of

    with subprocess.Popen(["sleep", "60"]) as other:
        assert _start_of(other.pid)
        assert _start_of(other.pid) != _start_of(os.getpid())
        other.kill()
        while Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        assert _start_of(other.pid) == ""
    assert _start_of(other.pid) == ""


def _is_late(rank: int, world_size: int, transport: str) -> str:
    os.environ["SYNCNORM_COLLECTIVE_TIMEOUT_S"] = "1"
    layer = SyncBatchNorm(3)
    store = dist.distributed_c10d._get_default_store()
    try:
        with way("fused", transport):
            layer(torch.randn(4, 3))
            if rank == 1:
                store.wait(["rank 0 has given up"])
                return ""
            try:
                layer(torch.randn(4, 3))
            except ExchangeError as error:
                return str(error)
            finally:
                store.set("rank 0 has given up", "1")
    finally:
        del os.environ["SYNCNORM_COLLECTIVE_TIMEOUT_S"]
    raise AssertionError("rank 0 should not have got statistics")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_wait_ends_at_the_timeout_with_the_layer(pool: Pool, transport: str) -> None:
    sentence, _ = pool.run(_is_late, 2, transport)

    assert "SyncBatchNorm (forward, call 2, 7 numbers)" in sentence
    assert "within 1 s" in sentence


def _wrapped_on_one(rank: int, world_size: int) -> None:
    net = Net()
    holder = nn.ModuleDict({"teacher": net}) if rank == 0 else None
    net(torch.randn(4, 4))
    del holder


def test_model_wrapped_on_one_worker_only_is_the_same_model(pool: Pool) -> None:
    pool.run(_wrapped_on_one, 2)


def _many_channels(rank: int, world_size: int, transport: str) -> Tensor:
    torch.manual_seed(rank)
    layer = SyncBatchNorm(20_000)
    with way("fused", transport):
        layer(torch.randn(2, 20_000))
    return layer.running_mean.clone()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_more_channels_than_one_frame_holds(pool: Pool, transport: str) -> None:
    batches = []
    for rank in range(2):
        torch.manual_seed(rank)
        SyncBatchNorm(20_000)
        batches.append(torch.randn(2, 20_000))

    results = pool.run(_many_channels, 2, transport)

    for mean in results:
        torch.testing.assert_close(mean, 0.1 * torch.cat(batches).mean(0), rtol=1e-5, atol=1e-7)


def _name(rank: int, world_size: int, switch: dict[int, str]) -> str:
    os.environ["SYNCNORM_SHARED_MEMORY"] = switch.get(rank, "1")
    try:
        return transport_of(dist.distributed_c10d._get_default_group()).name
    finally:
        del os.environ["SYNCNORM_SHARED_MEMORY"]


@pytest.mark.parametrize(("switch", "expected"), [({}, "shared memory"), ({1: "0"}, "gloo"), ({0: "0"}, "gloo")])
def test_one_worker_without_shared_memory_takes_all_to_gloo(pool: Pool, switch: dict[int, str], expected: str) -> None:
    assert pool.run(_name, 3, switch) == [expected] * 3


def _shared_files(rank: int, world_size: int) -> list[str]:
    """The shared files that this process has mapped; the kernel marks one that nobody can open any more."""
    transport_of(dist.distributed_c10d._get_default_group())
    dist.barrier()
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.partition("/dev/shm/syncnorm-")[2] for line in lines if "/dev/shm/syncnorm-" in line]


def test_shared_memory_leaves_no_file_behind(pool: Pool) -> None:
    for files in pool.run(_shared_files, 2):
        assert files
        assert all(file.endswith("(deleted)") for file in files), files


@pytest.mark.parametrize(
    ("mine", "theirs", "agree"),
    [
        (Call(2, 1, 9, "a.bn"), Call(2, 1, 9, "a.bn"), True),
        (Call(2, 1, 9, "a.bn"), Call(2, 1, 9, "net.a.bn"), True),
        (Call(2, 1, 9, "a.bn"), Call(2, 1, 9, "ba.bn"), False),
        (Call(2, 1, 9, "a.bn"), Call(4, 1, 9, "a.bn"), False),
        (Call(2, 1, 9, "a.bn"), Call(2, 2, 9, "a.bn"), False),
        (Call(2, 1, 9, "a.bn"), Call(2, 1, 17, "a.bn"), False),
    ],
)
def test_calls_agree_on_everything_but_an_outer_name(mine: Call, theirs: Call, agree: bool) -> None:
    assert mine.agrees(theirs) is agree
    assert theirs.agrees(mine) is agree


def _in_subgroups(rank: int, world_size: int, spec: Any) -> tuple[Tensor, list[int] | None]:
    from syncnorm.norm.distributed.groups import create_group

    group = create_group(spec)
    layer = SyncBatchNorm(2, process_group=group)
    layer(torch.full((2, 2), float(rank)) + torch.eye(2))
    return layer.running_mean.clone(), dist.get_process_group_ranks(group) if group else None


@pytest.mark.parametrize(
    ("spec", "members"),
    [("world", [None] * 4), ("node", [None] * 4), (4, [None] * 4), (2, [[0, 1], [0, 1], [2, 3], [2, 3]])],
)
def test_groups_share_statistics_among_their_members_only(pool: Pool, spec: Any, members: list[Any]) -> None:
    results = pool.run(_in_subgroups, 4, spec)

    for rank, (mean, found) in enumerate(results):
        together = members[rank] or [0, 1, 2, 3]
        assert found == members[rank]
        assert torch.allclose(mean, torch.tensor(0.1 * (sum(together) / len(together) + 0.5)))


def test_group_that_does_not_divide_the_workers_is_refused() -> None:
    from syncnorm.norm.distributed.groups import blocks

    with pytest.raises(ValueError, match=r"3 does not divide 4. Use one of \[1, 2, 4\]"):
        blocks(4, 3)


def test_check_calls_names_every_rank_of_the_group() -> None:
    headers = [bytes(32) + b"a.bn".ljust(96, b"\0"), bytes(32) + b"b.bn".ljust(96, b"\0")]

    with pytest.raises(ExchangeError, match=r"rank 4 is in a.bn \(forward.*; rank 7 is in b.bn \(forward"):
        check_calls(headers, [4, 7])


def _recorded(_rank: int, _world_size: int, backend: str, transport: str) -> tuple[int, float, float]:
    """Exchanges in a trace of one step, the seconds they take there, and by the timer."""
    net, timer = Net(), ExchangeTimer()
    with way(backend, transport):
        net(torch.randn(4, 4, requires_grad=True)).sum().backward()
        with profile(activities=[ProfilerActivity.CPU]) as recorded, timing(timer):
            net(torch.randn(4, 4, requires_grad=True)).sum().backward()
    found = [event for event in recorded.events() if event.name == EXCHANGE]
    return len(found), sum(event.time_range.elapsed_us() for event in found) / 1e6, timer.read_s()


@pytest.mark.parametrize(("backend", "transport"), WITH_TRACE)
def test_exchanges_are_in_a_trace_and_take_as_long_as_the_timer_says(pool: Pool, backend: str, transport: str) -> None:
    for count, in_trace_s, timed_s in pool.run(_recorded, 2, backend, transport):
        assert count == 6  # three layers, forward and backward
        # The range lies around the timer.
        assert timed_s <= in_trace_s
