"""Detects a network partition: neither the service nor Ray's head has been reachable for long.

A service that is down stops nobody's training. But behind a partition an attempt has been replaced, and should not use
its host for ever: where packets are lost rather than refused, Ray itself does not notice (ray 2.60).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

SILENT_S = 600.0
"""How long the service may be silent before the head is checked."""
_CHECK_S = 60.0
_CONNECT_S = 2.0


class PartitionDetector:
    """Checked at every batch; connects to the head now and then, and only after a long silence.

    silent_s: seconds since the service was last heard. reaches_head: whether a connection can be made; it may block a
    while.
    """

    def __init__(
        self,
        silent_s: Callable[[], float],
        reaches_head: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._silent_s = silent_s
        self._reaches_head = reaches_head
        self._clock = clock
        self._next_check = 0.0

    def is_partitioned(self) -> bool:
        if self._silent_s() < SILENT_S or self._clock() < self._next_check:
            return False
        self._next_check = self._clock() + _CHECK_S
        return not self._reaches_head()


def reaches_ray_head() -> bool:
    """Whether the head of the cluster accepts connections; True without a cluster."""
    import ray

    if not ray.is_initialized():
        return True
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except OSError:
        return False
    return True
