"""Prometheus' alerts and Grafana's board: they parse, name metrics of the product only, and fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.paths import ROOT
from tests.helpers.service.api import SPEC, api

MONITORING = ROOT / "deploy" / "monitoring"
RULES = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
BOARD: dict[str, Any] = json.loads((MONITORING / "dashboards" / "syncnorm.json").read_text())
CASES = Path(__file__).parent / "alerts_test.yml"
HOW_TO = ROOT / "docs" / "how-to" / "monitor.md"
SUFFIXES = r"(?:_bucket|_count|_sum)?"
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's prometheus")


def queries() -> Iterator[str]:
    yield from (rule["expr"] for rule in RULES)
    yield from (target["expr"] for panel in BOARD["panels"] for target in panel["targets"])


def test_alerts_and_board_ask_only_for_metrics_that_the_service_has(tmp_path: Path) -> None:
    with api(tmp_path) as (client, _):
        client.post("/v1/jobs", json=SPEC)
        text = client.get("/metrics").text
    there = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)) | {"syncnorm_loop_consecutive_failures"}
    there |= {"syncnorm_loop_success_age_seconds"}  # of loops that this test doesn't start
    asked = {name for query in queries() for name in re.findall(r"\bsyncnorm_\w+", query)}

    assert asked
    assert {re.sub(f"{SUFFIXES}$", "", name) for name in asked} - there == set()


@pytest.mark.parametrize(
    ("topic", "metric"),
    [
        ("failing ticks", "syncnorm_reconciler_consecutive_failures"),
        ("queue age", "syncnorm_oldest_queued_seconds"),
        ("lost attempts", "syncnorm_attempts_ended_total"),
        ("storage and MLflow", "syncnorm_part_ready"),
    ],
)
def test_alerts_and_board_cover(topic: str, metric: str) -> None:
    shown = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]

    assert any(metric in rule["expr"] for rule in RULES), topic
    assert any(metric in query for query in shown), topic


def test_oldest_queued_job_and_missing_parts_are_measured(tmp_path: Path) -> None:
    with api(tmp_path) as (client, world):
        before = client.get("/metrics").text
        client.post("/v1/jobs", json=SPEC)
        world.clock.advance(90)
        world.tracker.reachable = False
        after = client.get("/metrics").text

    assert "\nsyncnorm_oldest_queued_seconds 0.0\n" in before
    assert "\nsyncnorm_oldest_queued_seconds 90.0\n" in after
    assert 'syncnorm_part_ready{part="mlflow"} 1.0' in before
    assert 'syncnorm_part_ready{part="mlflow"} 0.0' in after


def test_each_alert_says_what_to_do_and_has_its_line_in_the_guide() -> None:
    guide = HOW_TO.read_text()

    assert [rule["alert"] for rule in RULES if not {"summary", "action"} <= set(rule["annotations"])] == []
    assert [rule["alert"] for rule in RULES if f"`{rule['alert']}`" not in guide] == []


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    fires = {case["alertname"] for case in cases if "exp_alerts" in case}
    stays_quiet = {case["alertname"] for case in cases if "exp_alerts" not in case}

    assert fires == stays_quiet == {rule["alert"] for rule in RULES}


@promtool
def test_alerts_fire_when_they_should() -> None:
    done = subprocess.run(["promtool", "test", "rules", str(CASES)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    text = (MONITORING / "prometheus.yml").read_text().replace("/etc/prometheus", str(MONITORING))
    (tmp_path / "prometheus.yml").write_text(text)

    done = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_board_has_panels_that_grafana_can_place_and_draw() -> None:
    panels = BOARD["panels"]
    places = [panel["gridPos"] for panel in panels]
    cells = [(p["x"] + i, p["y"] + j) for p in places for i in range(p["w"]) for j in range(p["h"])]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert {panel["type"] for panel in panels} <= {"timeseries", "stat"}
    assert {panel["datasource"]["uid"] for panel in panels} == {"prometheus"}
    assert [
        panel["title"] for panel in panels if len({t["refId"] for t in panel["targets"]}) != len(panel["targets"])
    ] == []
