"""`syncnorm` whose elastic jobs grow after seconds: the real one waits for eleven minutes."""

from __future__ import annotations

from syncnorm.service.cli import main as cli
from syncnorm.service.scheduling import growth

growth.SETTLED_S, growth.LEAST_TRAINED_S, growth.LEAST_SAVED_S = 3.0, 10.0, 1.0

if __name__ == "__main__":
    cli.app()
