"""When the reconciler looks more often."""

from __future__ import annotations

from syncnorm.service.reconciler.polling import BRISK_S, LIVELY_S, PollInterval


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rests_for_the_whole_tick_while_nothing_ends() -> None:
    pace = PollInterval(Clock())

    pace.note_ended([])

    assert pace.pause_s(2.0) == 2.0


def test_is_brisk_from_the_end_of_an_attempt_until_its_room_can_be_taken() -> None:
    clock = Clock()
    pace = PollInterval(clock)

    pace.note_ended(["job-1"])
    clock.now += LIVELY_S - 1
    pace.note_ended([])  # released; Ray's report of what is free comes later

    assert pace.pause_s(2.0) == BRISK_S
    clock.now += 1
    assert pace.pause_s(2.0) == 2.0


def test_does_not_stay_brisk_for_an_attempt_that_never_leaves() -> None:
    clock = Clock()
    pace = PollInterval(clock)

    for _ in range(100):
        pace.note_ended(["stuck-1"])
        clock.now += LIVELY_S / 50

    assert pace.pause_s(2.0) == 2.0


def test_every_further_end_begins_anew() -> None:
    clock = Clock()
    pace = PollInterval(clock)

    pace.note_ended(["stuck-1"])
    clock.now += LIVELY_S + 1
    pace.note_ended(["stuck-1", "job-2"])

    assert pace.pause_s(2.0) == BRISK_S
    assert pace.pause_s(0.1) == 0.1
