from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from syncnorm.trainer.reporting.metric_spool import Spool
from syncnorm.trainer.reporting.run_logger.lightning_logger import RunLogger

RUN_ID = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return tmp_path / "attempts" / "1" / "artifacts"


@pytest.fixture
def run_logger(artifacts: Path) -> Iterator[RunLogger]:
    with closing(Spool(artifacts.parent / "metrics.jsonl")) as spool:
        yield RunLogger(spool, artifacts, run_id=RUN_ID, experiment="team/demo", current_step=lambda: 7)
