"""Says before training that an average would be mostly of its start."""

from __future__ import annotations

from collections.abc import Iterator

from syncnorm.trainer.contract.spec import AverageSpec
from syncnorm.trainer.contract.spec_findings import Finding

LARGE_SHARE = 0.05
"""Of the average, for the weights after the first step."""
LOOKS_BACK = 0.1
"""Share of training that the proposed decay looks back over."""


def horizon_findings(average: AverageSpec | None, steps: int | None) -> Iterator[Finding]:
    """steps: optimizer steps of the whole job; None where nobody knows."""
    if average is None or average.decay is None or steps is None:
        return
    first = average.decay ** (steps - 1)
    if first > LARGE_SHARE:
        yield Finding(
            code="average_of_the_start",
            path="train.average.decay",
            message=f"The average looks back over about {1 / (1 - average.decay):,.0f} steps, and training has "
            f"{steps:,}: {first:.0%} of it would be the weights after the first step.",
            fix=f"Use a decay of {max(0.5, 1 - 1 / (LOOKS_BACK * steps)):.4g} or less, or train longer.",
            severity="warning",
        )
