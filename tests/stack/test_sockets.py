"""Nothing of the embedded service listens where another machine could reach it, also while workers train."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from contextlib import suppress

import psutil
import pytest

from syncnorm.service.client.client import Client
from syncnorm.service.local import ray_head
from tests.stack.conftest import Serving, eventually

pytestmark = pytest.mark.stack


def listeners(serving: Serving) -> dict[str, str]:
    """Command line by address of every socket that something of the service listens on."""
    found = {}
    for process in serving.processes():
        try:
            line = " ".join(process.cmdline())
            for socket in process.net_connections("inet"):
                if socket.status == psutil.CONN_LISTEN or (socket.type.name == "SOCK_DGRAM" and not socket.raddr):
                    found[f"{socket.laddr.ip}:{socket.laddr.port}"] = line
        except psutil.Error:  # ended meanwhile
            continue
    return found


def commands(processes: Iterable[psutil.Process]) -> Iterator[str]:
    for process in processes:
        with suppress(psutil.Error):  # ended meanwhile
            yield " ".join(process.cmdline())


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address.rpartition(":")[0])
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def beyond_loopback(seen: dict[str, str]) -> set[str]:
    """Command lines of what can be reached from elsewhere."""
    return {line.split()[0] for address, line in seen.items() if not is_loopback(address)}


def test_nothing_of_the_service_listens_beyond_loopback(client: Client, serving: Serving) -> None:
    assert client.is_ready()

    seen = listeners(serving)

    assert all(
        any(name in line for line in seen.values()) for name in ("syncnorm.service.cli.main", "gcs_server", "raylet")
    )
    assert beyond_loopback(seen) == set()
    assert not any("ray.util.client.server" in line for line in seen.values())


def test_of_ray_and_mlflow_only_what_is_used_runs(client: Client, serving: Serving) -> None:
    eventually(lambda: client.cluster()["nodes"], 60)  # Ray is up

    lines = list(commands(psutil.Process(serving.process.pid).children(recursive=True)))

    dashboard = {line.split()[0] for line in lines if line.startswith("ray-dashboard-")}
    assert dashboard == {f"ray-dashboard-{module}-0" for module in ray_head.USED}
    ours = ("supervisor", "forkserver")  # a parent's command names what it imports
    servers = [line for line in lines if "mlflow" in line and not any(each in line for each in ours)]
    assert len(servers) == 1, servers


@pytest.mark.chaos
def test_nothing_listens_beyond_loopback_while_workers_train(client: Client, serving: Serving) -> None:
    """Left to Ray Train and torch, the store on rank 0 would."""
    job = client.submit(
        {
            "name": "sockets",
            "model": {"name": "mlp"},
            "data": {"name": "digits", "batch_size": 64},
            "train": {"epochs": 1},
            "resources": {"workers": 2},
            "export": {"formats": []},
        }
    )
    seen: dict[str, str] = {}

    def look() -> bool:
        seen.update(listeners(serving))
        return client.job(job["id"])["state"] in ("succeeded", "failed")

    eventually(look, 200)

    assert client.job(job["id"])["state"] == "succeeded"
    assert any(line.startswith("ray::RayTrainWorker") for line in seen.values())
    assert beyond_loopback(seen) == set()
