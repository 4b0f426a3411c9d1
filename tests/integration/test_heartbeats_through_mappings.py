"""Heartbeats from relay through Kafka and the mappings: offsets of a quiet lane, and a function that is dead."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from campaign_jobs.catalog import POSITION, REWARD, TOPIC_PARTITIONS, UNROUTABLE, EventJobType
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.producer import JobProducer
from campaign_jobs.relay.heartbeats import Heartbeats
from campaign_jobs.settings import EventJobSettings
from campaign_jobs.worker.pipeline import Pipeline
from campaign_jobs.worker.unroutable import Unroutable
from local.functions import FunctionFailed
from local.kafka import KafkaBroker
from local.mappings.kafka import KafkaMapping
from tests.integration.invocations import Context, RecordingQueues, ScriptedJob, event, settings_of, value_of
from tests.integration.test_heartbeats import let_a_minute_pass, settings
from tests.integration.test_kafka_mapping import until

JOB_TYPES = (REWARD, POSITION, UNROUTABLE)


class InProcess:
    """A job type's function in this process, on a connection of its own; dead where a test says so."""

    def __init__(self, job_type: EventJobType, database_url: str) -> None:
        self.job = ScriptedJob()
        self.queues = RecordingQueues()
        self.database = Database(database_url)
        self.is_dead = False
        of: Any = settings_of(job_type)
        assert isinstance(of, EventJobSettings)
        self._handle: Callable[..., Any] = (
            Unroutable(of, self.database, queues=self.queues).handle  # type: ignore[arg-type]
            if job_type is UNROUTABLE
            else Pipeline(job_type, self.job, of, self.database, queues=self.queues).handle
        )

    def invoke(self, event: dict[str, Any]) -> Any:
        if self.is_dead:
            raise FunctionFailed("Runtime.ExitError", "it does not start")
        return self._handle(event, Context())


class Lanes:
    """Three lanes, each with its mapping, and relay's side of the heartbeats."""

    def __init__(self, brokers: str, topic: str, database_url: str, connection: Connection) -> None:
        self._brokers, self._topic, self._connection = brokers, topic, connection
        self.functions = {job_type.name: InProcess(job_type, database_url) for job_type in JOB_TYPES}
        self.mappings = {
            job_type.name: KafkaMapping(
                bootstrap_servers=brokers,
                topic=topic,
                # Kafka's groups outlive a test; the functions' own are of its database.
                consumer_group=f"{topic}-{job_type.name}",
                function=self.functions[job_type.name],
                filter_pattern=job_type.lanes[0].filter_pattern(),
                batch_size=100,
                batching_window_seconds=0.1,
                first_backoff_seconds=0.05,
            )
            for job_type in JOB_TYPES
        }
        self._database = Database(database_url)
        self._producer = JobProducer(brokers=brokers, topic=topic)
        self.heartbeats = Heartbeats(self._database, self._producer, settings(KAFKA_JOB_TOPIC=topic))

    def publish(self, count: int) -> None:
        """Rewards to deliver, spread over all partitions."""
        producer = Producer({"bootstrap.servers": self._brokers})
        for number in range(count):
            value = value_of(event("job.reward.deliver", f"reward-{number}"))
            producer.produce(self._topic, value, partition=number % TOPIC_PARTITIONS)
        assert producer.flush(30) == 0

    def beat(self) -> None:
        let_a_minute_pass(self._connection)
        self.heartbeats.publish()
        self.heartbeats.wait(30)

    def lag(self, name: str) -> int:
        """As CloudWatch's MaxOffsetLag and the operator's tools have it: the log's end less what is committed."""
        consumer = Consumer(
            {
                "bootstrap.servers": self._brokers,
                "group.id": f"{self._topic}-{name}",
                "enable.auto.commit": False,
            }
        )
        try:
            places = [TopicPartition(self._topic, number) for number in range(TOPIC_PARTITIONS)]
            committed = {
                place.partition: max(place.offset, 0) for place in consumer.committed(places, timeout=30)
            }
            return sum(
                consumer.get_watermark_offsets(place, timeout=30)[1] - committed[place.partition]
                for place in places
            )
        finally:
            consumer.close()

    def stored(self, name: str) -> int:
        """In how many partitions the lane has got through a heartbeat."""
        row = self._connection.execute(
            "SELECT count(published_at) FROM campaign_jobs.heartbeats WHERE topic = %s AND consumer_group = %s",
            (self._topic, f"job-workers-{name}"),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def age(self, name: str) -> float:
        return self.heartbeats.ages(self._connection)[f"job-workers-{name}"]

    def let_pass(self, minutes: int) -> None:
        """Everything that is known is that much older."""
        self._connection.execute(
            "UPDATE campaign_jobs.heartbeats SET awaited_since = awaited_since - make_interval(mins => %(minutes)s),"
            " published_at = published_at - make_interval(mins => %(minutes)s)",
            {"minutes": minutes},
        )

    def stop(self) -> None:
        for mapping in self.mappings.values():
            mapping.stop()
        for function in self.functions.values():
            function.database.close()
        self._producer.close()
        self._database.close()


@pytest.fixture
def lanes(
    kafka_broker: KafkaBroker, topic: str, database_url: str, connection: Connection
) -> Iterator[Lanes]:
    running = Lanes(kafka_broker.bootstrap_servers, topic, database_url, connection)
    for mapping in running.mappings.values():
        mapping.start()
    yield running
    running.stop()


def test_a_quiet_lanes_offsets_are_committed_thanks_to_heartbeats(lanes: Lanes) -> None:
    lanes.publish(200)
    reward, position = lanes.mappings["reward"], lanes.mappings["position"]
    until(lambda: len(lanes.functions["reward"].job.ids) == 200, "the rewards are delivered")
    until(reward.caught_up, "their offsets are committed")
    until(lambda: position.counters.filtered_out == 200, "the other lane has read them too")
    assert lanes.lag("reward") == 0
    assert lanes.lag("position") == 200, "it has nothing to do, and is never invoked"
    lanes.beat()
    for name, mapping in lanes.mappings.items():
        until(mapping.caught_up, f"{name} has caught up")
        until(lambda name=name: lanes.lag(name) == 0, f"the offsets of {name} are committed")
        until(lambda name=name: lanes.stored(name) == TOPIC_PARTITIONS, f"{name} has stored it everywhere")
    assert not lanes.functions["position"].job.batches
    assert not lanes.functions["unroutable"].queues.sent


def test_the_age_of_a_dead_functions_heartbeat_grows_while_the_others_are_young(lanes: Lanes) -> None:
    lanes.functions["position"].is_dead = True
    for _ in range(3):
        lanes.beat()
        until(
            lambda: lanes.stored("reward") == lanes.stored("unroutable") == TOPIC_PARTITIONS,
            "the others have stored it",
        )
        for name in ("reward", "unroutable"):
            until(lambda name=name: lanes.age(name) < 60, f"{name} has the latest one")
        lanes.let_pass(10)
    assert lanes.stored("position") == 0
    # From the first that was published; its events do not even have to be there.
    assert lanes.age("position") >= 30 * 60
    assert max(lanes.age("reward"), lanes.age("unroutable")) < 11 * 60
    lanes.functions["position"].is_dead = False
    lanes.beat()
    for name in lanes.functions:
        until(lambda name=name: lanes.age(name) < 60, f"{name} has the latest one")
    assert lanes.stored("position") == TOPIC_PARTITIONS


def test_a_redelivered_heartbeat_moves_nothing_back(lanes: Lanes, connection: Connection) -> None:
    """The invocation succeeds, and the mapping does not hear of it."""
    function = lanes.functions["reward"]
    invoke, deaf = function.invoke, iter([True, True, False])

    def unheard(event: dict[str, Any]) -> Any:
        invoke(event)
        if next(deaf, False):
            raise FunctionFailed("Sandbox.Timedout", "it had done everything")

    function.invoke = unheard  # type: ignore[method-assign]
    lanes.beat()
    until(lanes.mappings["reward"].caught_up, "it has come through")
    assert lanes.mappings["reward"].counters.failed_batches >= 2
    assert lanes.stored("reward") == TOPIC_PARTITIONS
    rows = "SELECT partition, published_at FROM campaign_jobs.heartbeats WHERE consumer_group LIKE '%reward' ORDER BY 1"
    before = connection.execute(rows.encode()).fetchall()
    lanes.beat()
    until(lanes.mappings["reward"].caught_up, "the next one has come through")
    after = connection.execute(rows.encode()).fetchall()
    assert all(new > old for (_, old), (_, new) in zip(before, after, strict=True))
