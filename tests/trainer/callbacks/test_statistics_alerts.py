"""Whoever should look at a layer's statistics is told so, once, and again only after it had recovered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from syncnorm import norm
from syncnorm.norm import NormSnapshot
from syncnorm.trainer.callbacks.statistics_alerts import DRIFT, RECOVERED, WARM_UP, StatisticsAlarm
from syncnorm.trainer.data import Data
from syncnorm.trainer.data.digits import Images, load_digits
from syncnorm.trainer.data.info import DataInfo
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import RecordingReporter, train

EPS = 1e-5


def seen(*, shift: float = 0.0, var: float = 1.0, batches: int = 100) -> NormSnapshot:
    """Of a layer of 4 channels that has just seen a batch of mean `shift`, around running statistics of 0 and `var`."""
    layer = nn.BatchNorm1d(4, eps=EPS)
    layer.running_var[0] = var
    layer.num_batches_tracked.fill_(batches)
    layer.momentum = 0.0
    network = nn.Sequential(layer)
    with norm.observe(network):
        network(torch.tensor([[-1.0], [1.0]]).expand(2, 4) + shift)
    return norm.snapshot(network)["0"]


class Alarmed:
    """An alarm, and what it tells."""

    def __init__(self) -> None:
        self.told = RecordingReporter()
        self.alarm = StatisticsAlarm(self.told)  # type: ignore[arg-type]
        self.step = 0

    def check(self, **layers: NormSnapshot) -> list[tuple[str, str, Any]]:
        """(kind, cause, layers) of what this check tells."""
        before, self.step = len(self.told.events), self.step + 10
        self.alarm.check(layers, lambda _: EPS, self.step)
        return [(kind, data["cause"], data["layers"]) for kind, _, data in self.told.events[before:]]


def test_drift_is_told_once_and_again_after_it_recovered() -> None:
    watch = Alarmed()
    far, between, near = seen(shift=1.2 * DRIFT), seen(shift=0.7 * DRIFT), seen(shift=0.9 * RECOVERED * DRIFT)

    told = [watch.check(bn=one) for one in (near, between, far, far, between, near, between, far)]

    value = round(1.2 * DRIFT / (1 + EPS) ** 0.5, 4)
    alert, over = ("statistics_alert", "drift", {"bn": value}), ("statistics_recovered", "drift", ["bn"])
    assert told == [[], [], [alert], [], [], [over], [], [alert]]


def test_layers_that_drift_together_are_one_event() -> None:
    watch = Alarmed()
    far = seen(shift=2.0)

    first = watch.check(a=far, b=far, c=seen())
    second = watch.check(a=far, b=far, c=far)

    assert [(kind, list(layers)) for kind, _, layers in first] == [("statistics_alert", ["a", "b"])]
    assert [(kind, list(layers)) for kind, _, layers in second] == [("statistics_alert", ["c"])]


def test_start_values_of_running_statistics_are_no_drift() -> None:
    watch = Alarmed()

    assert watch.check(bn=seen(shift=9.0, batches=WARM_UP - 2)) == []
    assert watch.check(bn=seen(shift=9.0, batches=WARM_UP)) != []


def test_channel_without_variance_is_told_with_their_number() -> None:
    watch = Alarmed()

    assert watch.check(bn=seen(var=EPS / 2)) == [("statistics_alert", "collapsed", {"bn": 1.0})]
    assert watch.check(bn=seen(var=EPS * 2)) == [("statistics_recovered", "collapsed", ["bn"])]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_batch_that_is_not_finite_is_told(bad: float) -> None:
    assert Alarmed().check(bn=seen(shift=bad)) == [("statistics_alert", "non_finite", {"bn": 1.0})]


def test_undone_batches_are_told_once_until_a_look_without_any() -> None:
    watch = Alarmed()
    for step in range(5):
        watch.alarm.undone(["bn"], step)

    kinds = [kind for kind, _, _ in watch.told.events]
    assert kinds == ["statistics_alert"]
    assert watch.check(bn=seen()) == []
    assert watch.check(bn=seen()) == [("statistics_recovered", "non_finite", ["bn"])]


def test_resumed_job_does_not_tell_again_what_it_told() -> None:
    before, after = Alarmed(), Alarmed()
    before.check(bn=seen(shift=2.0))

    after.alarm.load_state_dict(before.alarm.state_dict())

    assert after.check(bn=seen(shift=2.0)) == []
    assert after.check(bn=seen()) == [("statistics_recovered", "drift", ["bn"])]


def listen(rank: int, world_size: int, root: str, shift: float, bad: int) -> list[tuple[str, str, dict[str, Any]]]:
    """Train, with slow running statistics, on digits moved by `shift`, `bad` of which have a NaN pixel."""
    images, labels = load_digits()
    x = images[:, None] + shift
    x[:bad, 0, 0, 0] = float("nan")
    data = Data(DataInfo("classification", 10, (1, 8, 8)), Images(x[:640], labels[:640]), Images(x[640:], labels[640:]))
    document = {
        "name": "alerts",
        "model": {"name": "mlp", "init_args": {"hidden": [8]}},
        "data": {"name": "digits", "batch_size": 8},
        "norm": {"kind": "batch", "momentum": 0.1 if not shift else 0.001},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "train": {"epochs": 3},
        "resources": {"workers": 2},
        "statistics": {"every": {"steps": 20}},
    }
    told = RecordingReporter()
    train(rank, world_size, root, document, told=told, data=data)
    return told.events


@pytest.mark.parametrize(("shift", "bad", "causes"), [(0.0, 0, []), (9.0, 0, ["drift"]), (0.0, 1, ["non_finite"])])
def test_training_tells_what_is_wrong_with_its_statistics(
    ranks: Pool, tmp_path: Path, shift: float, bad: int, causes: list[str]
) -> None:
    events, _ = ranks.run(listen, 2, str(tmp_path), shift, bad)

    alerts = [data for kind, _, data in events if kind == "statistics_alert"]
    assert [data["cause"] for data in alerts[: len(causes)]] == causes
    assert bool(alerts) is bool(causes)
    assert all(set(data["layers"]) for data in alerts)
