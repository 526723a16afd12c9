"""An attempt that nobody hears ends by itself; one whose service is merely down goes on."""

from __future__ import annotations

import pytest

from syncnorm.trainer.reporting.partition_detector import ALONE_S, Isolation


@pytest.mark.parametrize(
    ("silent_s", "reaches_head", "is_alone"),
    [(ALONE_S - 1, False, False), (ALONE_S, True, False), (ALONE_S, False, True)],
)
def test_alone_is_who_hears_neither_the_service_nor_the_head(
    silent_s: float, reaches_head: bool, is_alone: bool
) -> None:
    isolation = Isolation(lambda: silent_s, lambda: reaches_head)

    assert isolation.is_alone() is is_alone


def test_head_is_looked_for_once_in_a_while_and_only_after_a_long_silence() -> None:
    looks, now, silent_s = [], 0.0, 0.0
    isolation = Isolation(lambda: silent_s, lambda: looks.append(now) is None, lambda: now)

    for second in range(1000):
        now = silent_s = float(second)
        isolation.is_alone()

    assert looks == [600.0, 660.0, 720.0, 780.0, 840.0, 900.0, 960.0]
