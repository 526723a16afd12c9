"""The store in which workers find each other is open to their network alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

import psutil
import pytest
import torch
import torch.distributed as dist

from syncnorm.trainer.ranks import rendezvous as meeting_point

TIMEOUT = timedelta(seconds=30)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Joining sets variables, and makes a process group."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "TORCH_NCCL_ASYNC_ERROR_HANDLING"):
        monkeypatch.setenv(name, "")
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def join_at(address: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The addresses at which the store of a world of one listens, where Ray reaches the host at `address`."""
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: address)
    reached, port = meeting_point._listen()
    assert reached == address

    meeting_point._join("127.0.0.1", port, 0, 1, "gloo", TIMEOUT)

    total = torch.ones(3)
    dist.all_reduce(total)
    assert total.tolist() == [1.0, 1.0, 1.0]
    assert os.environ["MASTER_PORT"] == str(port)
    found = psutil.Process().net_connections("inet")
    return {one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN and one.laddr.port == port}


def test_store_listens_where_ray_reaches_the_host_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert join_at("127.0.0.1", monkeypatch) == {"127.0.0.1"}


def test_store_of_a_host_behind_nat_listens_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """192.0.2.1 is nobody's (RFC 5737): to listen there alone would reach nobody."""
    assert join_at("192.0.2.1", monkeypatch) == {"0.0.0.0"}


class Frozen:
    """Workers that answer nothing."""

    def execute_async(self, *_: object, **__: object) -> None:
        pytest.fail("Ray would wait for the answer of a worker that is frozen")


def test_workers_are_asked_for_nothing_before_they_are_ended() -> None:
    meeting_point.Rendezvous(backend="gloo").backend_cls().on_shutdown(Frozen(), None)
