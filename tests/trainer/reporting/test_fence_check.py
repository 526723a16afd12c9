"""A start asks whether it still counts, and takes silence for no permission."""

from __future__ import annotations

import pytest

from syncnorm.trainer.contract.protocol import ExportRequest
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.errors import ServiceAwayError, SupersededError
from syncnorm.trainer.reporting import fence_check as standing
from syncnorm.trainer.reporting.fence_check import is_current, require_current
from tests.helpers.trainer.answers import answering

SPEC = {"name": "j", "model": {"name": "mlp"}, "data": {"name": "digits", "batch_size": 32}}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "_PAUSES_S", (0.0, 0.0))


def request(url: str | None) -> ExportRequest:
    about = {"name": "2", "job_id": "j", "fence": "f", "source": "", "mlflow_uri": "", "mlflow_run_id": ""}
    return ExportRequest(**about, spec=read_spec(SPEC), service_url=url, token="t")


def test_start_that_the_service_knows_goes_on_after_a_restart_of_it() -> None:
    with answering(beats=(503, 200)) as service:
        require_current(request(service.url))

    assert service.asked == ["/internal/v1/exports/j/2/heartbeat"] * 2


def test_start_that_was_given_up_hears_it_at_once() -> None:
    with answering(beats=(409,)) as service, pytest.raises(SupersededError, match="a newer start has taken over"):
        require_current(request(service.url))

    assert len(service.asked) == 1


def test_silence_is_no_permission() -> None:
    with answering() as service:
        gone = service.url

    with pytest.raises(ServiceAwayError, match="must confirm that this start is still current"):
        require_current(request(gone))


def test_start_by_hand_asks_nobody() -> None:
    require_current(request(None))

    assert is_current(request(None))


@pytest.mark.parametrize(("status", "answer"), [(200, True), (409, False), (503, None)])
def test_asking_once_gets_one_answer_or_none(status: int, answer: bool | None) -> None:
    with answering(beats=(status,)) as service:
        assert is_current(request(service.url)) is answer

    assert len(service.asked) == 1
