"""Claims, the comparison table and the report, from outcomes that are made up."""

from __future__ import annotations

import csv
import io
import math
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from syncnorm.service.jobs.study_claims import Claim, estimate, judge
from syncnorm.service.jobs.study_spec import StudySpec, expand, read_study
from syncnorm.service.studies.comparison import table
from syncnorm.service.studies.measures import Outcome, certificate_values, curve, measure
from syncnorm.service.studies.pictures import draw
from syncnorm.service.studies.report import Report, as_html, as_json, make_report
from syncnorm.service.studies.values_csv import as_csv

ERRORS = {"batch": {"2": 0.40, "16": 0.10}, "group": {"2": 0.12, "16": 0.11}}


def study(**changes: Any) -> StudySpec:
    claim = {"less": {"norm.kind": "group"}, "than": {"norm.kind": "batch"}, "metric": "val/error"}
    return read_study(
        {
            "name": "small <batches>".replace("<", "").replace(">", ""),
            "base": {"model": {"name": "cnn"}, "data": {"name": "digits", "batch_size": 32}},
            "grid": {"norm.kind": ["batch", "group"], "data.batch_size": [2, 16]},
            "claims": [
                claim | {"text": "group is better at 2", "where": {"data.batch_size": 2}},
                claim | {"text": "group is better at 16", "where": {"data.batch_size": 16}},
            ],
            "source": "a paper & its appendix",
        }
        | changes
    )


def outcome(child: Any, **changes: Any) -> Outcome:
    error = ERRORS[child.point["norm.kind"]][child.point["data.batch_size"]] + 0.01 * child.seed
    series = {"val/accuracy": [(10, 0.2), (20, 1 - error)], "train/loss": [(10, 2.0), (20, error)]}
    values = {"state": "succeeded", "series": series} | changes
    return Outcome(child.number, f"job_{child.number}", child.spec.name, child.point, child.seed, **values)


def outcomes(spec: StudySpec, **of: dict[str, Any]) -> list[Outcome]:
    """of: changes of single children, as child_5={…}."""
    return [outcome(child, **of.get(f"child_{child.number}", {})) for child in expand(spec)]


def report(spec: StudySpec, **of: dict[str, Any]) -> Report:
    return make_report("study_1", spec, "finished", outcomes(spec, **of))


def test_interval_is_that_of_student() -> None:
    values = [1.0, 2.0, 4.0]

    found = estimate(values)

    assert found is not None
    # 0.975 quantile of Student's t with 2 degrees of freedom: 4.303 (any table).
    half = 4.303 * statistics.stdev(values) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((7 / 3 - half, 7 / 3 + half), rel=1e-4)


@pytest.mark.parametrize(
    ("less", "by", "verdict"),
    [
        ({0: 0.1, 1: 0.2, 2: 0.3}, 0.0, "agrees"),
        ({0: 0.1, 1: 0.2, 2: 0.3}, 0.5, "does not agree"),
        ({0: 0.9, 1: 0.9, 2: 0.9}, 0.0, "does not agree"),
        ({0: 0.0, 1: 0.59, 2: 0.69}, 0.0, "undecided"),
        ({0: 0.4, 1: 0.9, 2: 0.8}, 0.0, "undecided"),
        ({0: 0.1}, 0.0, "undecided"),
        ({0: 0.9}, 0.0, "undecided"),
        ({7: 0.1}, 0.0, "not measured"),
        ({0: 0.55, 1: 0.65, 2: 0.75}, -0.1, "agrees"),
    ],
)
def test_verdict_follows_from_the_paired_difference(less: dict[int, float], by: float, verdict: str) -> None:
    claim = Claim(text="t", metric="val/error", by=by)

    judged = judge(claim, less, {0: 0.5, 1: 0.6, 2: 0.7})

    assert judged.verdict == verdict


def test_differences_are_paired_by_seed_and_within_the_rest_of_the_grid() -> None:
    spec = study()

    rows = table(spec, outcomes(spec))

    assert [row.point["data.batch_size"] for row in rows] == ["2", "16", "2", "16"]
    assert [bool(row.differences) for row in rows] == [False, False, True, True]
    found = [row.differences["val/error"] for row in rows[2:]]
    assert [round(one.mean, 6) for one in found if one] == [-0.28, 0.01]
    # Seeds shift both sides alike, so that nothing is left of their spread.
    assert all(one is not None and one.std < 1e-9 for one in found)


def test_a_seed_that_failed_on_one_side_does_not_count_on_the_other() -> None:
    spec = study()

    rows = table(spec, outcomes(spec, child_1={"state": "failed", "series": {}}))

    difference = rows[2].differences["val/error"]
    assert rows[0].failed == 1
    assert difference is not None
    assert difference.count == 2


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("val/error", 0.6),
        ("max:val/error", 0.8),
        ("first:train/loss", 3.0),
        ("mean:train/loss", 2.0),
        ("max:layers/*/norm", 3.5),
        ("population/val/error", 0.25),
        ("val/nothing", None),
    ],
)
def test_metrics_are_named_reduced_and_derived(metric: str, value: float | None) -> None:
    series = {
        "val/accuracy": [(1, 0.2), (2, 0.4)],
        "train/loss": [(1, 3.0), (2, 1.0)],
        "layers/a/norm": [(1, 5.0)],
        "layers/b/norm": [(1, 1.0), (2, 2.0)],
    }
    values = certificate_values({"certificate": {"validation": {"population": {"val/accuracy": 0.75}}}})
    measured = Outcome(1, "job_1", "n", {}, 0, "succeeded", values=values, series=series)

    assert measure(measured, metric) == (None if value is None else pytest.approx(value))


def test_error_of_regression_is_its_mean_absolute_error() -> None:
    series, values = {"val/mae": [(10, 3.0), (20, 2.5)]}, {"running/val/mae": 2.0}
    measured = Outcome(1, "job_1", "n", {}, 0, "succeeded", values=values, series=series)
    diverged = Outcome(1, "job_1", "n", {}, 0, "failed", reason="non_finite", series=series)

    assert [measure(measured, name) for name in ("val/error", "min:val/error", "running/val/error")] == [2.5, 2.5, 2.0]
    assert measure(diverged, "val/error") is None


@pytest.mark.parametrize("state", ["queued", "running", "paused", "failed", "cancelled", "deleted"])
def test_part_of_a_training_is_no_value(state: str) -> None:
    partly = Outcome(1, "job_1", "n", {}, 0, state, series={"val/accuracy": [(1, 0.2)], "train/loss": [(1, 3.0)]})

    assert [measure(partly, metric) for metric in ("val/error", "val/accuracy", "min:train/loss")] == [None] * 3
    assert curve(partly, "val/error") == [(1, 0.8)]


@pytest.mark.parametrize(
    ("scores", "error"),
    [({"mean_iou": 0.6, "dice": 0.75}, 0.4), ({"dice": 0.75, "dice_1": 0.9}, 0.25), ({"dice_1": 0.9}, None)],
)
def test_error_of_segmentation_is_one_less_its_overlap(scores: dict[str, float], error: float | None) -> None:
    series = {f"val/{name}": [(10, value)] for name, value in scores.items()}
    values = {f"population/val/{name}": value for name, value in scores.items()}
    job = outcome(expand(study())[0], series=series, values=values)

    assert [measure(job, "val/error"), measure(job, "population/val/error")] == [pytest.approx(error)] * 2


def test_error_of_a_diverged_job_is_one_and_its_other_metrics_are_not_made_up() -> None:
    diverged = Outcome(1, "job_1", "n", {}, 0, "failed", reason="non_finite")
    broken = Outcome(1, "job_1", "n", {}, 0, "failed", reason="user_error")

    assert [measure(diverged, "val/error"), measure(diverged, "val/loss")] == [1.0, None]
    assert measure(broken, "val/error") is None


def test_report_says_whether_the_numbers_agree_with_the_source() -> None:
    made = report(study())

    findings = as_json(made)["findings"]

    assert [one["verdict"] for one in findings] == ["agrees", "does not agree"]
    assert findings[0]["sentence"].startswith(
        "agrees: group is better at 2. val/error: 0.13 against 0.41; difference -0.28 [-0.28, -0.28] over 3 seeds"
    )
    html = as_html(made, {})
    assert "does not agree: group is better at 16" in html
    assert "a paper &amp; its appendix" in html


def test_claims_that_contradict_are_both_undecided_where_seeds_differ_too_much() -> None:
    sides = {0: 0.4, 1: 0.9, 2: 0.8}, {0: 0.5, 1: 0.6, 2: 0.7}
    claim = Claim(text="t", metric="val/error")

    assert [judge(claim, *pair).verdict for pair in (sides, sides[::-1])] == ["undecided", "undecided"]


def test_one_seed_decides_nothing_and_the_sentence_says_so() -> None:
    findings = as_json(report(study(seeds=[7])))["findings"]

    assert [one["verdict"] for one in findings] == ["undecided", "undecided"]
    assert all(
        one["sentence"].endswith("over 1 seed. One seed has no interval. Run more seeds to decide.") for one in findings
    )


def test_claim_about_two_metrics_names_both() -> None:
    claim = {"text": "t", "metric": "train/loss", "than_metric": "val/error", "less": {}, "than": {}}

    sentence = as_json(report(study(claims=[claim])))["findings"][0]["sentence"]

    assert "train/loss: 0.1925 against 0.1925 of val/error;" in sentence


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("val/eror", "val/eror is missing in 6 jobs: 6 not logged. Did you mean val/error?"),
        ("max:val/loss", "max:val/loss is missing in 6 jobs: 6 not logged. Did you mean train/loss?"),
        ("f1", "f1 is missing in 6 jobs: 6 not logged. The jobs have train/loss, val/accuracy, val/error."),
    ],
)
def test_claim_about_a_metric_that_no_job_has_says_what_there_is(metric: str, words: str) -> None:
    claim = {"text": "t", "metric": metric, "less": {"norm.kind": "group"}, "than": {"norm.kind": "batch"}}
    spec = study(claims=[claim | {"where": {"data.batch_size": 2}}], metrics=[metric])

    made = report(spec)

    assert as_json(made)["findings"][0]["sentence"] == f"not measured: t. {words}"
    assert made.missing == (words.replace("6", "12"),)
    assert words.replace("6", "12") in as_html(made, {})


def test_claim_about_jobs_that_did_not_succeed_says_so() -> None:
    lost = {"state": "failed", "reason": "user_error", "series": {}}

    made = report(study(), child_1=lost, child_2=lost, child_3=lost | {"state": "cancelled", "reason": None})

    sentence = as_json(made)["findings"][0]["sentence"]
    assert sentence == "not measured: group is better at 2. val/error is missing in 3 jobs: 2 failed, 1 cancelled."
    assert made.missing == ()


def test_metric_that_is_not_finite_in_one_job_is_not_passed_over() -> None:
    """Neither by an earlier value of that job, nor by a mean that is said to be over all seeds."""
    odd = {"series": {"val/score": [(10, 0.2)]}, "not_finite": frozenset({"val/score"})}
    fine = {"series": {"val/score": [(10, 0.2), (20, 0.4)]}}
    spec = study(metrics=["val/score"], claims=[], seeds=[0, 1], grid={"norm.kind": ["batch"], "data.batch_size": [2]})

    made = report(spec, child_1=fine, child_2=odd)

    assert measure(made.outcomes[1], "val/score") is None
    assert measure(made.outcomes[1], "max:val/score") == 0.2
    name = made.outcomes[1].name
    assert made.missing == (f"val/score is missing in 1 job: 1 not a finite number. Not finite: {name} (seed 1).",)
    assert "0.4 (1 of 2)" in as_html(made, {})


def test_csv_has_the_values_that_the_table_is_made_of() -> None:
    grid = {"norm.kind": ["batch"], "data.batch_size": [2], "labels": {'a "b", =c': {"of": "mine"}}}
    made = report(study(grid=grid, claims=[], metrics=["val/error", "f1"]))

    rows = list(csv.DictReader(io.StringIO(as_csv(made))))

    assert list(rows[0]) == ["number", "name", "job_id", "seed", "state", "reason", *grid, "val/error", "f1"]
    assert {row["labels"] for row in rows} == {'a "b", =c'}
    assert {row["f1"] for row in rows} == {""}
    mean = made.rows[0].estimates["val/error"]
    assert mean is not None
    assert statistics.fmean(float(row["val/error"]) for row in rows) == mean.mean


def test_report_shows_a_child_that_failed() -> None:
    made = report(
        study(), child_5={"state": "failed", "reason": "user_error", "message": "no <such> class", "series": {}}
    )

    html = as_html(made, {})

    assert "Jobs that did not succeed" in html
    assert "failed, user_error. no &lt;such&gt; class" in html
    assert as_json(made)["table"][1]["failed"] == 1


def test_pictures_show_something() -> None:
    made = report(study())

    pictures = draw(made.spec, made.rows)

    assert set(pictures) == {"comparison", "curves", "heat_map"}
    for png in pictures.values():
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        colours = np.unique(pixels.reshape(-1, 3), axis=0)
        assert len(colours) > 50  # lines, letters and their smooth edges; a blank picture has one


def test_pictures_of_places_without_numbers_and_of_nothing() -> None:
    spec = study(grid={"norm.kind": ["batch", "group"], "data.batch_size": [2]}, claims=[])
    kinds_only = report(spec)
    nothing = report(spec, **{f"child_{n}": {"state": "queued", "series": {}} for n in range(1, 7)})

    assert set(draw(spec, kinds_only.rows)) == {"comparison", "curves", "heat_map"}
    assert draw(spec, nothing.rows) == {}
    assert "not" not in as_json(nothing)["state"]


def test_curve_of_one_point_is_seen() -> None:
    spec = study(grid={"norm.kind": ["batch"], "data.batch_size": [2]}, claims=[], curves=["train/loss"], seeds=[0])
    point = report(spec, child_1={"series": {"train/loss": [(10, 2.0)]}})

    picture = np.asarray(Image.open(io.BytesIO(draw(spec, point.rows)["curves"])).convert("RGB"))

    height, width = picture.shape[:2]
    middle = picture[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3]  # the legend is in a corner
    assert count(middle, BLUE) > 20


# In a real browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BLUE, ORANGE = (31, 119, 180), (255, 127, 14)  # the first two lines
DARK, BRIGHT = (68, 1, 84), (253, 231, 37)  # both ends of the heat map


def screenshot(page: Path, to: Path) -> np.ndarray[Any, Any]:
    """What a browser shows of a page, as (height, width, 3)."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no browser is installed (Debian: apt-get install chromium)")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1300,3000"]
    command = [browser, *flags, f"--user-data-dir={to.parent / 'profile'}", f"--screenshot={to}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return np.asarray(Image.open(to).convert("RGB"))


def count(pixels: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels.astype(int) - colour).max(axis=-1) <= 2).sum())


def test_browser_shows_the_pictures_of_the_report(tmp_path: Path) -> None:
    made = report(study())
    pictures = draw(made.spec, made.rows)
    pages = {"with": as_html(made, pictures), "without": as_html(made, {})}
    for name, html in pages.items():
        (tmp_path / f"{name}.html").write_text(html)

    shown = screenshot(tmp_path / "with.html", tmp_path / "with.png")
    blank = screenshot(tmp_path / "without.html", tmp_path / "without.png")

    for colour in (BLUE, ORANGE, DARK, BRIGHT):
        assert count(shown, colour) > 100
        assert count(blank, colour) == 0
