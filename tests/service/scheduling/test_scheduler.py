"""What the scheduler promises, on examples and on very many random days."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.job import Job, JobState
from syncnorm.service.jobs.stored_spec import StoredSpec
from syncnorm.service.scheduling import growth
from syncnorm.service.scheduling.growth import Growth, GrowthTimer
from syncnorm.service.scheduling.ordering import queues_by_owner
from syncnorm.service.scheduling.schedule import Allocation, Policy, Schedule
from syncnorm.service.scheduling.scheduler import schedule
from syncnorm.trainer.contract.plan import NodeCapacity
from syncnorm.trainer.contract.spec_reader import read_spec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Policy()
TEMPLATE = new_job(
    read_spec({"name": "job", "model": {"name": "resnet"}, "data": {"name": "digits", "batch_size": 32}}), "ann", NOW
)


def job(name: str, workers: int = 1, **changes: Any) -> Job:
    return replace(TEMPLATE, id=name, workers=workers, **changes)


def nodes(*cpus: float, used: float = 0.0, gpus: float = 0.0) -> list[NodeCapacity]:
    return [NodeCapacity(f"n{i}", c, gpus, c - used, gpus) for i, c in enumerate(cpus)]


def held(one: Job, *, ends_s: float | None = None, placed: bool = False, age_s: float = 60) -> Allocation:
    ends_at = None if ends_s is None else NOW + timedelta(seconds=ends_s)
    return Allocation(replace(one, state=JobState.RUNNING), NOW - timedelta(seconds=age_s), placed, ends_at)


def plan_of(
    queue: Iterable[Job], held: Sequence[Allocation], nodes: Sequence[NodeCapacity], now: datetime, policy: Policy
) -> Schedule:
    return schedule(queues_by_owner(queue, policy), held, nodes, now, policy)


def names(jobs: tuple[Job, ...]) -> list[str]:
    return [one.id for one in jobs]


def test_gang_starts_whole_or_not_at_all() -> None:
    plan = plan_of([job("a", 5)], [], nodes(3, 3), NOW, POLICY)
    split = plan_of([job("b", 2, cpus_per_worker=3)], [], nodes(4, 2), NOW, POLICY)

    assert names(plan.starts) == ["a"]
    assert names(split.starts) == []
    assert split.waits["b"].code == "never_fits"
    assert "needs 2 workers of 3 CPU each, and the whole cluster can hold 1." in split.waits["b"].message


def test_higher_priority_goes_first_and_age_breaks_ties() -> None:
    queue = [job("late"), job("early", queued_at=NOW - timedelta(seconds=9)), job("high", priority=1)]

    plan = plan_of(queue, [], nodes(2), NOW, POLICY)

    assert names(plan.starts) == ["high", "early"]


def test_waiting_raises_priority() -> None:
    old = job("old", priority=-100, queued_at=NOW - timedelta(seconds=POLICY.ageing_s * 201))

    plan = plan_of([old, job("new", priority=100)], [], nodes(1), NOW, POLICY)

    assert names(plan.starts) == ["old"]


def test_owner_who_uses_less_goes_first() -> None:
    queue = [job(f"a{i}", owner="ann") for i in range(4)] + [job(f"b{i}", owner="bob") for i in range(4)]

    plan = plan_of(queue, [held(job("r", 2, owner="ann"))], nodes(6), NOW, POLICY)

    assert sorted(names(plan.starts)) == ["a0", "b0", "b1", "b2"]


def test_room_of_strangers_is_not_given_away() -> None:
    plan = plan_of([job("a", 2)], [], nodes(4, used=3), NOW, POLICY)

    assert names(plan.starts) == []
    assert plan.waits["a"].numbers["workers_missing"] == 1


def test_backfill_uses_what_the_head_can_not() -> None:
    # 4 CPUs: r takes 2 for 100 s; the head needs 3, so at its start one CPU is over.
    queue = [job("head", 3), job("one", 1, queued_at=NOW), job("two", 1, queued_at=NOW)]
    queue = [replace(one, queued_at=NOW + timedelta(seconds=i)) for i, one in enumerate(queue)]

    plan = plan_of(queue, [held(job("r", 2), ends_s=100)], nodes(4), NOW, POLICY)

    assert names(plan.starts) == ["one"]
    assert plan.waits["two"].code == "held_for_job_ahead"
    assert plan.waits["head"].starts_at == NOW + timedelta(seconds=100)
    assert plan.waits["head"].blockers == ("r",)


def test_weakest_and_youngest_gives_way_and_no_more_than_needed() -> None:
    running = [
        held(job("strong", 2, priority=5)),
        held(job("old", 1), age_s=500),
        held(job("young", 1), age_s=5),
    ]

    plan = plan_of([job("head", 1, priority=3)], running, nodes(4), NOW, POLICY)

    assert names(plan.preempts) == ["young"]
    assert plan.preempts_for(plan.preempts[0]) == "head"
    assert plan.waits["head"].code == "waiting_for_preemption"


def test_equal_priority_never_preempts() -> None:
    plan = plan_of([job("head", 1)], [held(job("r", 1))], nodes(1), NOW, POLICY)

    assert plan.preempts == ()


def test_room_that_is_being_freed_is_not_freed_twice() -> None:
    leaving = held(job("leaving", 1, stop="preempt"))

    plan = plan_of([job("head", 1, priority=9)], [leaving, held(job("other", 1))], nodes(2), NOW, POLICY)

    assert plan.preempts == ()
    assert plan.waits["head"].code == "waiting_for_preemption"


@pytest.mark.parametrize(
    ("policy", "code"), [(Policy(max_running=1), "quota_running"), (Policy(max_gpus=2), "quota_gpus")]
)
def test_quota_holds_back_one_owner_only(policy: Policy, code: str) -> None:
    mine = job("mine", 1, gpus_per_worker=2)
    yours = job("yours", 1, gpus_per_worker=2, owner="bob")

    plan = plan_of([mine, yours], [held(job("r", 1, gpus_per_worker=1))], nodes(8, gpus=8), NOW, policy)

    assert names(plan.starts) == ["yours"]
    wait = plan.wait(mine)
    assert wait is not None
    assert wait.code == code


def test_reasons_count_one_job_and_one_worker_in_the_singular() -> None:
    others = [held(job("r", 1, owner="bob", priority=1))]

    alone = plan_of([job("mine", 1, priority=1), job("later", 1)], others, nodes(1), NOW, POLICY)
    limited = plan_of([job("bobs", 1, owner="bob")], others, nodes(2), NOW, Policy(max_running=1))

    assert alone.waits["mine"].message == "There is no capacity for its worker; the job is next in the queue."
    assert alone.waits["later"].message == "There is no capacity for its worker; mine and perhaps others are ahead."
    assert limited.owners["bob"].message.startswith("bob has 1 job running; the limit is 1.")


def test_backoff_and_stop_requests_are_told() -> None:
    queue = [job("backoff", not_before=NOW + timedelta(seconds=7)), job("stop", stop="cancel")]

    plan = plan_of(queue, [], nodes(4), NOW, POLICY)

    assert names(plan.starts) == []
    assert (plan.waits["backoff"].code, plan.waits["stop"].code) == ("backoff", "stop_requested")
    assert plan.waits["backoff"].numbers == {"seconds": 7}


def in_groups(one: Job, group: int | str) -> StoredSpec:
    return one.spec.with_section("norm", one.spec.document["norm"] | {"group": group})


def elastic(one: Job, least: int, rng: random.Random | None = None) -> Job:
    """With min_workers; with `rng`, some of them in norm groups that divide both numbers."""
    least = min(least, one.workers)
    both = [group for group in (2, 3) if least % group == 0 and one.workers % group == 0]
    group = rng.choice([*both, "world"]) if rng else "world"
    spec = in_groups(one, group)
    return replace(one, min_workers=least, spec=spec)


@pytest.mark.parametrize(("room", "size"), [(8, 6), (6, 6), (5, 5), (2, 2), (1, None)])
def test_elastic_job_starts_with_as_many_workers_as_fit(room: int, size: int | None) -> None:
    plan = plan_of([elastic(job("a", 6), 2)], [], nodes(9, used=9 - room), NOW, POLICY)

    assert plan.sizes.get("a") == size
    assert names(plan.starts) == (["a"] if size else [])


def test_groups_of_an_elastic_job_stay_whole() -> None:
    one = elastic(job("a", 8), 2)
    spec = in_groups(one, 2)

    plan = plan_of([replace(one, spec=spec)], [], nodes(7), NOW, POLICY)

    assert plan.sizes == {"a": 6}


def test_job_that_is_not_elastic_never_starts_with_fewer() -> None:
    plan = plan_of([job("a", 4)], [held(job("r", 2))], nodes(5), NOW, POLICY)

    assert plan.sizes == {}
    assert plan.waits["a"].numbers == {"workers_missing": 1.0, "workers": 4.0}


def test_elastic_job_takes_only_what_the_head_can_not_use() -> None:
    # 6 CPUs: r takes 2 for 100 s; the head needs 5, so at its start one CPU is over, though 4 are free now.
    queue = [job("head", 5), elastic(job("tail", 4, queued_at=NOW + timedelta(seconds=1)), 1)]

    plan = plan_of(queue, [held(job("r", 2), ends_s=100)], nodes(6), NOW, POLICY)

    assert plan.sizes == {"tail": 1}


def test_elastic_head_waits_for_its_least_workers_only() -> None:
    head = elastic(job("head", 8), 3)

    plan = plan_of([head], [held(job("r", 2), ends_s=100), held(job("s", 2), ends_s=900)], nodes(4), NOW, POLICY)

    assert plan.waits["head"].numbers == {"workers_missing": 3.0, "workers": 3.0}
    assert plan.waits["head"].starts_at == NOW + timedelta(seconds=900)


def test_elastic_job_keeps_within_the_quota() -> None:
    one = elastic(job("a", 4, gpus_per_worker=1), 2)
    running = [held(job("r", 1, gpus_per_worker=1))]

    some = plan_of([one], running, nodes(8, gpus=8), NOW, Policy(max_gpus=4))
    none = plan_of([one], running, nodes(8, gpus=8), NOW, Policy(max_gpus=2))

    assert some.sizes == {"a": 3}
    assert none.waits["a"].code == "quota_gpus"


def test_attempt_with_fewer_workers_leaves_the_rest_of_the_room() -> None:
    small = replace(held(elastic(job("r", 4), 1)), workers=1)

    plan = plan_of([job("a", 3)], [small], nodes(4), NOW, POLICY)

    assert plan.sizes == {"a": 3}


def small(least: int = 1, workers: int = 1, *, ends_s: float | None = None, trained_s: float = 700) -> Allocation:
    """A running job that asks for four workers and has fewer."""
    item = held(elastic(job("r", 4), least), ends_s=ends_s, placed=True, age_s=trained_s)
    return replace(item, workers=workers, trains_since=NOW - timedelta(seconds=trained_s))


def test_running_job_may_grow_into_room_that_nobody_waits_for() -> None:
    assert plan_of([], [small()], nodes(8, used=1), NOW, POLICY).spare == {"r": 4}
    assert plan_of([], [small()], nodes(8, used=6), NOW, POLICY).spare == {"r": 3}
    assert plan_of([], [small()], nodes(8, used=8), NOW, POLICY).spare == {}


@pytest.mark.parametrize(
    "other",
    [job("starts"), job("waits", 8), job("comes soon", not_before=NOW + timedelta(seconds=9))],
    ids=lambda one: one.id,
)
def test_room_that_somebody_waits_for_is_nobody_elses(other: Job) -> None:
    assert plan_of([other], [small()], nodes(8, used=1), NOW, POLICY).spare == {}


def test_nobody_grows_while_somebody_leaves_to_come_back() -> None:
    leaving = held(job("leaving", stop="resize"), placed=True)

    assert plan_of([], [small(), leaving], nodes(8, used=2), NOW, POLICY).spare == {}


def test_job_grows_by_whole_groups_and_within_the_quota() -> None:
    spec = in_groups(TEMPLATE, 2)
    in_twos = replace(small(2, 2), job=replace(small(2, 2).job, workers=8, spec=spec))
    with_gpus = replace(small(), job=replace(small().job, gpus_per_worker=1))

    assert plan_of([], [in_twos], nodes(9, used=4), NOW, POLICY).spare == {"r": 6}
    assert plan_of([], [with_gpus], nodes(8, used=1, gpus=8), NOW, Policy(max_gpus=3)).spare == {"r": 3}


def test_job_whose_owner_waits_for_a_quota_does_not_let_the_next_in() -> None:
    plan = plan_of([job("next")], [small()], nodes(8, used=1), NOW, Policy(max_running=1))

    assert plan.waits == {}
    assert plan.spare == {}


@pytest.mark.parametrize(
    ("settled_s", "trained_s", "ends_s", "grows"),
    [
        (60, 600, None, True),
        (60, 600, 80, True),  # on four workers, three quarters of it are saved
        (59, 600, None, False),
        (60, 599, None, False),
        (60, 600, 79, False),
    ],
)
def test_job_grows_once_room_has_lasted_and_a_start_is_worth_it(
    settled_s: float, trained_s: float, ends_s: float | None, grows: bool
) -> None:
    item, room = small(ends_s=ends_s, trained_s=trained_s), {"r": 4}
    settling = GrowthTimer().after(room, NOW - timedelta(seconds=settled_s)).after(room, NOW)

    found = settling.due(room, [item], NOW, POLICY)

    assert (found is not None) == grows


def test_room_that_was_gone_for_a_moment_has_to_last_anew() -> None:
    room = {"r": 4}
    settling = GrowthTimer().after(room, NOW - timedelta(seconds=900)).after({}, NOW).after(room, NOW)

    assert settling.due(room, [small()], NOW, POLICY) is None


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that fit into a random day of twenty minutes."""
    monkeypatch.setattr(growth, "SETTLED_S", 2.0)
    monkeypatch.setattr(growth, "LEAST_TRAINED_S", 10.0)


class Day:
    """A cluster under random jobs that come, run and leave; checks the promises at every event.

    Workers sit on hosts, as Ray packs them, and what they take is part of what the cluster reports.
    """

    def __init__(self, seed: int, elastic: float = 0.4) -> None:
        """elastic: the part of jobs that are."""
        self.random, self.elastic = random.Random(seed), elastic
        hosts = self.random.randint(1, 5)
        self.seats: dict[str, list[tuple[int, int]]] = {}
        self.empty = [
            NodeCapacity(
                f"n{i}", cpus := float(self.random.randint(1, 16)), gpus := float(self.random.randint(0, 4)), cpus, gpus
            )
            for i in range(hosts)
        ]
        self.now, self.events = NOW, 0
        self.queue: dict[str, Job] = {}
        self.running: dict[str, Allocation] = {}
        self.policy = Policy(ageing_s=50, max_running=self.random.choice([None, 3]))
        self.settling = GrowthTimer()
        self.grown: Counter[str] = Counter()

    def step(self) -> None:
        self.now += timedelta(seconds=self.random.expovariate(0.2))
        act = self.random.random()
        if act < 0.5 and len(self.queue) < 30:
            self.events += 1
            name = f"j{self.events}"
            self.queue[name] = job(
                name,
                self.random.choice([1, 1, 2, 4, 8]),
                cpus_per_worker=self.random.choice([1, 1, 2]),
                gpus_per_worker=self.random.choice([0, 0, 0, 1]),
                owner=self.random.choice(["ann", "bob", "cem"]),
                priority=self.random.choice([0, 0, 0, 5, -5]),
                queued_at=self.now,
            )
            if self.random.random() < self.elastic:
                self.queue[name] = elastic(self.queue[name], self.random.choice([1, 2, 3]), self.random)
        elif self.running:
            self.leave(self.random.choice(sorted(self.running)))
        self.plan()

    def nodes(self) -> list[NodeCapacity]:
        free = [[node.cpus, node.gpus] for node in self.empty]
        for name, seats in self.seats.items():
            one = self.running[name].job
            assert sum(workers for _, workers in seats) == self.running[name].workers
            for host, workers in seats:
                free[host][0] -= workers * one.cpus_per_worker
                free[host][1] -= workers * one.gpus_per_worker
        return [
            replace(node, free_cpus=left[0], free_gpus=left[1]) for node, left in zip(self.empty, free, strict=True)
        ]

    def enter(self, one: Job, workers: int) -> None:
        """As a placement group does: all workers, or an error."""
        assert one.least_workers <= workers <= one.workers
        group = one.spec.group
        assert workers == one.workers or not isinstance(group, int) or workers % group == 0
        left = workers
        seats = []
        free = [
            int(
                min(
                    n.free_cpus // one.cpus_per_worker,
                    n.free_gpus // one.gpus_per_worker if one.gpus_per_worker else 99,
                    workers,
                )
            )
            for n in self.nodes()
        ]
        for host in sorted(range(len(free)), key=lambda host: -free[host]):
            taken = min(left, free[host])
            seats.append((host, taken))
            left -= taken
        assert left == 0, f"{one.id} would be split"
        begun = replace(one, state=JobState.RUNNING, started_at=one.started_at or self.now)
        self.running[one.id] = Allocation(begun, self.now, placed=True, workers=workers, trains_since=self.now)
        self.seats[one.id] = seats

    def leave(self, name: str) -> Allocation:
        del self.seats[name]
        return self.running.pop(name)

    def plan(self) -> None:
        plan = plan_of(self.queue.values(), list(self.running.values()), self.nodes(), self.now, self.policy)
        for one in plan.starts:
            self.enter(self.queue.pop(one.id), plan.sizes[one.id])
        self.check()
        for one in plan.preempts:
            item = self.leave(one.id)
            self.queue[one.id] = replace(item.job, state=JobState.QUEUED)
        assert not {one.id for one in plan.starts} & {one.id for one in plan.preempts}
        self.settling = self.settling.after(plan.spare, self.now)
        if grown := self.settling.due(plan.spare, list(self.running.values()), self.now, self.policy):
            self.grow(grown, plan)

    def grow(self, grown: Growth, plan: Schedule) -> None:
        """It stops, and starts again in the same moment, with what it was told; as often as it may, and no more."""
        one = grown.job
        assert not plan.starts + plan.preempts, "somebody took room at the same moment"
        assert not [wait for wait in plan.waits.values() if wait.code.startswith(("no_room", "held", "waiting"))]
        self.grown[one.id] += 1
        assert one.started_at is not None
        assert self.grown[one.id] <= (self.now - one.started_at).total_seconds() / growth.LEAST_TRAINED_S
        self.leave(one.id)
        self.queue[one.id] = replace(one, state=JobState.QUEUED)
        self.plan()
        assert self.running[one.id].workers == grown.to > grown.workers

    def check(self) -> None:
        assert all(node.free_cpus >= 0 and node.free_gpus >= 0 for node in self.nodes())
        for owner in ("ann", "bob", "cem"):
            under_way = sum(item.job.owner == owner for item in self.running.values())
            assert self.policy.max_running is None or under_way <= self.policy.max_running


@pytest.mark.parametrize("seed", range(10))
def test_random_days_keep_every_promise(seed: int, brief: None) -> None:
    for part in range(2):
        day = Day(seed * 100 + part)
        for _ in range(250):
            day.step()


def test_jobs_grow_on_random_days(brief: None) -> None:
    """Each time in the same moment, with what was promised, and no job more than once in its least time (see Day)."""
    days = [Day(300 + number, elastic=0.95) for number in range(8)]
    for day in days:
        for _ in range(250):
            day.step()

    assert sum(day.grown.total() for day in days) > 3


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(20))
def test_hundred_thousand_random_events_keep_every_promise(seed: int, brief: None) -> None:
    for part in range(10):
        day = Day(10_000 + seed * 100 + part, elastic=0.4 if part % 2 else 0.95)
        for _ in range(500):
            day.step()


@pytest.mark.parametrize("least", [None, 1])
def test_every_job_starts_in_the_end_under_a_stream_of_better_ones(least: int | None) -> None:
    """Also of elastic ones, each of which could use any worker that is free."""
    queue = {"low": job("low", 2, priority=-100)}
    running: dict[str, Allocation] = {}
    now = NOW
    for i in range(2000):
        now += timedelta(seconds=60)
        queue[f"h{i}"] = job(f"h{i}", 2 if least else 1, min_workers=least, priority=100, queued_at=now)
        if running:
            running.pop(next(iter(running)))
        plan = plan_of(queue.values(), list(running.values()), nodes(2), now, POLICY)
        for one in plan.starts:
            begun = replace(queue.pop(one.id), state=JobState.RUNNING)
            running[one.id] = Allocation(begun, now, placed=False, workers=plan.sizes[one.id])
        if "low" not in queue:
            break

    assert "low" not in queue
    assert (now - NOW).total_seconds() <= POLICY.ageing_s * 203


def test_decision_is_quick_with_ten_thousand_waiting() -> None:
    owners = [f"o{i}" for i in range(50)]
    queue = [job(f"q{i}", 1 + i % 4, owner=owners[i % 50], priority=i % 7) for i in range(10_000)]
    running = [held(job(f"r{i}", 1)) for i in range(64)]

    lines = queues_by_owner(queue, POLICY)

    times = []
    for _ in range(5):
        began = time.perf_counter()
        schedule(lines, running, nodes(*[8.0] * 8), NOW, POLICY)
        times.append(time.perf_counter() - began)

    assert min(times) < 0.1  # goal 10 ms; wide, for a loaded host
