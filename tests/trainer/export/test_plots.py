"""The pictures of the statistics show what was recorded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from syncnorm.trainer.export.statistics.plots import draw_statistics, heat_map, read_series


def spool(path: Path, points: list[tuple[str, int, float]]) -> Path:
    lines = [json.dumps({"key": key, "step": step, "value": value, "timestamp": 0}) for key, step, value in points]
    path.write_text("\n".join(lines) + "\n")
    return path


def points(layers: int, steps: range) -> list[tuple[str, int, float]]:
    return [
        (f"norm/layer{layer}.bn/{what}", step, 0.1 * step + layer)
        for layer in range(layers)
        for step in steps
        for what in ("running_mean_abs", "running_var_mean", "drift")
    ]


def test_series_go_on_over_attempts_and_keep_the_first_value(tmp_path: Path) -> None:
    first = spool(tmp_path / "1", [("norm/a.bn/drift", 1, 0.5), ("norm/a.bn/drift", 2, 0.25), ("val/loss", 1, 9.0)])
    second = spool(tmp_path / "2", [("norm/a.bn/drift", 2, 7.0), ("norm/a.bn/drift", 3, 0.125)])

    found = read_series([first, second, tmp_path / "missing"])["drift"]

    assert found == {"a.bn": {1: 0.5, 2: 0.25, 3: 0.125}}


def test_heat_map_leaves_a_gap_where_a_layer_has_no_value() -> None:
    layers, steps, values = heat_map({"a": {1: 0.5, 2: 0.25}, "b": {2: 1.0}})

    assert (layers, steps) == (["a", "b"], [1, 2])
    np.testing.assert_array_equal(values, [[0.5, 0.25], [np.nan, 1.0]])


def test_pictures_are_drawn_and_not_blank(tmp_path: Path) -> None:
    drawn = draw_statistics([spool(tmp_path / "s", points(5, range(10, 60, 10)))], tmp_path / "norm")

    assert [path.name for path in drawn] == ["running_statistics.png", "drift.png"]
    for path in drawn:
        pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) > 50, path  # lines and colors, not an empty frame


def test_a_network_without_running_statistics_has_no_pictures(tmp_path: Path) -> None:
    assert draw_statistics([spool(tmp_path / "s", [("val/loss", 1, 0.5)])], tmp_path / "norm") == []
