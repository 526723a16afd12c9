"""Ports for programs that take a while until they listen."""

from __future__ import annotations

import socket
import subprocess
import sys

from syncnorm.service.local.free_ports import claimed_port, free_port

CLAIM = (
    "import sys; from syncnorm.service.local.free_ports import claimed_port\n"
    "with claimed_port(int(sys.argv[1])) as port: print(port)"
)


def test_two_services_are_never_given_the_same_port() -> None:
    """Nobody listens on it yet: a look at the port alone would find it free twice."""
    wanted = free_port()

    with claimed_port(wanted) as first:
        command = [sys.executable, "-c", CLAIM, str(wanted)]
        second = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    with claimed_port(wanted) as third:
        pass

    assert first == third == wanted
    assert int(second) != wanted


def test_port_somebody_listens_on_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        assert free_port(taken.getsockname()[1]) != taken.getsockname()[1]
