"""Where things lie in the folder of an attempt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.attempt import LAUNCH_FILE, METRICS_FILE, RESULT_FILE


@dataclass(frozen=True)
class AttemptFolders:
    """`root` is `{storage}/jobs/{job}/attempts/{n}`; nothing of an attempt is written outside it."""

    root: Path

    @property
    def launch(self) -> Path:
        return self.root / LAUNCH_FILE

    @property
    def result(self) -> Path:
        return self.root / RESULT_FILE

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def artifacts(self) -> Path:
        """What goes into the MLflow run as it is."""
        return self.root / "artifacts"

    @property
    def export(self) -> Path:
        return self.root / "export"

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
        """Which rank runs where; see trainer.preflight."""
        return self.root / "ranks.json"

    @property
    def spool(self) -> Path:
        return self.root / METRICS_FILE

    def earlier(self, attempt: int) -> list[AttemptFolders]:
        """Those of the job's attempts before `attempt`, in order."""
        return [AttemptFolders(self.root.parent / str(number)) for number in range(1, attempt)]

    def spools(self, attempt: int) -> list[Path]:
        """The spools of all attempts up to this one, in order: what an earlier one could not deliver goes first."""
        return [*(each.spool for each in self.earlier(attempt)), self.spool]
