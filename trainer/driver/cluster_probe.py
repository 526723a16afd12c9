"""Looks at a cluster from inside; writes report.json last.

`python -m syncnorm.trainer.driver.cluster_probe FOLDER API_URL MLFLOW_URL`

One process on every host that takes drivers writes to the storage, calls the API and MLflow, and takes part in one
all-reduce of torch.distributed over all of them, just as the ranks of a job would.
"""

from __future__ import annotations

import socket
import sys
import time
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from syncnorm.trainer.contract.cluster_report import REPORT_FILE, TOKEN_FILE, ClusterReport, HostReport
from syncnorm.trainer.storage.storage import storage_at

DRIVER_RESOURCE = "syncnorm_driver"
PATIENCE_S = 60.0
REQUEST_TIMEOUT_S = 5.0


class HostProbe:
    """The process on one host."""

    def probe(self, folder: str, api_url: str, mlflow_url: str, gpus: int) -> HostReport:
        import torch

        api_error, ahead_s = _call(f"{api_url}/healthz")
        return HostReport(
            host=socket.gethostname(),
            gpus=gpus,
            cuda=torch.version.cuda,
            storage_error=_write(folder),
            api_error=api_error,
            mlflow_error=_call(f"{mlflow_url}/health")[0],
            clock_ahead_s=ahead_s,
        )

    def offer_rendezvous(self) -> str:
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def add_up(self, rendezvous: str, rank: int, world_size: int) -> float:
        """All-reduce of `rank` over all hosts."""
        import torch
        import torch.distributed as dist

        timeout = timedelta(seconds=PATIENCE_S / 2)
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size, timeout=timeout)
        try:
            value = torch.tensor([float(rank)])
            dist.all_reduce(value)
            return value.item()
        finally:
            dist.destroy_process_group()


def main(folder: str, api_url: str, mlflow_url: str) -> None:
    ray.init(address="auto", log_to_driver=False)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(DRIVER_RESOURCE)]
    if len(nodes) == 1:
        nodes *= 2  # two processes of one host also need to find each other
    hosts = [_start(node["NodeID"]) for node in nodes]
    probes = [
        host.probe.remote(folder, api_url, mlflow_url, int(node["Resources"].get("GPU", 0)))
        for host, node in zip(hosts, nodes, strict=True)
    ]
    reports, missing = [], {}
    for node, pending in zip(nodes, probes, strict=True):
        try:
            reports.append(ray.get(pending, timeout=PATIENCE_S))
        except Exception as error:
            missing[node["NodeManagerHostname"]] = _first_line(error)
    collective_error = _collective(hosts) if not missing else "not tried: a host did not answer"
    unique = list({report.host: report for report in reports}.values())
    report = ClusterReport(hosts=unique, missing=missing, collective_error=collective_error)
    storage_at(folder).write(REPORT_FILE, report.model_dump_json(indent=1).encode())


def _start(node_id: str) -> Any:
    # It asks for no CPU, so that a full cluster can be probed as well.
    affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(HostProbe).options(num_cpus=0, scheduling_strategy=affinity).remote()


def _collective(hosts: list[Any]) -> str | None:
    expected = sum(range(len(hosts)))
    try:
        rendezvous = ray.get(hosts[0].offer_rendezvous.remote(), timeout=PATIENCE_S)
        sums = ray.get([host.add_up.remote(rendezvous, rank, len(hosts)) for rank, host in enumerate(hosts)])
    except Exception as error:
        return _first_line(error)
    return None if set(sums) == {expected} else f"an all-reduce gave {sums}, expected {expected} on every host"


def _write(folder: str) -> str | None:
    name = f"from-{socket.gethostname()}"
    try:
        storage = storage_at(folder)
        if not storage.has(TOKEN_FILE):
            return f"{folder} does not exist: this is not the storage of the API"
        storage.write(name, b"written")
        storage.remove(name)
    except OSError as error:
        return str(error)
    return None


def _call(url: str) -> tuple[str | None, float | None]:
    """Why the URL can't be read, and how far this host's clock is ahead of the answer's date."""
    try:
        answer = httpx.get(url, timeout=REQUEST_TIMEOUT_S, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        return f"{url}: {error or type(error).__name__}", None
    date = answer.headers.get("date")
    return None, time.time() - parsedate_to_datetime(date).timestamp() if date else None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[-1]}"


if __name__ == "__main__":
    main(*sys.argv[1:4])
