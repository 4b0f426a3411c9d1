"""Heartbeats: what relay publishes, what functions store of them, and how old the last one of each group is."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition

from campaign_jobs import events
from campaign_jobs.catalog import EMAIL, EVENT_JOB_TYPES, HEARTBEAT_EVENT_TYPE, TOPIC_PARTITIONS, UNROUTABLE
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.errors import BrokersUnreachable, DatabaseUnavailable, PublishError
from campaign_jobs.producer import JobProducer
from campaign_jobs.relay.heartbeats import Heartbeats, heartbeat
from campaign_jobs.settings import RelaySettings
from campaign_jobs.worker.outcomes import Retry
from campaign_jobs.worker.pipeline import Pipeline
from campaign_jobs.worker.unroutable import Unroutable
from local.kafka import KafkaBroker
from tests.integration.invocations import (
    TOPIC,
    Context,
    RecordingQueues,
    ScriptedJob,
    from_kafka,
    from_sqs,
    settings_of,
)
from tests.integration.test_isolation import batch, by_alias, killed

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
GROUP = "job-workers-email"
HANG_UP = """
CREATE FUNCTION campaign_jobs.hang_up() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;
CREATE TRIGGER hang_up BEFORE INSERT ON campaign_jobs.heartbeats FOR EACH ROW EXECUTE FUNCTION campaign_jobs.hang_up();
"""
GROUPS = {f"job-workers-{lane.name}" for job_type in EVENT_JOB_TYPES for lane in job_type.lanes}


@pytest.fixture
def queues() -> RecordingQueues:
    return RecordingQueues()


@pytest.fixture
def job() -> ScriptedJob:
    return ScriptedJob()


@pytest.fixture
def pipeline(database: Database, job: ScriptedJob, queues: RecordingQueues) -> Pipeline:
    return Pipeline(EMAIL, job, settings_of(EMAIL), database, queues=queues)


def beats(*moments: datetime, partition: int = 3, first: int = 100) -> dict[str, Any]:
    """A batch of heartbeats, as records of these times."""
    made = from_kafka(*(heartbeat(partition, moment) for moment in moments))
    (records,) = made["records"].values()
    for number, (record, moment) in enumerate(zip(records, moments, strict=True)):
        milliseconds = int(moment.timestamp() * 1000)
        record |= {"partition": partition, "offset": first + number, "timestamp": milliseconds}
    return {**made, "records": {f"{TOPIC}-{partition}": records}}


def together(*batches: dict[str, Any]) -> dict[str, Any]:
    records: dict[str, list[Any]] = {}
    for each in batches:
        for name, some in each["records"].items():
            records.setdefault(name, []).extend(some)
    return {**batches[0], "records": records}


def stored(connection: Connection) -> dict[tuple[str, int], datetime | None]:
    rows = connection.execute(
        "SELECT consumer_group, partition, published_at FROM campaign_jobs.heartbeats WHERE topic = %s",
        (TOPIC,),
    )
    return {(group, partition): at for group, partition, at in rows}


# What a function stores.


def test_the_last_heartbeat_of_each_partition_is_stored_for_the_lane(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, database: Database, connection: Connection
) -> None:
    minutes = [NOON + timedelta(minutes=number) for number in range(3)]
    source = together(beats(*minutes), beats(minutes[1], partition=7))
    assert pipeline.handle(source, by_alias("email")) == {"heartbeats": 4}
    assert stored(connection) == {(GROUP, 3): minutes[2], (GROUP, 7): minutes[1]}
    # The other lane of the same function has a progress of its own; so has whoever reads all.
    assert pipeline.handle(beats(NOON), by_alias("email-bulk")) == {"heartbeats": 1}
    unroutable = Unroutable(settings_of(UNROUTABLE), database, queues=queues)  # type: ignore[arg-type]
    assert unroutable.handle(beats(NOON), Context()) == {"heartbeats": 1}
    assert stored(connection) == {
        (GROUP, 3): minutes[2],
        (GROUP, 7): minutes[1],
        ("job-workers-email-bulk", 3): NOON,
        ("job-workers-unroutable", 3): NOON,
    }
    assert not job.batches
    assert not queues.sent


def test_it_never_goes_back(pipeline: Pipeline, connection: Connection) -> None:
    later = NOON + timedelta(minutes=5)
    for source in (beats(later), beats(later), beats(NOON), beats(later, NOON)):
        pipeline.handle(source, Context())
        assert stored(connection) == {(GROUP, 3): later}
    # What is already there is not written again.
    before = connection.execute("SELECT xmin::text, ctid::text FROM campaign_jobs.heartbeats").fetchone()
    pipeline.handle(beats(NOON, later), Context())
    assert (
        connection.execute("SELECT xmin::text, ctid::text FROM campaign_jobs.heartbeats").fetchone() == before
    )


def test_a_time_from_the_future_is_taken_for_now(pipeline: Pipeline, connection: Connection) -> None:
    pipeline.handle(beats(datetime(2500, 1, 1, tzinfo=UTC)), Context())
    (found,) = stored(connection).values()
    assert found is not None
    assert abs(found - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_heartbeat_counts_only_once_what_lies_before_it_is_settled(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, connection: Connection
) -> None:
    source = together(batch(90, 99), beats(NOON))

    def stopped(_: Any) -> Any:
        raise DatabaseUnavailable("gone")

    job.outcome = stopped
    with pytest.raises(DatabaseUnavailable):
        pipeline.handle(source, Context())
    queues.broken = True
    job.outcome = lambda delivery: Retry("not now")
    with pytest.raises(Exception, match="SQS did not take messages"):
        pipeline.handle(source, Context())
    assert stored(connection) == {}
    queues.broken = False
    assert pipeline.handle(source, Context()) == {"retried": 10, "heartbeats": 1}
    assert stored(connection) == {(GROUP, 3): NOON}


def test_heartbeats_handed_on_with_their_neighbors_say_nothing(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, connection: Connection
) -> None:
    source = together(batch(98, 99), beats(NOON))
    killed(pipeline, job, source)
    assert pipeline.handle(source, Context()) == {"isolated": 3}
    counts = [pipeline.handle(from_sqs(body), Context()) for body in queues.take("RETRY_QUEUE_URL_EMAIL")]
    assert counts == [{"processed": 1}, {"processed": 1}, {"ignored": 1}]
    assert not queues.sent
    assert stored(connection) == {}
    pipeline.handle(beats(NOON + timedelta(minutes=1), first=101), Context())
    assert stored(connection) == {(GROUP, 3): NOON + timedelta(minutes=1)}


@pytest.mark.parametrize(
    "trouble",
    [
        "ALTER TABLE campaign_jobs.heartbeats ADD CHECK (partition < 0)",
        "DROP TABLE campaign_jobs.heartbeats",
        HANG_UP,
    ],
    ids=["refused", "not there", "connection lost"],
)
def test_a_database_that_refuses_heartbeats_fails_no_batch(
    pipeline: Pipeline,
    job: ScriptedJob,
    database: Database,
    queues: RecordingQueues,
    connection: Connection,
    trouble: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    connection.execute(trouble.encode())
    source = together(batch(90, 94), beats(NOON))
    assert pipeline.handle(source, Context()) == {"processed": 5, "heartbeats": 1}
    unroutable = Unroutable(settings_of(UNROUTABLE), database, queues=queues)  # type: ignore[arg-type]
    assert unroutable.handle(source, Context()) == {"ignored": 5, "heartbeats": 1}
    assert connection.execute("SELECT count(*) FROM campaign_jobs.batch_markers").fetchone() == (0,)


def test_one_statement_more_for_a_batch_with_heartbeats_and_none_for_another(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    execute = psycopg.Cursor.execute

    def counting(cursor: Any, query: Any, *arguments: Any, **named: Any) -> Any:
        statements.append(str(query))
        return execute(cursor, query, *arguments, **named)

    monkeypatch.setattr(psycopg.Cursor, "execute", counting)

    def statements_of(source: dict[str, Any]) -> int:
        statements.clear()
        pipeline.handle(source, Context())
        return len(statements)

    without = statements_of(batch(0, 9))
    assert not any("heartbeats" in statement for statement in statements)
    many = together(batch(10, 19), beats(*[NOON] * 50), beats(*[NOON] * 50, partition=4))
    assert statements_of(many) == without + 1
    assert statements_of(together(batch(20, 29), beats(NOON))) == without + 1


# What relay publishes.


class RecordingPartitions:
    """A topic of three partitions."""

    def __init__(self) -> None:
        self.published: list[dict[str, Any]] = []
        self.failure: PublishError | None = None
        self.future: Future[None] = Future()
        self.future.set_result(None)

    def submit_to_each_partition(self, value_of: Callable[[int], bytes]) -> tuple[int, "Future[None]"]:
        if self.failure is not None:
            raise self.failure
        self.published += [json.loads(value_of(partition)) for partition in range(3)]
        return 3, self.future


def settings(**changes: str) -> RelaySettings:
    return RelaySettings.load(
        {
            "DATABASE_URL": "postgresql://unused",
            "KAFKA_BROKERS": "unused:9092",
            "KAFKA_JOB_TOPIC": TOPIC,
            **changes,
        }
    )


@pytest.fixture
def partitions() -> RecordingPartitions:
    return RecordingPartitions()


@pytest.fixture
def heartbeats(database: Database, partitions: RecordingPartitions) -> Heartbeats:
    return Heartbeats(database, partitions, settings())


@pytest.fixture
def another_database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


def ages(heartbeats: Heartbeats, connection: Connection) -> dict[str, float]:
    return {group.removeprefix("job-workers-"): age for group, age in heartbeats.ages(connection).items()}


def let_a_minute_pass(connection: Connection) -> None:
    connection.execute("UPDATE campaign_jobs.leases SET expires_at = expires_at - interval '1 minute'")


def test_every_partition_gets_one_a_minute_whoever_publishes_it(
    heartbeats: Heartbeats,
    partitions: RecordingPartitions,
    another_database: Database,
    connection: Connection,
) -> None:
    other = Heartbeats(another_database, partitions, settings())
    heartbeats.publish()
    other.publish()
    heartbeats.publish()
    assert [event["data"] for event in partitions.published] == [{"partition": number} for number in range(3)]
    connection.execute("UPDATE campaign_jobs.leases SET expires_at = expires_at - interval '45 seconds'")
    other.publish()
    assert len(partitions.published) == 3, "a minute has not passed"
    let_a_minute_pass(connection)
    other.publish()
    assert len(partitions.published) == 6
    assert len({event["id"] for event in partitions.published}) == 6
    for event in partitions.published:
        assert event["type"] == HEARTBEAT_EVENT_TYPE
        assert abs(datetime.fromisoformat(event["timestamp"]) - datetime.now(UTC)) < timedelta(minutes=1)


def test_real_heartbeats_reach_all_partitions_of_kafka(
    database: Database, connection: Connection, kafka_broker: KafkaBroker, topic: str
) -> None:
    with JobProducer(brokers=kafka_broker.bootstrap_servers, topic=topic) as producer:
        heartbeats = Heartbeats(database, producer, settings(KAFKA_JOB_TOPIC=topic))
        heartbeats.publish()
        heartbeats.wait(30)
    consumer = Consumer({"bootstrap.servers": kafka_broker.bootstrap_servers, "group.id": topic})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(TOPIC_PARTITIONS)])
    messages = consumer.consume(TOPIC_PARTITIONS, timeout=30)
    consumer.close()
    assert sorted(message.partition() or 0 for message in messages) == list(range(TOPIC_PARTITIONS))
    for message in messages:
        value = message.value()
        assert isinstance(value, bytes)
        assert events.owner(events.read_object(value)["type"]) is None
        assert json.loads(value)["data"] == {"partition": message.partition()}
    assert set(heartbeats.ages(connection)) == GROUPS
    awaited = connection.execute(
        "SELECT count(*), count(DISTINCT partition) FROM campaign_jobs.heartbeats WHERE topic = %s", (topic,)
    ).fetchone()
    assert awaited == (TOPIC_PARTITIONS * len(GROUPS), TOPIC_PARTITIONS)


def test_a_failure_is_told_once_and_the_next_minute_tries_again(
    heartbeats: Heartbeats, partitions: RecordingPartitions, connection: Connection
) -> None:
    partitions.failure = BrokersUnreachable("brokers do not answer")
    with pytest.raises(BrokersUnreachable):
        heartbeats.publish()
    # Nothing was ever published, so nobody is late.
    assert heartbeats.ages(connection) == {}
    partitions.failure = None
    let_a_minute_pass(connection)
    partitions.future = Future()
    heartbeats.publish()
    with pytest.raises(PublishError, match="not acknowledged yet"):
        heartbeats.wait(0)
    heartbeats.wait(0)
    let_a_minute_pass(connection)
    partitions.future = Future()
    heartbeats.publish()
    partitions.future.set_exception(BrokersUnreachable("one of three"))
    with pytest.raises(BrokersUnreachable):
        heartbeats.wait(0)


# Ages.


def test_the_age_of_a_group_is_that_of_its_oldest_partition(
    heartbeats: Heartbeats, pipeline: Pipeline, connection: Connection
) -> None:
    heartbeats.publish()
    now = datetime.now(UTC)
    for partition, minutes in ((0, 2), (1, 40), (2, 5)):
        pipeline.handle(beats(now - timedelta(minutes=minutes), partition=partition), Context())
    found = ages(heartbeats, connection)
    assert found["email"] == pytest.approx(40 * 60, abs=60)
    assert all(age < 60 for group, age in found.items() if group != "email")


def test_a_group_that_never_stored_one_counts_from_when_it_was_first_awaited(
    heartbeats: Heartbeats, pipeline: Pipeline, database: Database, connection: Connection
) -> None:
    heartbeats.publish()
    connection.execute("UPDATE campaign_jobs.heartbeats SET awaited_since = now() - interval '3 hours'")
    let_a_minute_pass(connection)
    heartbeats.publish()
    for partition in range(3):
        pipeline.handle(beats(datetime.now(UTC), partition=partition), Context())
    found = ages(heartbeats, connection)
    assert found.pop("email") < 60
    assert len(found) == len(GROUPS) - 1
    assert all(age == pytest.approx(3 * 3600, abs=60) for age in found.values())


def test_a_partition_and_a_group_that_are_new_are_not_late(
    heartbeats: Heartbeats, partitions: RecordingPartitions, connection: Connection
) -> None:
    heartbeats.publish()
    connection.execute(
        "UPDATE campaign_jobs.heartbeats SET awaited_since = now() - interval '90 days', published_at = now()"
    )
    connection.execute(
        "DELETE FROM campaign_jobs.heartbeats WHERE partition = 2 OR consumer_group LIKE '%reward'"
    )
    let_a_minute_pass(connection)
    heartbeats.publish()
    assert set(heartbeats.ages(connection)) == GROUPS
    assert max(heartbeats.ages(connection).values()) < 60


def test_other_topics_and_groups_are_somebody_elses(
    database: Database, partitions: RecordingPartitions, heartbeats: Heartbeats, connection: Connection
) -> None:
    heartbeats.publish()
    for changes in ({"KAFKA_JOB_TOPIC": "other-events"}, {"KAFKA_JOB_CONSUMER_GROUP": "others"}):
        assert Heartbeats(database, partitions, settings(**changes)).ages(connection) == {}
    connection.execute("UPDATE campaign_jobs.heartbeats SET awaited_since = now() - interval '1 day'")
    let_a_minute_pass(connection)
    others = Heartbeats(database, partitions, settings(KAFKA_JOB_CONSUMER_GROUP="others"))
    others.publish()
    assert {group.rpartition("others-")[1] for group in others.ages(connection)} == {"others-"}
    assert max(others.ages(connection).values()) < 60
