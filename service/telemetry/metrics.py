"""Prometheus metrics: counts and durations of this process, and the state of the queue from the store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from syncnorm.service.backend_errors import DatabaseUnavailableError
from syncnorm.service.background.loop import Health
from syncnorm.service.jobs.job import Job, JobState
from syncnorm.service.reconciler.reconciler import Reconciler
from syncnorm.service.store import Store
from syncnorm.trainer.forkserver.parent_memory import Memory

_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200, 43200)


class Metrics:
    """Counts of this process; with `watch`, also the store and the cluster."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Histogram(
            "syncnorm_http_request_seconds",
            "Seconds to answer a request",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._wait = Histogram(
            "syncnorm_queue_wait_seconds",
            "Seconds from submit to first start",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._run = Histogram(
            "syncnorm_job_seconds",
            "Seconds from first start to end",
            ("state",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._attempts = Counter(
            "syncnorm_attempts_ended", "Attempts that ended", ("outcome", "reason"), registry=self.registry
        )

        self._webhooks = Counter(
            "syncnorm_webhook_events",
            "Webhook events by outcome; a postponed one counts at every try",
            ("outcome",),
            registry=self.registry,
        )
        self._pruned = Counter(
            "syncnorm_pruned_rows", "Old rows deleted from the database", ("table",), registry=self.registry
        )

    def watch(self, store: Store, reconciler: Reconciler) -> None:
        self.registry.register(_Collector(store, reconciler))

    def watch_loops(self, healths: Iterable[Health]) -> None:
        self.registry.register(_Loops(healths))

    def watch_readiness(self, parts: Callable[[], Mapping[str, bool]]) -> None:
        """parts: whether each part that jobs need is available, by name."""
        self.registry.register(_Parts(parts))

    def watch_parents(self, memories: Mapping[str, Callable[[], Memory]]) -> None:
        """memories: of the parents that plans and jobs are forked from, by what is."""
        self.registry.register(_Parents(memories))

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).observe(seconds)

    def moved(self, before: Job, after: Job) -> None:
        """A job changed its state."""
        if after.started_at and not before.started_at:
            self._wait.observe((after.started_at - after.queued_at).total_seconds())
        if after.is_terminal and after.started_at and after.finished_at:
            self._run.labels(after.state.value).observe((after.finished_at - after.started_at).total_seconds())

    def attempt_ended(self, outcome: str, reason: str) -> None:
        self._attempts.labels(outcome, reason).inc()

    def webhook(self, outcome: str) -> None:
        self._webhooks.labels(outcome).inc()

    def pruned(self, table: str, rows: int) -> None:
        """Old rows were removed."""
        self._pruned.labels(table).inc(rows)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Collector(Collector):
    def __init__(self, store: Store, reconciler: Reconciler) -> None:
        self._store = store
        self._reconciler = reconciler

    def collect(self) -> Iterator[Metric]:
        with contextlib.suppress(DatabaseUnavailableError):  # syncnorm_part_ready says so
            yield from self._of_the_store()
        yield from self._of_the_cluster()
        yield from _of_the_reconciler(self._reconciler)

    def _of_the_store(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("syncnorm_jobs", "Jobs by state", labels=["state"])
        for state, count in self._store.jobs.count_by_state().items():
            jobs.add_metric([JobState(state).value], count)
        yield jobs
        yield GaugeMetricFamily(
            "syncnorm_oldest_queued_seconds",
            "Seconds that the oldest queued job has waited; 0 if none is queued",
            self._store.jobs.longest_wait_s(),
        )
        # From the store, so that they continue after a restart. Together they are what was allocated.
        cpu = CounterMetricFamily("syncnorm_cpu_seconds", "CPU seconds reserved by attempts", labels=["owner"])
        gpu = CounterMetricFamily("syncnorm_gpu_seconds", "GPU seconds reserved by attempts", labels=["owner"])
        for owner, (cpu_s, gpu_s) in self._store.attempts.usage().items():
            cpu.add_metric([owner], cpu_s)
            gpu.add_metric([owner], gpu_s)
        yield from (cpu, gpu)
        lines, characters = self._store.retention.kept_lines()
        yield GaugeMetricFamily("syncnorm_log_lines", "Stored log lines of all jobs", lines)
        yield GaugeMetricFamily("syncnorm_log_characters", "Characters of the stored log lines of all jobs", characters)
        yield GaugeMetricFamily(
            "syncnorm_database_bytes", "Size of the database in bytes", self._store.retention.size_bytes()
        )

    def _of_the_cluster(self) -> Iterator[Metric]:
        nodes = self._reconciler.capacity or ()
        yield GaugeMetricFamily(
            "syncnorm_cluster_reachable", "1 if Ray answers", float(self._reconciler.view is not None)
        )
        yield GaugeMetricFamily("syncnorm_cluster_cpus", "CPUs of the cluster", sum(node.cpus for node in nodes))
        yield GaugeMetricFamily("syncnorm_cluster_gpus", "GPUs of the cluster", sum(node.gpus for node in nodes))


_MOST_NAMED = 20
"""Most failing items that are named at a time: ids as labels must not grow without bound."""


def _of_the_reconciler(reconciler: Reconciler) -> Iterator[Metric]:
    health, items = reconciler.health, reconciler.items
    yield GaugeMetricFamily(
        "syncnorm_reconciler_lag_seconds", "Seconds since the last complete tick", reconciler.lag_s()
    )
    yield GaugeMetricFamily(
        "syncnorm_reconciler_leader",
        "1 if this replica is the leader, 0 if it is a standby",
        float(reconciler.role == "leader"),
    )
    yield CounterMetricFamily("syncnorm_reconciler_failed_ticks", "Ticks that failed as a whole", health.failed)
    yield GaugeMetricFamily("syncnorm_reconciler_consecutive_failures", "Failed ticks in a row", health.in_a_row)
    failures = CounterMetricFamily(
        "syncnorm_reconciler_item_failures",
        "Failures of single jobs, exports, releases and other items",
        labels=["kind"],
    )
    given_up = CounterMetricFamily(
        "syncnorm_reconciler_set_aside", "Items given up after repeated failures", labels=["kind"]
    )
    failing = GaugeMetricFamily(
        "syncnorm_reconciler_item_failing",
        f"Consecutive failed ticks of an item, for at most {_MOST_NAMED} items",
        labels=["kind", "item"],
    )
    for kind, count in items.failures.copy().items():
        failures.add_metric([kind], count)
    for kind, count in items.given_up.copy().items():
        given_up.add_metric([kind], count)
    for (kind, name), streak in items.failing()[:_MOST_NAMED]:
        failing.add_metric([kind, name], streak.ticks)
    yield from (failures, given_up, failing)


class _Loops(Collector):
    def __init__(self, healths: Iterable[Health]) -> None:
        self._healths = tuple(healths)

    def collect(self) -> Iterator[Metric]:
        failed = CounterMetricFamily("syncnorm_loop_failed_ticks", "Failed ticks of a background loop", labels=["loop"])
        row = GaugeMetricFamily("syncnorm_loop_consecutive_failures", "Failed ticks in a row", labels=["loop"])
        age = GaugeMetricFamily(
            "syncnorm_loop_success_age_seconds", "Seconds since the last successful tick", labels=["loop"]
        )
        for health in self._healths:
            failed.add_metric([health.name], health.failed)
            row.add_metric([health.name], health.in_a_row)
            age.add_metric([health.name], health.since_success_s())
        yield from (failed, row, age)


class _Parts(Collector):
    def __init__(self, parts: Callable[[], Mapping[str, bool]]) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(
            "syncnorm_part_ready", "1 if this part that jobs need is available, as in /readyz", labels=["part"]
        )
        for name, is_ready in self._parts().items():
            ready.add_metric([name], float(is_ready))
        yield ready


class _Parents(Collector):
    def __init__(self, memories: Mapping[str, Callable[[], Memory]]) -> None:
        self._memories = memories

    def collect(self) -> Iterator[Metric]:
        parents = GaugeMetricFamily(
            "syncnorm_warm_parents", "Processes that warm processes are forked from", labels=["forks"]
        )
        size = GaugeMetricFamily("syncnorm_warm_parent_bytes", "Their resident memory in bytes", labels=["forks"])
        for name, look in self._memories.items():
            memory = look()
            parents.add_metric([name], memory.parents)
            size.add_metric([name], memory.memory_bytes)
        yield from (parents, size)
