"""`syncnorm cancel`, `pause`, `resume`, `retry`, `rm`: for one or many jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import typer

from syncnorm.service.cli.arguments import AsJson, Jobs, Labels
from syncnorm.service.cli.selection import job_id, matching
from syncnorm.service.cli.terminal import FINE, WRONG_USE, connect, err, exit_code, fail, fit, report, show_value
from syncnorm.service.client.client import Client, ClientError, ProblemError, ServiceUnreachableError

app = typer.Typer()
_UNDER_WAY = ("queued", "starting", "running")
_MOST_ASKED_ABOUT = 10
_MOST_AT_ONCE = 500
"""Jobs in one request."""
_SO_ALREADY = "nothing to do"


@dataclass(frozen=True)
class Answer:
    """What became of one job. said: what was done with it."""

    job: dict[str, Any]
    said: str = ""

    def __str__(self) -> str:
        return f"{self.job['id']} {self.job['state']}{self.said and ', '}{self.said}"


Answers = Iterator[Answer | ClientError]


def _ask_all(verb: str, done: str, client: Client, ids: Sequence[str]) -> Answers:
    """Ends with the first error that is not about one job."""
    for start in range(0, len(ids), _MOST_AT_ONCE):
        try:
            found = client.ask_many(verb, ids=ids[start : start + _MOST_AT_ONCE])
        except ClientError as error:
            yield error
            return
        for item in found["items"]:
            was_so = item["status"] == 200
            yield Answer(item["job"], _SO_ALREADY if was_so else done) if item["ok"] else ProblemError(item["problem"])


def _delete_each(client: Client, ids: Sequence[str]) -> Answers:
    for job in ids:
        try:
            client.delete(job)
        except ClientError as error:
            yield error
            if isinstance(error, ServiceUnreachableError):
                return
        else:
            yield Answer({"id": job, "state": "deleted"})


@dataclass(frozen=True)
class Verb:
    """states: those in which the verb is allowed. done: printed about a job after the verb."""

    name: str
    help: str
    states: tuple[str, ...]
    ask: Callable[[Client, Sequence[str]], Answers]


VERBS = (
    Verb(
        "cancel",
        "Ask jobs to stop for good. They keep their checkpoints, and can be retried.",
        (*_UNDER_WAY, "stopping", "paused", "finalizing"),
        partial(_ask_all, "cancel", "cancel requested"),
    ),
    Verb(
        "pause",
        "Ask jobs to stop with a checkpoint and free their resources until you resume them.",
        _UNDER_WAY,
        partial(_ask_all, "pause", "pause requested"),
    ),
    Verb(
        "resume",
        "Put paused jobs back into the queue. They continue from their last step.",
        ("paused",),
        partial(_ask_all, "resume", "continues from its last step"),
    ),
    Verb(
        "retry",
        "Put failed or cancelled jobs back into the queue. They continue from their last checkpoint.",
        ("failed", "cancelled"),
        partial(_ask_all, "retry", "continues from its last checkpoint"),
    ),
    Verb(
        "rm",
        "Delete finished jobs with their checkpoints. Their MLflow runs and registered models stay.",
        ("succeeded", "failed", "cancelled"),
        _delete_each,
    ),
)
Everything = Annotated[bool, typer.Option("--all", help="All jobs that you can see and that allow it.")]
Project = Annotated[str | None, typer.Option(help="All jobs of this project.")]
States = Annotated[
    list[str] | None, typer.Option("--state", help="All jobs in this state; may be given several times.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Change many jobs without asking you to confirm.")]


def _add(verb: Verb) -> None:
    def command(
        jobs: Jobs = None,
        *,
        everything: Everything = False,
        label: Labels = None,
        project: Project = None,
        state: States = None,
        yes: Yes = False,
        as_json: AsJson = False,
    ) -> None:
        filtered = everything or label or project or state
        if bool(jobs) == bool(filtered):
            fail(
                f"Say which jobs to {verb.name}: either their ids or names, or --all, --label, --project, --state.",
                WRONG_USE,
            )
        with connect() as client:
            if jobs:
                _carry_out(client, verb, jobs, as_json and len(jobs) > 1, as_json)
                return
            states = state or verb.states
            found = list(matching(client, states=states, labels=label or (), project=project))
            if found and not yes and _is_interactive():
                _confirm(verb, found)
            if not found and not as_json:
                print(f"No job to {verb.name}.")
            _carry_out(client, verb, [job["id"] for job in found], True, as_json)

    app.command(verb.name, help=verb.help)(command)


for _verb in VERBS:
    _add(_verb)


def _is_interactive() -> bool:
    return sys.stdin.isatty()


def _confirm(verb: Verb, jobs: Sequence[dict[str, Any]]) -> None:
    for job in jobs[:_MOST_ASKED_ABOUT]:
        shown = fit(job, err)
        print(f"{shown['id']}  {shown['name']}  {shown['state']}", file=sys.stderr)
    if len(jobs) > _MOST_ASKED_ABOUT:
        print(f"… and {len(jobs) - _MOST_ASKED_ABOUT} more", file=sys.stderr)
    if not typer.confirm(f"{verb.name} {len(jobs)} jobs?", err=True):
        print("Nothing was changed.", file=sys.stderr)
        raise typer.Exit(FINE)


def _carry_out(client: Client, verb: Verb, wanted: Sequence[str], as_list: bool, as_json: bool) -> None:
    """Apply the verb to each job. A refusal of one is printed and doesn't keep the others from being asked."""
    done, first_error = [], None
    for answer in _answers(client, verb, wanted):
        if isinstance(answer, ClientError):
            report(answer)
            first_error = first_error or answer
            continue
        done.append(answer.job)
        if not as_json:
            show_value(str(answer), False, str)
    if as_json and (done or as_list):
        show_value(done if as_list else done[0], True, str)
    if first_error is not None:
        raise typer.Exit(exit_code(first_error))


def _answers(client: Client, verb: Verb, wanted: Sequence[str]) -> Answers:
    """Of names that are no job's, then of the jobs, each once."""
    ids: dict[str, None] = {}
    for one in wanted:
        try:
            ids[job_id(client, one)] = None
        except ClientError as error:
            yield error
            if isinstance(error, ServiceUnreachableError):
                return
    yield from verb.ask(client, list(ids))
