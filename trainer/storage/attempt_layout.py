"""The layout of an attempt's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from syncnorm.trainer.contract.protocol import EXPORT_FILE, LAUNCH_FILE, METRICS_FILE, RESULT_FILE
from syncnorm.trainer.storage.sync import IN_PLACE, PATIENCE_S, Mirror, workplace


@dataclass(frozen=True)
class AttemptFolders:
    """`root` is `{storage}/jobs/{job}/attempts/{n}`, or where that is mirrored; what an attempt writes lies below it.

    The same for one start of a later export, `{storage}/jobs/{job}/exports/{name}/{start}`.
    """

    root: Path
    mirror: Mirror = IN_PLACE

    @property
    def launch(self) -> Path:
        return self.root / LAUNCH_FILE

    @property
    def request(self) -> Path:
        """Of a later export."""
        return self.root / EXPORT_FILE

    @property
    def result(self) -> Path:
        return self.root / RESULT_FILE

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def artifacts(self) -> Path:
        """Files for the MLflow run, as they are."""
        return self.root / "artifacts"

    @property
    def export(self) -> Path:
        return self.root / "export"

    @property
    def weights(self) -> Path:
        """The weights that the job starts from; see syncnorm.trainer.weights.staging."""
        return self.root / "init_from"

    @property
    def code(self) -> Path:
        """The user's uploaded code."""
        return self.root / "code"

    @property
    def ray(self) -> Path:
        return self.root / "ray"

    @property
    def failures(self) -> Path:
        return self.root / "failures"

    def failure(self, rank: int) -> Path:
        return self.failures / f"rank-{rank}.json"

    @property
    def ranks(self) -> Path:
        """Which rank runs where; see syncnorm.trainer.ranks.preflight."""
        return self.root / "ranks.json"

    @property
    def spool(self) -> Path:
        return self.root / METRICS_FILE

    def earlier(self, attempt: int) -> list[AttemptFolders]:
        """The folders of the job's attempts before `attempt`, in order."""
        return [AttemptFolders(self.root.parent / str(number), self.mirror) for number in range(1, attempt)]

    def spools(self, attempt: int) -> list[Path]:
        """The spools of all attempts up to this one, in order, so that undelivered metrics of earlier ones go first."""
        return [*(each.spool for each in self.earlier(attempt)), self.spool]


@contextmanager
def opened(where: str, *, patience_s: float = PATIENCE_S) -> Iterator[AttemptFolders]:
    """Access to the folder or URL `where`; for a URL nothing is left on this host after the block."""
    with workplace(where, patience_s=patience_s) as (root, mirror):
        yield AttemptFolders(root, mirror)
