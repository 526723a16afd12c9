"""An outage is said once, however often it is met."""

from __future__ import annotations

import logging

import pytest

from syncnorm.service.background.outage_log import OutageLog


def test_outage_is_logged_when_it_begins_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([100.0, 160.5, 200.0])
    outage_log = OutageLog(logging.getLogger("service.tests"), lambda: next(times))

    with caplog.at_level(logging.INFO, "service.tests"):
        outage_log.recovered("cluster")
        for _ in range(3):
            outage_log.failed("cluster", "Ray unreachable; nothing starts until it answers", error="refused")
        outage_log.recovered("cluster")
        outage_log.recovered("cluster")
        outage_log.failed("cluster", "Ray unreachable; nothing starts until it answers", error="refused")

    assert [record.message for record in caplog.records] == [
        "Ray unreachable; nothing starts until it answers",
        "recovered after an outage",
        "Ray unreachable; nothing starts until it answers",
    ]
    assert caplog.records[1].__dict__["outage_s"] == 60.5
