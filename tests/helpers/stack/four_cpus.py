"""`syncnorm` on a host that says it has four CPUs, so that a job of four workers fits."""

from __future__ import annotations

import os

from syncnorm.service.cli import main as cli

os.cpu_count = lambda: 4  # type: ignore[assignment]

if __name__ == "__main__":
    cli.app()
