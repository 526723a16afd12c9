"""What followers see of a database that is away."""

from __future__ import annotations

import asyncio

import pytest

from syncnorm.service.api import change_notifier as module
from syncnorm.service.api.change_notifier import ChangeNotifier
from syncnorm.service.backend_errors import DatabaseUnavailableError
from syncnorm.service.store import Changes, Heads


def test_outage_of_the_database_is_said_once_and_without_a_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_POLL_S", 0.0)
    asked = 0

    def changes(heads: Heads | None) -> Changes:
        nonlocal asked
        asked += 1
        if asked == 3:
            notifier.close()
        raise DatabaseUnavailableError("The database can't be reached.")

    notifier = ChangeNotifier(changes)

    async def follow() -> None:
        with notifier.following("job_1"):
            await asyncio.wait_for(notifier._watch, 10)  # type: ignore[arg-type]

    asyncio.run(follow())

    assert [record.message for record in caplog.records if record.levelname != "DEBUG"] == [
        "followers wait for the database"
    ]
    assert caplog.records[-1].exc_info is None
