"""Which tests share a process: `make test` spreads them over two."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from tests.helpers.az import Az
    from tests.helpers.bucket_server import BucketServer
    from tests.helpers.gs import Gs
    from tests.helpers.s3 import S3

# Before torch is loaded. The ranks of a test and the other test process fill two cores; threads would wait in loops.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a test starts finds the tests' helpers, and so do jobs that name a class of theirs.
os.environ.setdefault("PYTHONPATH", str(ROOT))

STACK = "tests/stack"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take longest go first."""
    items.sort(key=lambda item: not item.nodeid.startswith(STACK))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file stay together, as do all of tests/stack, which share one service."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return STACK if nodeid.startswith(STACK) else nodeid.partition("::")[0]

    return ByFile(config, log)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """A server that speaks S3, for all tests of a process."""
    from tests.helpers import s3

    with s3.serving() as server:
        yield server


@pytest.fixture(scope="session")
def gs_server() -> Iterator[Gs]:
    from tests.helpers import gs

    with gs.serving() as server:
        yield server


@pytest.fixture(scope="session")
def az_server() -> Iterator[Az]:
    from tests.helpers import az

    with az.serving() as server:
        yield server


@pytest.fixture
def server(request: pytest.FixtureRequest) -> BucketServer:
    """S3, where a test names no other."""
    found: BucketServer = request.getfixturevalue(f"{getattr(request, 'param', 's3')}_server")
    return found


@pytest.fixture
def bucket(server: BucketServer) -> Iterator[str]:
    """The URL of an empty bucket that this process, and those it starts meanwhile, may use."""
    with server.used():
        yield server.new_bucket()
