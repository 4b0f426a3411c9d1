"""Workers that run scenarios side by side, and what the scenarios do undisturbed."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import pytest

from local.certificates import make_certificates
from local.kafka import KafkaBroker, create_topic
from local.postgres import PostgresServer
from tests.crash.databases import Seeded, contents, seed
from tests.crash.scenario import Rest, Run, Scenario, check_sends
from tests.crash.state import difference
from tests.crash.worker import Topic, Worker, working
from tests.integration.webhook_receiver import NAMES

Stop = tuple[str, int]
"""A boundary's label, and how many times it is reached."""


@dataclass(frozen=True)
class Undisturbed:
    """What a scenario does when nothing stops it."""

    seeded: Seeded
    boundaries: list[dict[str, Any]]
    known: set[str]
    """The UUIDs that each run has; any other is new in each."""
    end: dict[str, Any]

    def stops(self, *, every: bool) -> list[Stop]:
        """Where to stop: at every boundary, or at one of those between which nothing has happened for anybody else.

        A process that is killed there leaves the same behind, wherever it stood: what was not sent, or not committed,
        is gone. One operation is under way at a time, so their order is that of all threads.
        """
        times: Counter[str] = Counter()
        stops = []
        altered = True
        for boundary in self.boundaries:
            times[boundary["label"]] += 1
            if every or altered or boundary["phase"] == "after":
                stops.append((boundary["label"], times[boundary["label"]]))
            # An operation that fails has no boundary after it, and may have been seen all the same.
            altered = boundary["phase"] == "before" and boundary["alters"]
        return stops


@dataclass
class Stage:
    server: PostgresServer
    workers: list[Worker]
    free: SimpleQueue[Worker]
    pool: ThreadPoolExecutor
    _undisturbed: dict[str, Undisturbed] = field(default_factory=dict)

    def undisturbed(self, scenario: Scenario) -> Undisturbed:
        """Run it twice, the first time it is asked for."""
        if scenario.name not in self._undisturbed:
            self._undisturbed[scenario.name] = self._prepare(scenario)
        return self._undisturbed[scenario.name]

    def run(self, scenario: Scenario, seeded: Seeded, stop_at: Stop | None) -> Rest:
        """One run by whichever worker is free."""
        worker = self.free.get()
        try:
            worker.database.set_back_to(seeded)
            return Run(scenario, worker, seeded.deliveries).to_rest(stop_at)
        finally:
            self.free.put(worker)

    def check_databases(self, seeded: Seeded) -> None:
        """Every run began with what services wrote, and with nothing of the run before."""
        for worker in self.workers:
            worker.database.set_back_to(seeded)
            assert contents(worker.database.connection) == seeded.contents

    def _prepare(self, scenario: Scenario) -> Undisturbed:
        seeded = seed(self.server, scenario.seed)
        one, other = self.pool.map(lambda stop_at: self.run(scenario, seeded, stop_at), [None, None])
        for rest in (one, other):
            check_sends(rest)
        known = one.dump.uuids & other.dump.uuids
        end = one.ends_alike(known, scenario.ignored)
        assert not (unlike := difference(end, other.ends_alike(known, scenario.ignored))), unlike
        labels, other_labels = (Counter(item["label"] for item in rest.boundaries) for rest in (one, other))
        assert labels == other_labels, "two undisturbed runs have different boundaries"
        return Undisturbed(seeded, one.boundaries, known, end)


@pytest.fixture(scope="session")
def stage(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, kafka_broker: KafkaBroker
) -> Iterator[Stage]:
    certificates = make_certificates(tmp_path_factory.mktemp("certificates"), NAMES)
    # One more than there are processors, for a worker waits now and then.
    count = min((os.cpu_count() or 1) + 1, 4)
    with ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        # Each imports everything, so they start together.
        managers = []
        for number in range(count):
            create_topic(kafka_broker.bootstrap_servers, f"crash-{number}", partitions=1)
            topic = stack.enter_context(Topic(kafka_broker.bootstrap_servers, f"crash-{number}"))
            managers.append(working(tmp_path_factory.mktemp("worker"), postgres_server, certificates, topic))
        workers = list(pool.map(stack.enter_context, managers))
        free: SimpleQueue[Worker] = SimpleQueue()
        for worker in workers:
            free.put(worker)
        yield Stage(postgres_server, workers, free, pool)
