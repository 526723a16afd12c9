"""The metrics over all layers, and the layers behind the extremes."""

from __future__ import annotations

import math

import torch

from syncnorm.norm import NormSnapshot
from syncnorm.trainer.callbacks.statistics import DRIFT_TAG, VARIANCE_TAG, over_all_layers


def layer(drift: float | None, *variances: float) -> NormSnapshot:
    var = torch.tensor(variances or (1.0,))
    return NormSnapshot("BatchNorm2d", torch.zeros(len(var)), var, 0.0, float(var.mean()), 40, drift)


def test_extremes_name_their_layers() -> None:
    layers = {"a": layer(0.1, 2.0, 0.5), "b.bn": layer(0.4), "c": layer(0.2, 0.25, 9.0)}

    found, worst = over_all_layers(layers)

    assert found == {"norm/drift/max": 0.4, "norm/drift/median": 0.2, "norm/variance/min": 0.25}
    assert worst == {DRIFT_TAG: "b.bn: 0.4", VARIANCE_TAG: "c: 0.25"}


def test_values_that_are_not_finite_hide_no_other() -> None:
    found, worst = over_all_layers({"a": layer(math.nan, math.inf), "b": layer(0.3, 0.5), "": layer(None, 0.125)})

    assert found == {"norm/drift/max": 0.3, "norm/drift/median": 0.3, "norm/variance/min": 0.125}
    assert worst[VARIANCE_TAG] == "the network: 0.125"


def test_network_without_running_statistics_has_none() -> None:
    assert over_all_layers({}) == ({}, {})
