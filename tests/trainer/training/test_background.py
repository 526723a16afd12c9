"""Checkpoints go to a bucket beside the steps that follow them; one counts once it is there, and none is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from syncnorm.trainer.errors import StorageAwayError
from syncnorm.trainer.ranks.rank_context import single_process_context, single_process_group
from syncnorm.trainer.storage.sync import Mirrored
from syncnorm.trainer.training.background import BackgroundTasks
from tests.helpers.trainer.ranks import RecordingReporter, train
from tests.trainer.storage.test_attempts_in_a_bucket import attempt, kept

# 1,438 samples make 12 batches an epoch.
DOCUMENT: dict[str, Any] = {
    "name": "beside",
    "model": {"name": "mlp", "init_args": {"hidden": [8]}},
    "data": {"name": "digits", "batch_size": 128},
    "norm": {"kind": "batch"},
    "train": {"epochs": 1, "checkpoint_every": {"steps": 4}, "keep_checkpoints": 9},
    "resources": {"workers": 1},
}
STEPS = ["step-0000000004", "step-0000000008", "step-0000000012"]
ALONE = single_process_context()


@pytest.fixture(autouse=True)
def group_of_one() -> Iterator[None]:
    with single_process_group():
        yield


class Watching(RecordingReporter):
    """What was done, in order: steps, and checkpoints the service is told of."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.done: list[str] = []
        self.at_step: Callable[[int], None] = lambda _: None

    def progress(self, *, step: int, **facts: object) -> None:
        super().progress(step=step, **facts)
        self.done.append(f"step {step}")
        self.at_step(step)

    def checkpoint(self, *, step: int, **_: object) -> None:
        self.done.append(f"told of {step}")


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing of a checkpoint's state is sent before it is set."""
    event, original = threading.Event(), Mirrored.publish

    def publish(mirror: Mirrored, path: Path) -> None:
        if path.name == "state.pt":
            assert event.wait(60)
        original(mirror, path)

    monkeypatch.setattr(Mirrored, "publish", publish)
    return event


def test_training_goes_on_while_a_checkpoint_is_sent_and_it_counts_once_it_is_there(
    bucket: str, hold: threading.Event
) -> None:
    told = Watching()
    told.at_step = lambda step: hold.set() if step == 7 else None  # the one of step 4 is on its way until then

    train(0, 1, attempt(bucket), DOCUMENT, told=told, where=ALONE)

    order = [told.done.index(each) for each in ("step 4", "step 7", "told of 4", "told of 8", "told of 12")]
    assert order == sorted(order)
    manifests = [name for name in kept(f"{attempt(bucket)}/checkpoints") if name.endswith("manifest.json")]
    assert [name.partition("/")[0] for name in manifests] == STEPS


def test_next_checkpoint_waits_for_the_one_before(bucket: str, hold: threading.Event) -> None:
    told = Watching()
    threading.Timer(1.0, hold.set).start()

    train(0, 1, attempt(bucket), DOCUMENT, told=told, where=ALONE)

    assert told.done.index("told of 4") < told.done.index("step 9")


def test_stop_waits_until_its_checkpoint_is_there(bucket: str, hold: threading.Event) -> None:
    told = Watching(stop_at=5)
    threading.Timer(1.0, hold.set).start()

    stopped = train(0, 1, attempt(bucket), DOCUMENT, told=told, where=ALONE)

    assert stopped.stopped_at is not None
    assert told.done[-1] == f"told of {stopped.stopped_at}"
    assert f"checkpoints/step-{stopped.stopped_at:010d}/manifest.json" in kept(attempt(bucket))


@pytest.mark.parametrize("failing", [1, 3])
def test_checkpoint_that_can_not_be_sent_ends_training_at_the_next_or_at_the_end(
    bucket: str, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    told, original, sent = Watching(), Mirrored.publish, []

    def publish(mirror: Mirrored, path: Path) -> None:
        sent.extend([path.name] if path.name == "state.pt" else [])
        if path.name == "state.pt" and len(sent) == failing:
            raise StorageAwayError("the storage did not answer")
        original(mirror, path)

    monkeypatch.setattr(Mirrored, "publish", publish)
    with pytest.raises(StorageAwayError, match=f"step-{4 * failing:010d} could not be stored.* one before it is kept"):
        train(0, 1, attempt(bucket), DOCUMENT, told=told, where=ALONE)

    assert [name for name in told.done if "told" in name] == [f"told of {step}" for step in (4, 8)[: failing - 1]]


def test_error_of_training_is_told_and_what_is_on_its_way_still_arrives(bucket: str, hold: threading.Event) -> None:
    told = Watching()

    def fail(step: int) -> None:
        if step == 6:
            threading.Timer(0.5, hold.set).start()
            raise ZeroDivisionError("of the user")

    told.at_step = fail
    with pytest.raises(ZeroDivisionError, match="of the user"):
        train(0, 1, attempt(bucket), DOCUMENT, told=told, where=ALONE)

    assert told.done[-1] == "told of 4"
    assert f"checkpoints/{STEPS[0]}/manifest.json" in kept(attempt(bucket))


def test_folder_that_all_share_needs_no_thread() -> None:
    seen: list[threading.Thread] = []

    with BackgroundTasks(is_threaded=False) as beside:
        beside.do(lambda: seen.append(threading.current_thread()))

    assert seen == [threading.current_thread()]
