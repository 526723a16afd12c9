"""The page of a job in MLflow says what it trains, where it stands and what came of it, and leads back to it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from syncnorm.service.integrations.mlflow_note import run_note
from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.job import Job, JobState
from syncnorm.trainer.contract.failure import FailureReason, advised
from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers.service.api import SPEC

URL = "http://host:8000/jobs/job_1"
CERTIFICATE: dict[str, Any] = {
    "passed": True,
    "checks": [{"runtime": "eager"}, {"runtime": "onnxruntime"}, {"runtime": "eager"}],
    "max_relative_difference": 1.1e-6,
    "tolerance": {"max_relative_difference": 1e-4},
    "validation": {"running": {"val/accuracy": 0.94}, "population": {"val/accuracy": 0.95}},
    "population": {"samples": 1438, "drift": {"bn1": 0.002, "layer2.bn1": 0.014}},
}


def job(**changes: Any) -> Job:
    made = new_job(read_spec(SPEC), "ann", datetime(2026, 1, 1, tzinfo=UTC))
    return replace(made, id="job_1", **changes)


def test_page_tells_what_holds_for_the_job() -> None:
    one = {"holds": "partly", "why": "every worker draws dropout masks of its own"}

    note = run_note(job(guarantees=dict.fromkeys(("equals_one_device", "resumes_exactly", "exported"), one)), URL)

    assert "| equals one device | partly: every worker draws dropout masks of its own |" in note
    assert "| | |\n|---|---|" not in run_note(job(guarantees={"of": "another version"}), URL)


def test_page_of_a_new_job_describes_it_and_leads_back() -> None:
    note = run_note(job(), URL)

    assert note.startswith(
        "**job** trains `resnet` on `digits` with `sync_batch` normalization, 2 workers of 32 samples each."
    )
    assert "**queued**\n" in note
    assert f"[`job_1`]({URL}), owner ann" in note
    assert f"[log]({URL}#log)" in note
    assert "[API](http://host:8000/docs)" in note


def test_page_of_a_started_job_leads_to_charts_and_runs_of_its_project() -> None:
    note = run_note(job(experiment_id="7"), URL)

    view = "#/experiments/7/runs?viewStateShareKey=syncnorm&workflowType=machine_learning"
    assert f"(/{view}&compareRunsMode=CHART)" in note
    assert f"(/{view})" in note


def test_page_of_a_success_has_scores_model_and_proof() -> None:
    model = {"uri": "models:/m-1", "registered": "digits/2", "certificate": CERTIFICATE}
    progress = {"step": 69, "metrics": {"val/accuracy": 0.94, "norm/bn1/drift": 0.5}}

    note = run_note(job(state=JobState.SUCCEEDED, attempt=2, model=model, progress=progress), URL)

    assert "**succeeded**, 2 attempts, step 69" in note
    assert "| val/accuracy | 0.94 |" in note
    assert "norm/bn1/drift" not in note
    assert "| model | `models:/m-1`, registered as digits/2 |" in note
    assert (
        "| certificate | passed: eager, onnxruntime answer as the trained model, max relative difference 1.1e-06"
        in note
    )
    assert "of 1438 samples; running means were furthest off, by 0.014 standard deviations, in layer2.bn1" in note
    assert "| val/accuracy, exported | 0.95 (0.94 with running statistics) |" in note


def test_page_of_a_failure_says_why_and_whose_turn_it_is() -> None:
    failed = job(
        state=JobState.FAILED,
        attempt=1,
        reason=FailureReason.USER_ERROR,
        message="x | y <b> of a_b\x1b[2J\n" + "long " * 1000,
    )

    note = run_note(failed, URL)

    assert "**failed** (user_error), 1 attempt" in note
    assert r"> x \| y &lt;b&gt; of a\_b\\x1b\[2J" + "\n> long" in note
    assert note.count("Your code, model or data raised") == 1
    assert len(note) < 5000  # MLflow's limit for a tag


def test_page_of_a_model_that_needs_no_population_statistics() -> None:
    certificate = CERTIFICATE | {"population": None}
    model = {"uri": "models:/m-1", "registered": None, "certificate": certificate}

    note = run_note(job(state=JobState.SUCCEEDED, model=model), URL)

    assert "population statistics" not in note
    assert "| model | `models:/m-1` |" in note


def test_pick_of_auto_is_explained() -> None:
    spec = read_spec(SPEC | {"norm": {"kind": "auto"}})

    note = run_note(new_job(spec, "ann", datetime(2026, 1, 1, tzinfo=UTC)), URL)

    assert "(picked by auto: " in note
    assert "the alternative: " in note


def test_advice_that_a_worker_gave_already_is_not_given_twice() -> None:
    told = advised("It raised.", FailureReason.USER_ERROR)

    assert advised(told, FailureReason.USER_ERROR) == told
    assert run_note(job(state=JobState.FAILED, reason=FailureReason.USER_ERROR, message=told), URL).count(told) == 1


def test_advice_follows_what_happened_as_a_sentence_of_its_own() -> None:
    assert "RuntimeError: boom of mine. Your code" in advised("RuntimeError: boom of mine", FailureReason.USER_ERROR)
    assert "It raised. Your code" in advised("It raised.", FailureReason.USER_ERROR)
    assert advised("", FailureReason.USER_ERROR).startswith("Your code")


def test_job_of_a_study_leads_to_the_curves_of_the_study() -> None:
    alone, of_a_study = (run_note(job(experiment_id="3", labels=labels), URL) for labels in ({}, {"study": "study_1"}))

    assert "[charts, scores first](/#/experiments/3/runs?viewStateShareKey=syncnorm&" in alone
    assert "[charts, scores first](/#/experiments/3/runs?viewStateShareKey=study_1&" in of_a_study
    assert "viewStateShareKey=my-own&" not in run_note(job(experiment_id="3", labels={"study": "my-own"}), URL)
    odd = run_note(job(experiment_id="3", labels={"study": "study_1) [x](http://other"}), URL)
    assert "viewStateShareKey=study_1%29%20%5Bx%5D%28http%3A%2F%2Fother&" in odd
