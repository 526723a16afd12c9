"""The page of a job: what it shows in each state, escaped, and how much of it."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa
import typer.main

from syncnorm.service.api.pages.job_page import _COMMANDS, _WHILE_ACTIVE
from syncnorm.service.cli.main import app
from syncnorm.service.jobs.job import ACTIVE, JobState, NewEvent
from syncnorm.service.reconciler.run_status import RunStatus
from syncnorm.service.store import schema
from syncnorm.trainer.contract.failure import FailureReason
from tests.helpers.service.api import SPEC, api
from tests.helpers.service.cluster_day import fill, log_line
from tests.helpers.service.web_page import items, rows, section, text

HOSTILE = "</pre></title><script>alert(1)</script><img src=x onerror=alert(2)>'\"{{7*7}}{% raw %}&lt;"
HIDING = "\x1b[2J\u202egnp.exe\u2066"


def test_running_job_shows_progress_log_events_and_links(tmp_path: Path) -> None:
    with api(tmp_path) as (http, world):
        job_id = fill(world, 12)["running"][0]
        shown = http.get(f"/jobs/{job_id}")
        api_view = http.get(f"/v1/jobs/{job_id}").json()
        explained = http.get(f"/v1/jobs/{job_id}/explain").json()

    assert explained["message"] in text(shown)
    assert "30 % epoch 3 of 10, step 360 of 1200 36:15 left" in section(shown, "progress")
    assert "val/accuracy 0.7421" in section(shown, "progress")
    assert "Slowest: rank 1; the others wait for it during 12 % of a step." in section(shown, "progress")
    assert "step 120/1200 train/loss 1.1000" in section(shown, "log")
    assert rows(shown, "events")[-1].endswith("queued Submitted. the service")
    assert "90.0 MiB" in section(shown, "checkpoints")
    assert api_view["mlflow"]["url"] in items(shown, "href")
    assert f"/v1/jobs/{job_id}/files" in items(shown, "href")
    assert f"syncnorm cancel {job_id}" in section(shown, "commands")
    assert "kind: sync_batch" in section(shown, "spec")
    assert 'data-refresh="5"' in shown.text


def test_note_of_the_mlflow_run_leads_to_sections_of_the_page(tmp_path: Path) -> None:
    with api(tmp_path) as (http, world):
        job_id = fill(world, 12)["running"][0]
        note = RunStatus(world.reconciler.backends).note(world.job(job_id))
        links = re.findall(r"\]\(([^)]+)\)", note)
        shown = http.get(urlsplit(links[0]).path)

    assert job_id in section(shown, "commands")
    places = {link.partition("#")[2] for link in links[1:] if link.startswith(links[0])}
    assert places
    assert places <= set(items(shown, "id"))


def test_waiting_job_says_why_with_the_jobs_in_the_way(tmp_path: Path) -> None:
    with api(tmp_path) as (http, world):
        job_id = fill(world, 12)["queued"][0]
        shown = http.get(f"/jobs/{job_id}")
        explained = http.get(f"/v1/jobs/{job_id}/explain").json()

    assert explained["message"] in text(shown)
    assert {f"/jobs/{one}" for one in explained["blockers"][:5]} <= set(items(shown, "href"))
    assert f"{world.job(explained['blockers'][0]).name} {explained['blockers'][0]}" in text(shown)
    assert "No worker has written a line yet." in text(shown)


def test_failed_job_says_whose_turn_it_is_and_refreshes_seldom(tmp_path: Path) -> None:
    with api(tmp_path) as (http, world):
        failed = fill(world, 12)["failed"]
        shown = [http.get(f"/jobs/{job_id}") for job_id in failed]

    said = " ".join(text(one) for one in shown)
    assert "out_of_memory: A worker ran out of memory." in said
    assert all("Whose turn it is: the owner" in text(one) for one in shown)
    assert all('data-refresh="60"' in one.text for one in shown)


def test_page_of_a_job_that_failed_for_any_reason_names_a_turn(tmp_path: Path) -> None:
    j = schema.jobs.c
    with api(tmp_path) as (http, world):
        job = world.submit(name="broken")
        for reason in FailureReason:
            values = {"state": "failed", "reason": reason.value, "message": "It broke.", "finished_at": world.clock()}
            with world.database.write() as c:
                c.execute(sa.update(schema.jobs).where(j.id == job.id).values(**values))

            assert "Whose turn it is:" in text(http.get(f"/jobs/{job.id}")), reason
            assert len(rows(http.get("/"), "failed")) == 1


def test_whatever_users_write_is_text(tmp_path: Path) -> None:
    with api(tmp_path) as (http, world):
        world.cluster.nodes = ((HOSTILE, 4.0, 0.0),)
        job = world.submit(name="j", labels={"works": "99"})
        world.step()
        world.step()
        (attempt,) = world.store.attempts.unreleased()
        hostile = {"name": HOSTILE, "project": HOSTILE, "owner": HOSTILE, "message": HOSTILE, "norm": HOSTILE[:30]}
        fields = hostile | {"labels": {HOSTILE[:60]: HOSTILE}, "run_id": f'"><script>{HOSTILE}', "experiment_id": "1"}
        progress = {"step": 3, "metrics": {HOSTILE: 1.0, "val/x": HOSTILE}}
        world.store.reports.progress(attempt.id, attempt.fence, 30, 3, progress)
        lines = [log_line(world, 1, HOSTILE, "ERROR"), log_line(world, 2, HIDING)]
        world.store.reports.add_lines(attempt.id, attempt.fence, lines)
        world.store.reports.add_event(attempt.id, attempt.fence, NewEvent(f"user.{HOSTILE}", HOSTILE, {"a": HOSTILE}))
        with world.database.write() as c:
            c.execute(sa.update(schema.jobs).where(schema.jobs.c.id == job.id).values(**fields))
        world.reconciler.tick()
        pages = [http.get("/"), http.get(f"/jobs/{job.id}")]
        pages += [http.get("/jobs/%3Cscript%3Ealert(1)%3C%2Fscript%3E"), http.get("/?%3Cscript%3E=1")]

    for page in pages:
        assert page.text.count("<script") <= 1  # its own
        assert "<img" not in page.text
        assert "alert(1)</script>" not in page.text
        assert "\x1b" not in page.text and "\u202e" not in page.text
    assert "&lt;script&gt;alert(1)" in pages[1].text
    assert "{{7*7}}" in pages[1].text
    assert "\\x1b[2J\\u202egnp.exe\\u2066" in text(pages[1])


def test_link_that_is_no_web_address_is_left_out(tmp_path: Path) -> None:
    with api(tmp_path) as (http, world):
        object.__setattr__(http.app.state.context, "mlflow_uri", "javascript:alert(1)//")  # type: ignore[attr-defined]
        job_id = fill(world, 12)["running"][0]

        for path in ("/", f"/jobs/{job_id}"):
            assert "javascript:" not in http.get(path).text


def test_page_of_a_long_life_stays_short(tmp_path: Path) -> None:
    with api(tmp_path) as (http, world):
        job = world.submit(labels={"works": "99"})
        world.step()
        world.step()
        (attempt,) = world.store.attempts.unreleased()
        for start in range(1, 3001, 100):
            lines = [log_line(world, number, f"line {number} " + "x" * 5000) for number in range(start, start + 100)]
            world.store.reports.add_lines(attempt.id, attempt.fence, lines)
        for number in range(300):
            world.store.history.add_event(job.id, NewEvent("note", f"note {number}"))
        metrics = {f"val/m{number}": 1.0 for number in range(500)}
        world.store.reports.progress(attempt.id, attempt.fence, 30, 3, {"step": 3, "metrics": metrics})

        shown = http.get(f"/jobs/{job.id}")

    assert len(shown.text) < 250_000
    assert "line 3000 x" in section(shown, "log") and "line 2900 x" not in section(shown, "log")
    assert "note 299" in rows(shown, "events")[1] and len(rows(shown, "events")) == 25
    assert "and 470 more in MLflow" in section(shown, "progress")


def test_job_that_is_not_there_is_a_page(tmp_path: Path) -> None:
    with api(tmp_path, auth=True) as (http, _):
        shown = http.get("/jobs/job_0")

    assert (shown.status_code, shown.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "There is no job job_0." in text(shown)
    assert "/" in items(shown, "href")


def test_page_of_a_guarded_service_leads_to_commands_rather_than_json(tmp_path: Path) -> None:
    with api(tmp_path, auth=True) as (http, _):
        job_id = http.post("/v1/jobs", json=SPEC).json()["id"]
        shown = http.get(f"/jobs/{job_id}")

    assert not [href for href in items(shown, "href") if href.startswith("/v1/")]
    assert f"syncnorm explain {job_id}" in text(shown)


def test_commands_on_the_page_exist() -> None:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command in {*chain.from_iterable(_COMMANDS.values()), *_WHILE_ACTIVE, "events"}:
        verb, *options = command.split()

        known = {name for one in verbs[verb].params for name in one.opts}
        assert set(options) <= known, command
    assert set(_COMMANDS) | ACTIVE == set(JobState)
