"""The rendezvous of an attempt's workers: torch's store on rank 0, at the address of its host only.

Ray Train has torch open the store, which then listens on all interfaces and asks for no token (ray 2.60). But a store
also accepts a socket that is already listening, and that one can be ours.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from torch._C._distributed_c10d import TCPStore

_BACKLOG = 4096


class Rendezvous(TorchConfig):
    """Ray's configuration of the process group, with a store that listens in the cluster's own network only."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        address, port = worker_group.execute_single(0, _listen)
        worker_group.execute(_set_torch_distributed_env_vars)
        timeout = timedelta(seconds=backend_config.timeout_s)
        joining = [
            worker_group.execute_single_async(
                rank, _join, address, port, rank, len(worker_group), backend_config.backend, timeout
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Nothing: the workers end next, and their process groups with them. Ray has each worker leave the group first,
        and waits half a minute for one that is frozen."""


_listening: list[socket.socket] = []
"""The listening socket on rank 0, until the store takes it over."""


def _listen() -> tuple[str, int]:
    """Listen at the address under which Ray reaches this host; returns address and port for the others."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listening = socket.create_server((address, 0), family=family, backlog=_BACKLOG)
    except OSError:  # an address that leads here but is not one of this host's, as behind NAT
        listening = socket.create_server(("", 0), family=family, backlog=_BACKLOG)
    _listening.append(listening)
    return address, listening.getsockname()[1]


def _join(address: str, port: int, rank: int, world_size: int, backend: str, timeout: timedelta) -> None:
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}  # as Ray's own code sets it
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # as Ray sets it: a dead peer ends the wait for it
    socket_of_store = _listening.pop().detach() if rank == 0 else None
    store = TCPStore(address, port, world_size, is_master=rank == 0, timeout=timeout, master_listen_fd=socket_of_store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
