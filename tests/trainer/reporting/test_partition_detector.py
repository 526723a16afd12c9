"""An attempt that nobody hears ends by itself; one whose service is merely down goes on."""

from __future__ import annotations

import pytest

from syncnorm.trainer.reporting.partition_detector import SILENT_S, PartitionDetector


@pytest.mark.parametrize(
    ("silent_s", "reaches_head", "is_partitioned"),
    [(SILENT_S - 1, False, False), (SILENT_S, True, False), (SILENT_S, False, True)],
)
def test_alone_is_who_hears_neither_the_service_nor_the_head(
    silent_s: float, reaches_head: bool, is_partitioned: bool
) -> None:
    partition = PartitionDetector(lambda: silent_s, lambda: reaches_head)

    assert partition.is_partitioned() is is_partitioned


def test_head_is_looked_for_once_in_a_while_and_only_after_a_long_silence() -> None:
    looks, now, silent_s = [], 0.0, 0.0
    partition = PartitionDetector(lambda: silent_s, lambda: looks.append(now) is None, lambda: now)

    for second in range(1000):
        now = silent_s = float(second)
        partition.is_partitioned()

    assert looks == [600.0, 660.0, 720.0, 780.0, 840.0, 900.0, 960.0]
