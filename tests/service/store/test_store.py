"""What the store promises, on every database it runs on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import sqlalchemy as sa

from syncnorm.service.api.views.attempt_view import attempt_views
from syncnorm.service.api.views.job_view import job_text, job_view
from syncnorm.service.jobs.actors import Actor
from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.exports.export import Export, ExportState
from syncnorm.service.jobs.job import ARROWS, RUN_STATUS, Attempt, Job, JobState, NewEvent, new_fence
from syncnorm.service.jobs.study import Study, new_study
from syncnorm.service.jobs.study_spec import expand, read_study
from syncnorm.service.store import (
    AddOutcome,
    AuditQuery,
    JobQuery,
    NewJob,
    Store,
    StoredResponse,
    StoredToken,
    schema,
    sort_value,
)
from syncnorm.service.store.database import Database
from syncnorm.service.store.job_query import SORTS
from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import CheckpointFact, LogLine, Placement, RankPlacement
from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers.fakes import Clock
from tests.helpers.service.databases import postgres_programs, postgres_server

T = TypeVar("T")
SPEC = {
    "name": "job",
    "labels": {"a": "b"},
    "model": {"name": "resnet"},
    "data": {"name": "digits", "batch_size": 32},
    "resources": {"workers": 2},
}
HEARD = NewEvent("heard", "Something.")
RANKS = [RankPlacement(rank=0, host="a", pid=1, node_id="n1", gpu="H200"), RankPlacement(rank=1, host="b", pid=2)]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("store") / "service.db"
        with closing(Database(f"sqlite:///{path}", synchronous="OFF")) as made:
            made.migrate()
            yield made
        return
    programs: Path | None = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with postgres_server(programs) as url, closing(Database(url)) as made:
        made.migrate()
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> Store:
    with database.write() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(sa.delete(table))
    return Store(database, clock)


def submit(store: Store, clock: Clock) -> Job:
    job = new_job(read_spec(SPEC), "ann", clock())
    store.jobs.add(job, HEARD)
    return job


def begin(store: Store, clock: Clock, job: Job) -> tuple[Job, Attempt]:
    attempt = Attempt(f"{job.id}-1", job.id, 1, new_fence(), clock(), clock())
    moved = store.jobs.move(job, JobState.STARTING, {"attempt": 1}, event=HEARD, new_attempt=attempt)
    assert moved is not None
    return moved, attempt


def test_migrations_make_exactly_the_tables_of_the_schema(database: Database) -> None:
    with database.read() as connection:
        inspector = sa.inspect(connection)
        for table in schema.metadata.sorted_tables:
            found = {column["name"]: column["nullable"] for column in inspector.get_columns(table.name)}
            assert found == {column.name: column.nullable for column in table.columns}, table.name
            assert {index["name"] for index in inspector.get_indexes(table.name)} >= {
                index.name for index in table.indexes
            }


def test_job_comes_back_as_it_was_stored(store: Store, clock: Clock) -> None:
    job = submit(store, clock)

    assert store.jobs.get(job.id) == job
    assert store.jobs.get("job_unknown") is None


def test_move_is_refused_when_somebody_was_faster(store: Store, clock: Clock) -> None:
    job = submit(store, clock)

    first = store.jobs.move(job, JobState.CANCELLED, event=HEARD)
    second = store.jobs.move(job, JobState.STARTING, event=HEARD)

    assert first is not None
    assert (first.state, first.version) == (JobState.CANCELLED, 2)
    assert second is None
    assert store.jobs.get(job.id) == first
    assert len(store.history.events(job.id)) == 2


@pytest.mark.parametrize("source", list(JobState))
@pytest.mark.parametrize("target", list(JobState))
def test_only_moves_of_the_table_are_possible(store: Store, clock: Clock, source: JobState, target: JobState) -> None:
    job = replace(new_job(read_spec(SPEC), "ann", clock()), state=source)
    store.jobs.add(job, HEARD)

    if source is target or (source, target) in ARROWS:
        assert store.jobs.move(job, target, event=HEARD) is not None
    else:
        with pytest.raises(ValueError, match=f"a job can't go from {source} to {target}"):
            store.jobs.move(job, target, event=HEARD)


def test_of_many_movers_exactly_one_wins(store: Store, clock: Clock) -> None:
    job = submit(store, clock)
    start = threading.Barrier(8)
    won: list[Job | None] = []

    def mover() -> None:
        start.wait()
        won.append(store.jobs.move(job, JobState.STARTING, event=HEARD))

    threads = [threading.Thread(target=mover) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(one is not None for one in won) == 1
    assert len(store.history.events(job.id)) == 2


def new(clock: Clock, owner: str, key: str | None = None) -> NewJob:
    job = new_job(read_spec(SPEC), owner, clock())
    return NewJob(job, HEARD, key, StoredResponse("hash", {"id": job.id}))


def test_same_key_is_kept_once_even_when_sent_at_once(store: Store, clock: Clock) -> None:
    start = threading.Barrier(8)
    results: list[StoredResponse | AddOutcome] = []

    def submitter() -> None:
        mine = [new(clock, "ann", "key"), new(clock, "ann", "key")]
        start.wait()
        results.extend(store.jobs.add_all(mine))

    threads = [threading.Thread(target=submitter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    kept = store.jobs.find(JobQuery())
    assert len(kept) == 1
    assert results.count(AddOutcome.STORED) == 1
    assert [one for one in results if one is not AddOutcome.STORED] == 15 * [StoredResponse("hash", {"id": kept[0].id})]


def at_once(actions: Sequence[Callable[[], T]]) -> list[T]:
    """The results, each from a thread of its own, all of which begin together."""
    start = threading.Barrier(len(actions))

    def act(action: Callable[[], T]) -> T:
        start.wait()
        return action()

    with ThreadPoolExecutor(len(actions)) as threads:
        return list(threads.map(act, actions))


def test_exports_asked_for_at_once_get_numbers_of_their_own(store: Store, clock: Clock) -> None:
    job = submit(store, clock)

    made = at_once([lambda: store.exports.add(job, {}, lambda _: StoredResponse("", {}))] * 8)

    assert sorted(one.number for one in made if isinstance(one, Export)) == list(range(2, 10))
    assert [one.number for one in store.exports.of_job(job.id)] == list(range(2, 10))


def test_export_under_one_key_is_stored_once_even_for_two_jobs_at_once(store: Store, clock: Clock) -> None:
    jobs = [submit(store, clock), submit(store, clock)]

    def ask(job: Job) -> StoredResponse | Export | AddOutcome | None:
        return store.exports.add(job, {}, lambda export: StoredResponse(export.job_id, {}), ("ann", "key"))

    results = at_once([partial(ask, job) for job in jobs * 4])

    (kept,) = [one for job in jobs for one in store.exports.of_job(job.id)]
    assert [one for one in results if isinstance(one, Export)] == [kept]
    assert results.count(StoredResponse(kept.job_id, {})) == 7


def test_owner_with_too_many_exports_is_refused_until_some_are_over(store: Store, clock: Clock) -> None:
    job = submit(store, clock)

    def ask(key: str) -> StoredResponse | Export | AddOutcome | None:
        return store.exports.add(job, {}, lambda _: StoredResponse("", {}), ("ann", key), most_unfinished=1)

    first, refused = ask("a"), ask("b")
    assert isinstance(first, Export)
    done = store.exports.change(first, {"state": ExportState.FAILED})
    again = ask("b")

    assert refused is AddOutcome.TOO_MANY
    assert isinstance(again, Export)
    assert done is not None
    assert store.exports.change(first, {"state": ExportState.RUNNING}) is None  # it has changed since


def test_keys_of_two_owners_do_not_meet(store: Store, clock: Clock) -> None:
    results = store.jobs.add_all([new(clock, "ann", "key"), new(clock, "bob", "key")])

    assert results == [AddOutcome.STORED] * 2


def test_owner_with_too_many_jobs_is_refused_alone_and_the_key_stays_free(store: Store, clock: Clock) -> None:
    batch = [
        new(clock, "ann"),
        new(clock, "ann", "a"),
        new(clock, "ann", "b"),
        new(clock, "ann", "b"),
        new(clock, "bob"),
    ]

    first = store.jobs.add_all(batch, most_unfinished=2)
    later = store.jobs.add_all([new(clock, "ann", "a"), new(clock, "ann", "b")], most_unfinished=3)

    stored, many = AddOutcome.STORED, AddOutcome.TOO_MANY
    assert first == [stored, stored, many, many, stored]
    assert later == [batch[1].answer, stored]


@pytest.mark.parametrize("state", list(JobState))
def test_job_is_unsettled_until_its_run_was_told_the_state(store: Store, clock: Clock, state: JobState) -> None:
    job = replace(new_job(read_spec(SPEC), "ann", clock()), state=state)
    store.jobs.add(job, HEARD)
    found = {}

    for told in (None, *RUN_STATUS.values()):
        store.jobs.note(job, {"run_id": "run", "run_status": told})
        found[told] = store.workload.unsettled() == {job.id}
    store.jobs.note(job, {"run_id": None})

    assert found == {told: told != RUN_STATUS[state] for told in found}
    assert store.workload.unsettled() == set()


def test_follower_of_many_writers_misses_no_event(store: Store, clock: Clock) -> None:
    job, attempt = begin(store, clock, submit(store, clock))
    writers, each = 6, 40
    seen: list[str] = []

    def write(name: int) -> None:
        for number in range(each):
            store.history.add_event(job.id, NewEvent("note", f"{name} {number}"))
            store.reports.add_event(attempt.id, attempt.fence, NewEvent("note", f"w{name} {number}"))

    def follow() -> None:
        after = 0
        while len(seen) < 2 * writers * each + 2:
            for event in store.history.events(job.id, after):
                seen.append(event.message)
                after = event.seq
            if not any(thread.is_alive() for thread in threads) and not store.history.events(job.id, after):
                return

    threads = [threading.Thread(target=write, args=(name,)) for name in range(writers)]
    for thread in threads:
        thread.start()
    follow()
    for thread in threads:
        thread.join()

    assert len(seen) == 2 * writers * each + 2


def test_stale_fence_changes_nothing(store: Store, clock: Clock) -> None:
    job, attempt = begin(store, clock, submit(store, clock))
    line = LogLine(rank=0, seq=1, at="now", level="INFO", text="x")
    fact = CheckpointFact(fence="0" * 32, path="p", step=1, epoch=0, digest="d", size_bytes=1)

    answers = [
        store.reports.heartbeat(attempt.id, "0" * 32, 30, "training", 5),
        store.reports.progress(attempt.id, "0" * 32, 30, 5, {"step": 5}),
        store.reports.add_lines(attempt.id, "0" * 32, [line]),
        store.reports.add_checkpoint(attempt.id, fact),
        store.reports.add_event(attempt.id, "0" * 32, HEARD),
        store.reports.placement(attempt.id, Placement(fence="0" * 32, ranks=RANKS)),
        store.reports.exit(attempt.id, "0" * 32, {}),
    ]

    assert answers == [None] * 7
    assert store.attempts.get(attempt.id) == attempt
    assert store.jobs.get(job.id) == job
    assert (store.history.lines(job.id), store.history.checkpoints(job.id), len(store.history.events(job.id))) == (
        [],
        [],
        2,
    )


def test_ended_attempt_is_told_so_but_keeps_its_last_lines(store: Store, clock: Clock) -> None:
    job, attempt = begin(store, clock, submit(store, clock))
    store.jobs.move(job, JobState.FAILED, event=HEARD, attempt_changes={"ended_at": clock()})
    line = LogLine(rank=0, seq=1, at="now", level="ERROR", text="why")

    assert store.reports.heartbeat(attempt.id, attempt.fence, 30, None, None) is None
    assert store.reports.add_lines(attempt.id, attempt.fence, [line]) is None
    assert [one.text for one in store.history.lines(job.id)] == ["why"]


def test_ranks_are_kept_with_where_they_run(store: Store, clock: Clock) -> None:
    _, attempt = begin(store, clock, submit(store, clock))

    store.reports.placement(attempt.id, Placement(fence=attempt.fence, ranks=RANKS))

    found = store.attempts.get(attempt.id)
    assert found is not None
    assert found.placement == [rank.model_dump() for rank in RANKS]
    assert attempt_views([found])[0].placement == RANKS


def test_word_that_comes_late_does_not_set_the_phase_back(store: Store, clock: Clock) -> None:
    """The driver's, which had to try again while rank 0 went on: the job would stay without its room, and never run."""
    _, attempt = begin(store, clock, submit(store, clock))

    for phase in ("preparing", "training", "starting_workers"):
        store.reports.heartbeat(attempt.id, attempt.fence, 30, phase, None)

    kept = store.attempts.get(attempt.id)
    assert kept is not None
    assert kept.phase == "training"
    assert kept.phases is not None
    assert kept.phases.keys() == {"preparing", "training", "starting_workers"}


def test_heartbeat_renews_the_lease_and_keeps_the_first_time_of_a_phase(store: Store, clock: Clock) -> None:
    _, attempt = begin(store, clock, submit(store, clock))

    store.reports.heartbeat(attempt.id, attempt.fence, 30, "training", 5)
    first = store.attempts.get(attempt.id)
    clock.advance(10)
    store.reports.heartbeat(attempt.id, attempt.fence, 30, "training", 3)
    second = store.attempts.get(attempt.id)

    assert first is not None
    assert second is not None
    assert first.phases == second.phases
    assert (second.step, second.lease_expires_at) == (5, clock.now.replace(second=40))


def test_checkpoints_that_were_deleted_are_not_listed(store: Store, clock: Clock) -> None:
    job, attempt = begin(store, clock, submit(store, clock))
    about = {"fence": attempt.fence, "path": "p", "epoch": 0, "digest": "d", "size_bytes": 1}

    for step, kept in ((10, [10]), (20, [10, 20]), (30, [10, 30]), (40, None)):
        store.reports.add_checkpoint(attempt.id, CheckpointFact(step=step, kept=kept, **about))
    store.reports.add_checkpoint(attempt.id, CheckpointFact(step=30, kept=[30], **about))  # once more, and late

    assert [one.step for one in store.history.checkpoints(job.id)] == [40, 30]


def test_lines_and_checkpoints_sent_twice_are_kept_once(store: Store, clock: Clock) -> None:
    job, attempt = begin(store, clock, submit(store, clock))
    lines = [LogLine(rank=1, seq=seq, at="now", level="INFO", text=f"100% {seq}_") for seq in (1, 2)]
    fact = CheckpointFact(fence=attempt.fence, path="p", step=1, epoch=0, digest="d", size_bytes=1)

    for _ in range(2):
        store.reports.add_lines(attempt.id, attempt.fence, lines)
        store.reports.add_checkpoint(attempt.id, fact)

    assert [line.seq for line in store.history.lines(job.id)] == [1, 2]
    assert [line.seq for line in store.history.lines(job.id, text="% 2_")] == [2]
    assert store.history.lines(job.id, text="1_0") == []
    assert len(store.history.checkpoints(job.id)) == 1


def test_one_holder_of_the_lease_at_a_time_and_a_new_token_for_each(store: Store, clock: Clock) -> None:
    first = store.leases.take("a", 15)
    assert store.leases.take("b", 15) is None
    assert store.leases.take("a", 15) == first
    clock.advance(16)

    second = store.leases.take("b", 15)

    assert first is not None
    assert second is not None
    assert second > first


def test_lease_is_written_again_only_once_half_of_it_is_over(store: Store, clock: Clock, database: Database) -> None:
    def ends_at() -> datetime:
        with database.read() as c:
            return c.execute(sa.select(schema.leases.c.expires_at)).scalar_one()

    store.leases.take("a", 15)
    first = ends_at()
    clock.advance(7)
    store.leases.take("a", 15)
    early = ends_at()
    clock.advance(1)
    store.leases.take("a", 15)

    assert early == first
    assert ends_at() == clock() + timedelta(seconds=15)


@pytest.mark.parametrize("column", ["expires_at", "token"])
def test_lease_that_cannot_be_read_is_replaced_and_said_once(
    store: Store, database: Database, caplog: pytest.LogCaptureFixture, column: str
) -> None:
    before = store.leases.take("a", 15)
    with database.write() as c:
        odd = {"expires_at": "'yesterday'", "token": "-1"}[column]
        c.execute(sa.text(f"UPDATE leases SET {column} = {odd}"))

    tokens = [store.leases.take("b", 15) for _ in range(3)]

    assert len(set(tokens)) == 1
    assert tokens[0] not in (None, before)
    assert [record.message for record in caplog.records] == ["a lease can't be read; replacing it"]
    assert store.leases.take("a", 15) is None


def test_row_that_cannot_be_read_hides_no_other_of_a_list(store: Store, database: Database, clock: Clock) -> None:
    """Each is shown with what can be read of it, and says what can't."""
    job, attempt = begin(store, clock, submit(store, clock))
    store.secrets.put("ann", "KEY", "sealed")
    store.tokens.add(StoredToken("1", "ann", "0", ["read"], clock(), None, None))
    store.reports.add_checkpoint(
        attempt.id, CheckpointFact(fence=attempt.fence, path="/c", step=1, epoch=0, digest="0", size_bytes=1)
    )
    with database.write() as c:
        for damage in (
            "audit SET after = '7'",
            "tokens SET scopes = '\"word\"', expires_at = 'never'",
            "secrets SET updated_at = 'once'",
            "checkpoints SET at = 'once'",
            "events SET data = '[]'",
        ):
            c.execute(sa.text(f"UPDATE {damage}"))

    (token,) = store.tokens.all()
    entries, events = store.audit.find(), store.history.events(job.id)
    problems = [token.problem, store.secrets.find("ann")[0].problem, store.history.checkpoints(job.id)[0].problem]
    told = [*problems, *(entry.detail for entry in entries), *(event.message for event in events)]

    assert all("This row can't be read as a whole: " in str(text) for text in told)
    assert "scopes must be a JSON array, got 'word'" in str(token.problem)
    assert (token.owner, token.scopes, token.expires_at is not None) == ("ann", [], True)
    assert entries[0].action == "token.create"


def test_list_shows_jobs_in_every_state_as_they_are_shown_one_by_one(store: Store, clock: Clock) -> None:
    whole = {
        "progress": {"epoch": 1, "step": 3, "percent": 12.5, "metrics": {"val/loss": 0.25}},
        "experiment_id": "1",
        "run_id": "r",
        "message": 'It said "so"\nand ü.',
        "started_at": clock(),
        "model": {"uri": "runs:/r/model", "registered": None, "certificate": {"max_difference": 0.0}, "more": 1},
    }
    jobs = []
    for state in JobState:
        reason = FailureReason.USER_ERROR if state is JobState.FAILED else None
        job = new_job(read_spec(SPEC | {"name": state.value, "labels": {"a": 'ü"'}}), "ann", clock())
        jobs.append(replace(job, state=state, reason=reason, **(whole if state is not JobState.QUEUED else {})))
        store.jobs.add(jobs[-1], HEARD)

    shown = [json.loads(job_text(one, "http://mlflow")) for one in store.jobs.find(JobQuery(sort="created_at"))]

    assert shown == [
        job_view(job, "http://mlflow").model_dump(mode="json") for job in sorted(jobs, key=lambda job: job.id)
    ]


@pytest.mark.parametrize("sort", [sign + by for by in SORTS for sign in ("", "-")])
def test_pages_of_every_order_hold_every_job_once(store: Store, clock: Clock, sort: str) -> None:
    for number in range(13):
        clock.advance(1)
        finished = {"state": JobState.FAILED, "finished_at": clock()} if number % 3 else {}
        about = {"name": f"Job {'aB'[number % 2]}-{number % 4}", "priority": number % 5 - 2}
        store.jobs.add(replace(new_job(read_spec(SPEC), "ann", clock()), **about, **finished), HEARD)
    whole = [one.id for one in store.jobs.find(JobQuery(sort=sort))]
    seen: list[str] = []
    after = None

    while page := store.jobs.find(JobQuery(sort=sort, limit=4, after=after)):
        seen += [one.id for one in page]
        after = (sort_value(page[-1], sort), page[-1].id)

    assert seen == whole
    assert len(set(whole)) == 13


def test_results_of_a_reconciler_that_lost_its_lease_are_dropped(store: Store, clock: Clock) -> None:
    job = submit(store, clock)
    token = store.leases.take("a", 15)
    clock.advance(16)
    store.leases.take("b", 15)

    assert store.jobs.move(job, JobState.STARTING, event=HEARD, lease=token) is None
    assert store.attempts.note("any", {"step": 1}, token) is False
    assert store.jobs.get(job.id) == job


def test_deleting_a_job_takes_everything_along(store: Store, clock: Clock) -> None:
    job, attempt = begin(store, clock, submit(store, clock))
    store.reports.add_lines(attempt.id, attempt.fence, [LogLine(rank=0, seq=1, at="now", level="INFO", text="x")])
    done = store.jobs.move(job, JobState.FAILED, event=HEARD, attempt_changes={"ended_at": clock()})
    assert done is not None

    early = store.jobs.delete(done)
    store.attempts.note(attempt.id, {"released_at": clock()})
    late = store.jobs.delete(done)

    assert (early, late) == (False, True)
    assert (store.history.events(job.id), store.history.lines(job.id), store.attempts.get(attempt.id)) == ([], [], None)


# Studies


def add_study(store: Store, clock: Clock, key: str | None = None) -> tuple[Study, StoredResponse | AddOutcome]:
    spec = read_study({"name": "s", "base": SPEC, "grid": {"norm.kind": ["batch", "group"]}, "seeds": [0, 1]})
    study, children, jobs = new_study(spec, expand(spec), "ann", clock())
    answer = StoredResponse("hash", {"id": study.id})
    return study, store.studies.add(study, children, jobs, None if key is None else (key, answer))


def test_study_comes_back_with_a_queued_job_for_every_child(store: Store, clock: Clock) -> None:
    study, _ = add_study(store, clock)

    family = store.studies.family(study.id)

    assert store.studies.get(study.id) == study
    assert [(child.number, child.point, child.seed) for child, _ in family] == [
        (number, {"norm.kind": kind}, seed)
        for number, (kind, seed) in enumerate([("batch", 0), ("batch", 1), ("group", 0), ("group", 1)], start=1)
    ]
    assert [job and (job.state, job.spec.document["seed"], job.norm) for _, job in family] == [
        (JobState.QUEUED, child.seed, child.point["norm.kind"]) for child, _ in family
    ]
    assert all([event.kind for event in store.history.events(child.job_id)] == ["queued"] for child, _ in family)
    assert len(store.jobs.find(JobQuery(labels=(("study", study.id),)))) == 4


def test_study_under_a_used_key_is_not_stored_again(store: Store, clock: Clock) -> None:
    first, _ = add_study(store, clock, key="k")

    _, before = add_study(store, clock, key="k")

    assert before == StoredResponse("hash", {"id": first.id})
    assert len(store.studies.find(None, None, 10)) == 1
    assert len(store.jobs.find(JobQuery())) == 4


def test_study_that_can_not_be_written_whole_leaves_nothing(store: Store, clock: Clock) -> None:
    spec = read_study({"name": "s", "base": SPEC, "grid": {"norm.kind": ["batch", "group"]}})
    study, children, jobs = new_study(spec, expand(spec), "ann", clock())

    with pytest.raises(sa.exc.IntegrityError):
        store.studies.add(study, children, [*jobs, jobs[0]], ("k", StoredResponse("hash", {})))

    assert store.studies.get(study.id) is None
    assert store.jobs.find(JobQuery()) == []
    assert store.idempotency.answer("ann", "k") is None


def test_family_is_asked_at_once_and_each_child_for_what_it_can_do(store: Store, clock: Clock) -> None:
    study, _ = add_study(store, clock)
    (_, first), (_, second), *_ = store.studies.family(study.id)
    assert first is not None
    assert second is not None
    begin(store, clock, first)
    store.jobs.move(second, JobState.CANCELLED, event=HEARD)

    changed = store.studies.apply(study.id, "pause", clock())
    again = store.studies.apply(study.id, "pause", clock())

    assert len(changed) == 3
    assert again == []
    stops = [job and (job.state, job.stop) for _, job in store.studies.family(study.id)]
    assert stops == [
        (JobState.STARTING, "pause"),
        (JobState.CANCELLED, None),
        (JobState.QUEUED, "pause"),
        (JobState.QUEUED, "pause"),
    ]


def test_study_is_unreported_until_it_is_and_again_when_a_child_moved_on(store: Store, clock: Clock) -> None:
    study, _ = add_study(store, clock)
    for _, job in store.studies.family(study.id):
        assert job is not None
        store.jobs.move(job, JobState.CANCELLED, {"finished_at": clock()}, event=HEARD)
    unreported = [one.id for one in store.studies.unreported()]
    clock.advance(1)
    store.studies.note(study.id, {"reported_at": clock()})
    reported = store.studies.unreported()
    store.studies.apply(study.id, "retry", clock())

    assert unreported == [study.id]
    assert reported == []
    assert [one.id for one in store.studies.unreported()] == [study.id]


def test_children_are_counted_by_state_with_deleted_ones(store: Store, clock: Clock) -> None:
    study, _ = add_study(store, clock)
    (_, first), (_, second), *_ = store.studies.family(study.id)
    assert first is not None
    assert second is not None
    cancelled = store.jobs.move(first, JobState.CANCELLED, event=HEARD)
    assert cancelled is not None
    store.jobs.delete(cancelled)
    store.jobs.move(second, JobState.PAUSED, event=HEARD)

    counts = store.studies.count_children([study.id, "study_unknown"])

    assert counts == {study.id: {"deleted": 1, "paused": 1, "queued": 2}, "study_unknown": {}}


# Who did it


def test_changes_and_their_audit_are_written_together(store: Store, clock: Clock) -> None:
    ann, job = Actor("user", "ann", "0123456789abcdef", "req_1"), submit(store, clock)
    other = submit(store, clock)

    changed = store.jobs.change(job, {"priority": 7, "limits": {**job.spec.limits, "deadline_s": 60}}, ann)
    asked = store.jobs.apply([job.id, other.id, "job_none"], "cancel", clock(), ann, owner="ann")
    foreign = store.jobs.apply([job.id], "cancel", clock(), ann, owner="bob")
    stale = store.jobs.change(job, {"priority": 8}, ann)

    assert changed is not None
    assert (changed.priority, changed.deadline_s, changed.spec.limits["deadline_s"]) == (7, 60, 60)
    assert {name: one.outcome for name, one in asked.items()} == {job.id: "done", other.id: "done"}
    assert (asked[job.id].job.stop, asked[job.id].job.stop_by) == ("cancel", "ann (token 0123456789abcdef)")
    assert (foreign, stale) == ({}, None)
    found = store.audit.find(AuditQuery(object=job.id))
    assert [(one.action, one.owner, one.token_id, one.request_id) for one in found] == [
        ("job.cancel", "ann", "0123456789abcdef", "req_1"),
        ("job.change", "ann", "0123456789abcdef", "req_1"),
    ]
    assert (found[1].before, found[1].after) == (
        {"priority": 0, "limits": job.spec.limits},
        {"priority": 7, "limits": {**job.spec.limits, "deadline_s": 60}},
    )
    assert len(store.audit.find(AuditQuery(actor="0123456789abcdef", action="job", since=clock()))) == 3
    assert store.audit.find(AuditQuery(until=clock())) == []
    assert [one.seq for one in store.audit.find(AuditQuery(before=found[0].seq))] == [found[1].seq]
    event = store.history.events(job.id)[-1]
    assert (event.actor_kind, event.actor, event.token_id, event.request_id) == ("user", "ann", ann.token_id, "req_1")


def test_a_change_that_fails_leaves_neither_event_nor_audit(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(store, clock)
    monkeypatch.setattr("syncnorm.service.store.tables.jobs.add_audit", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        store.jobs.apply([job.id], "cancel", clock(), Actor("user", "ann"))

    assert store.jobs.get(job.id) == job
    assert [event.kind for event in store.history.events(job.id)] == ["heard"]


def test_ids_by_column_state_and_label(store: Store, clock: Clock) -> None:
    first, second = submit(store, clock), submit(store, clock)
    begin(store, clock, second)

    assert store.jobs.find_ids(JobQuery(owner="ann", labels=(("a", "b"),))) == [second.id, first.id]
    assert store.jobs.find_ids(JobQuery(states=("queued",))) == [first.id]
    assert store.jobs.find_ids(JobQuery(after=(None, second.id))) == [first.id]
    assert store.jobs.find_ids(JobQuery(owner="bob")) == store.jobs.find_ids(JobQuery(labels=(("a", "c"),))) == []


def break_row(store: Store, job: Job, **values: str) -> None:
    with store._db.write() as connection:
        for name, value in values.items():
            update = sa.text(f"UPDATE jobs SET {name} = :value WHERE id = :id")
            connection.execute(update, {"value": value, "id": job.id})


def test_row_that_can_not_be_read_hides_no_other(store: Store, clock: Clock) -> None:
    fine, broken = submit(store, clock), submit(store, clock)
    break_row(store, broken, state="archiving", queued_at="yesterday")
    faults: dict[str, str] = {}

    found = {job.id: job for job in store.workload.jobs([fine.id, broken.id], faults)}
    listed = {one.id: one.state for one in store.jobs.find(JobQuery())}

    assert found[fine.id] == fine
    assert (found[broken.id].state, found[broken.id].name) == (JobState.FAILED, "job")
    assert set(faults) == {broken.id}
    assert "state 'archiving'" in faults[broken.id] and "queued_at must be a time, got 'yesterday'" in faults[broken.id]
    assert listed == {fine.id: "queued", broken.id: "failed"}
    assert store.workload.strays() == {broken.id}


def test_job_that_is_set_aside_ends_with_its_attempt_and_can_be_retried(store: Store, clock: Clock) -> None:
    job, attempt = begin(store, clock, submit(store, clock))
    break_row(store, job, not_before="soon")

    state = store.set_aside.job(job.id, "It broke.", "Traceback of it")
    again = store.set_aside.job(job.id, "It broke again.")

    faults: dict[str, str] = {}
    ended = store.workload.jobs([job.id], faults)[0]
    assert (state, again, ended.state, ended.reason) == ("failed", "failed", "failed", FailureReason.INTERNAL)
    assert ended.message == "It broke.\n\nTraceback of it"
    assert (ended.not_before, faults) == (None, {})
    assert store.attempts.of_job(job.id)[0].ended_at == clock()
    assert store.attempts.of_job(job.id)[0].released_at is None
    assert [event.kind for event in store.history.events(job.id)].count("failed") == 1
    assert store.attempts.release(attempt.id) is not None


def test_job_that_is_set_aside_while_it_is_cancelled_ends_cancelled(store: Store, clock: Clock) -> None:
    job = submit(store, clock)
    asked = store.jobs.move(job, job.state, {"stop": "cancel"}, event=HEARD)

    assert asked is not None
    assert store.set_aside.job(job.id, "It broke.") is JobState.CANCELLED


def test_lease_is_renewed_by_its_holder_alone(store: Store, clock: Clock) -> None:
    token = store.leases.take("a", 15)
    assert token is not None
    clock.advance(10)
    renewed = store.leases.renew("a", token, 15)
    clock.advance(10)

    assert (renewed, store.leases.take("b", 15)) == (True, None)
    clock.advance(10)
    assert store.leases.take("b", 15) == token + 1
    assert not store.leases.renew("a", token, 15)
