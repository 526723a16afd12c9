"""Which tests share a process: `make test` and `make test-system` spread them over two. What holds for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.helpers.amounts import SHORT
from tests.helpers.long_forms import Record, part_of
from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from tests.helpers.az import Az
    from tests.helpers.bucket_server import BucketServer
    from tests.helpers.gs import Gs
    from tests.helpers.norm.pool import Pool
    from tests.helpers.s3 import S3

# Before torch is loaded. The ranks of a test and the other test process fill two cores; threads would wait in loops.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a test starts finds the tests' helpers, and so do jobs that name a class of theirs.
os.environ.setdefault("PYTHONPATH", str(ROOT))

settings.register_profile("short", SHORT)
settings.load_profile("short")

STACK = "tests/stack"
SYSTEM = (
    STACK,
    "tests/deploy/test_prepare_databases.py",
    "tests/docs/test_page_commands.py",
    "tests/docs/test_search.py",
    "tests/docs/test_site.py",
    "tests/docs/test_tutorials.py",
    "tests/norm/layers/test_compile.py::test_compiled_without_a_break_equals_one_device[inductor]",
    "tests/packaging",
    "tests/public/test_lightning_reports.py",
    "tests/public/test_mlflow_reports.py",
    "tests/public/test_onnx_export_reports.py",
    "tests/public/test_torchmetrics_reports.py",
    "tests/service/api/http/test_chromium.py",
    "tests/service/api/pages/test_pages_in_a_browser.py",
    "tests/service/api/running",
    "tests/service/api/test_openapi.py",
    "tests/service/faults",
    "tests/service/integrations/test_model_inspection.py",
    "tests/service/integrations/test_on_ray.py",
    "tests/service/integrations/test_run_on_mlflow.py",
    "tests/service/integrations/test_sweep_on_ray.py",
    "tests/service/local",
    "tests/service/poison",
    "tests/test_dying_process.py",
    "tests/trainer/callbacks/test_callbacks.py::test_compiled_training_learns_what_eager_training_does",
    "tests/trainer/data/test_datasets_on_mlflow.py",
    "tests/trainer/debugging/test_profile_in_a_bucket.py",
    "tests/trainer/driver",
    "tests/trainer/forkserver",
    "tests/trainer/reporting/run_logger/test_journal_sender.py",
    "tests/trainer/reporting/test_metric_spool.py",
    "tests/trainer/storage/test_attempts_in_a_bucket.py",
    "tests/trainer/training/test_averaged_weights.py::test_compiled_network_gets_the_same_statistics",
    "tests/trainer/training/test_checkpoint_faults.py",
    "tests/trainer/training/test_resume_of_own_modules.py",
    "tests/trainer/user_code/test_lightning_names.py",
    "tests/trainer/user_code/test_requirements.py",
)
"""Where `make test-system` finds its tests: they start the service, Ray, MLflow, a browser, an installer or a compiler,
kill processes, or damage much at once."""


STARTS_MLFLOW = "mlflow_server"
"""A fixture: so do its tests, wherever they are."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", help="run every n-th test only, from the k-th on: k/n")
    parser.addoption("--record", type=Path, help="append to this file how each test ended, as JSON lines")


def pytest_configure(config: pytest.Config) -> None:
    if (file := config.getoption("record")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Record(file))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take longest go first."""
    for item in items:
        if item.nodeid.startswith(SYSTEM) or STARTS_MLFLOW in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.system)
    items.sort(key=lambda item: not item.nodeid.startswith(STACK))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Of those that the marks select."""
    if part := session.config.getoption("part"):
        chosen = part_of(len(session.items), part)
        session.items[:] = [item for number, item in enumerate(session.items) if number in chosen]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file stay together, as do all of tests/stack, which share one service."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return STACK if nodeid.startswith(STACK) else nodeid.partition("::")[0]

        def remove_node(self, node: Any) -> str | None:
            """Leave to the others what a process that died had not begun; returns the test in which it died.

            xdist 3.8 alone runs that test again in each next process, and waits for ever for files that were done.
            """
            work = self.assigned_work[node]
            died_in, *rest = [name for file in work.values() for name, is_done in file.items() if not is_done] or [None]
            self.assigned_work[node] = {
                scope: left for scope, file in work.items() if (left := {name: False for name in file if name in rest})
            }
            super().remove_node(node)
            return died_in

    return ByFile(config, log)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Pool]:
    """Gloo workers for all tests of a process; the first job in one imports Lightning, which takes its time."""
    from tests.helpers.norm.pool import Pool

    workers = Pool(timeout_s=280)
    yield workers
    workers.stop()


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
