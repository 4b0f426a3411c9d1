"""Markers and counted starts: what an invocation leaves behind when it is killed, and who finds it."""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, sql
from psycopg.conninfo import conninfo_to_dict

from campaign_jobs.catalog import EMAIL, EVENT_JOB_TYPES, REWARD, UNROUTABLE, EventJobType
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.errors import DatabaseUnavailable, QueueUnavailable
from campaign_jobs.relay.job import Relay, RelayReport
from campaign_jobs.testing import RecordingProducer
from campaign_jobs.worker.delivery import Coordinates, Delivery
from campaign_jobs.worker.isolation import KILLED_ALONE, MAX_UNFINISHED_STARTS
from campaign_jobs.worker.messages import Received, body_of
from campaign_jobs.worker.outcomes import Done, Outcome, Retry
from campaign_jobs.worker.pipeline import Pipeline
from campaign_jobs.worker.unroutable import Unroutable
from local.postgres import PostgresServer
from tests.integration.invocations import (
    BAD,
    GOOD,
    HEARTBEAT,
    TOPIC,
    Context,
    RecordingQueues,
    ScriptedJob,
    event,
    from_kafka,
    from_sqs,
    settings_of,
    value_of,
)

Handle = Callable[..., Any]
DEAD_LETTERS = "DEAD_LETTER_QUEUE_URL_EMAIL"
RETRY = "RETRY_QUEUE_URL_EMAIL"
BULK = "RETRY_QUEUE_URL_EMAIL_BULK"


@pytest.fixture
def queues() -> RecordingQueues:
    return RecordingQueues()


@pytest.fixture
def job() -> ScriptedJob:
    return ScriptedJob()


@pytest.fixture
def pipeline(database: Database, job: ScriptedJob, queues: RecordingQueues) -> Pipeline:
    return Pipeline(EMAIL, job, settings_of(EMAIL), database, queues=queues)


def _now() -> datetime:
    return datetime.now(UTC)


def by_alias(name: str) -> Context:
    context = Context()
    context.invoked_function_arn = f"arn:aws:lambda:us-east-1:000000000000:function:campaign-jobs-test:{name}"
    return context


def batch(first: int, last: int, *, partition: int = 3, topic: str = TOPIC) -> dict[str, Any]:
    """Records first…last of a partition, each a mail to be sent under its offset as id."""
    made = from_kafka(*(value_of(event(event_id=str(offset))) for offset in range(first, last + 1)))
    (records,) = made["records"].values()
    for number, record in enumerate(records):
        record |= {"offset": first + number, "partition": partition, "topic": topic}
    return {**made, "records": {f"{topic}-{partition}": records}}


def killed(
    pipeline: Pipeline, job: ScriptedJob, source: dict[str, Any], context: Context | None = None
) -> None:
    """An invocation that does not come to an orderly end: SystemExit ends Lambda's runtime, too."""
    outcome = job.outcome

    def end(_: Delivery[Any]) -> Outcome:
        raise SystemExit

    job.outcome = end
    with pytest.raises(SystemExit):
        pipeline.handle(source, context or Context())
    job.outcome = outcome
    job.batches.clear()


def left(connection: Connection) -> tuple[int, int]:
    """Markers and counted starts."""
    row = connection.execute(
        "SELECT (SELECT count(*) FROM campaign_jobs.batch_markers),"
        " (SELECT count(*) FROM campaign_jobs.solo_starts)"
    ).fetchone()
    assert row is not None
    return row


# From Kafka.


def test_the_batch_after_a_killed_one_goes_to_the_retry_queue_as_it_came_and_the_next_is_worked_on(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, connection: Connection
) -> None:
    killed(pipeline, job, batch(40, 44))
    assert left(connection) == (1, 0)
    again = batch(40, 44)
    again["records"][f"{TOPIC}-3"][2]["value"] = "/w=="
    assert pipeline.handle(again, Context()) == {"isolated": 5}
    assert not job.batches
    assert left(connection) == (0, 0)
    bodies = queues.take(RETRY)
    assert not queues.sent
    assert [body["offset"] for body in bodies] == [40, 41, 42, 43, 44]
    assert {(body["attempts"], body["isolated"]) for body in bodies} == {(0, True)}
    assert bodies[2]["value_base64"] == "/w=="

    assert pipeline.handle(batch(45, 46), Context()) == {"processed": 2}
    # Alone, the others are done, and what is not ours is left to its owner.
    counts = [pipeline.handle(from_sqs(body), Context()) for body in bodies]
    assert counts == [{"processed": 1}, {"processed": 1}, {"ignored": 1}, {"processed": 1}, {"processed": 1}]
    assert not queues.sent
    assert left(connection) == (0, 0)


@pytest.mark.parametrize(
    ("second", "isolated"),
    [
        (batch(40, 44), True),
        (batch(44, 60), True),
        (batch(30, 40), True),
        (batch(42, 42), True),
        (batch(0, 99), True),
        (batch(45, 60), False),
        (batch(30, 39), False),
        (batch(40, 44, partition=4), False),
        (batch(40, 44, topic="other-events"), False),
    ],
    ids=["same", "end", "begin", "within", "around", "after", "before", "other partition", "other topic"],
)
def test_only_a_marker_that_overlaps_isolates(
    pipeline: Pipeline, job: ScriptedJob, connection: Connection, second: dict[str, Any], isolated: bool
) -> None:
    killed(pipeline, job, batch(40, 44))
    (records,) = second["records"].values()
    name = "isolated" if isolated else "processed"
    assert pipeline.handle(second, Context()) == {name: len(records)}
    assert left(connection) == (0 if isolated else 1, 0)


def test_one_invocation_marks_every_partition_of_its_batch(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, connection: Connection
) -> None:
    both = batch(40, 44)
    both["records"] |= batch(7, 8, partition=5)["records"]
    killed(pipeline, job, both)
    assert left(connection) == (2, 0)
    # Found in one partition, it goes from both: the same record is in neither batch of the next deliveries.
    assert pipeline.handle(batch(8, 9, partition=5), Context()) == {"isolated": 2}
    assert left(connection) == (0, 0)


def test_two_lanes_on_one_partition_do_not_disturb_each_other(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, connection: Connection
) -> None:
    killed(pipeline, job, batch(40, 44), by_alias("email"))
    assert pipeline.handle(batch(40, 44), by_alias("email-bulk")) == {"processed": 5}
    assert left(connection) == (1, 0)
    killed(pipeline, job, batch(50, 52), by_alias("email-bulk"))
    assert pipeline.handle(batch(50, 52), by_alias("email-bulk")) == {"isolated": 3}
    assert len(queues.take(BULK)) == 3
    assert not queues.sent
    assert pipeline.handle(batch(40, 44), by_alias("email")) == {"isolated": 5}
    assert len(queues.take(RETRY)) == 5


def test_every_orderly_end_removes_the_marker(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, connection: Connection
) -> None:
    def raises(error: Exception) -> Callable[[Delivery[Any]], Outcome]:
        def outcome(_: Delivery[Any]) -> Outcome:
            raise error

        return outcome

    job.outcome = raises(DatabaseUnavailable("gone"))
    with pytest.raises(DatabaseUnavailable):
        pipeline.handle(batch(40, 44), Context())
    assert left(connection) == (0, 0)
    job.outcome = lambda delivery: Retry("no")
    queues.broken = True
    with pytest.raises(QueueUnavailable):
        pipeline.handle(batch(40, 44), Context())
    assert left(connection) == (0, 0)
    incomplete = batch(40, 44)
    del incomplete["records"][f"{TOPIC}-3"][0]["timestamp"]
    with pytest.raises(KeyError):
        pipeline.handle(incomplete, Context())
    assert left(connection) == (0, 0)


def test_invocations_at_the_same_time_isolate_only_what_both_have(
    database_url: str, pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, connection: Connection
) -> None:
    second_job = ScriptedJob()
    other = Database(database_url)
    second = Pipeline(EMAIL, second_job, settings_of(EMAIL), other, queues=queues)
    seen: list[Any] = []

    def meanwhile(_: Delivery[Any]) -> Outcome:
        if not seen:
            seen.append(second.handle(batch(40, 44, partition=4), Context()))
            seen.append(second.handle(batch(44, 46), Context()))
        return Done()

    job.outcome = meanwhile
    # One that is still at work, as after a rebalance, goes on to its end.
    assert pipeline.handle(batch(40, 44), Context()) == {"processed": 5}
    other.close()
    assert seen == [{"processed": 5}, {"isolated": 3}]
    assert [body["offset"] for body in queues.take(RETRY)] == [44, 45, 46]
    assert left(connection) == (0, 0)


def test_two_that_mark_at_the_same_moment_neither_wait_nor_see_each_other(
    pipeline: Pipeline, job: ScriptedJob, connection: Connection
) -> None:
    with connection.transaction():
        connection.execute(
            "INSERT INTO campaign_jobs.batch_markers"
            " (consumer_group, topic, partition, marker_id, first_offset, last_offset)"
            " VALUES ('job-workers-email', %s, 3, %s, 40, 44)",
            (TOPIC, uuid.uuid4()),
        )
        # What is not committed yet is not found, and is not in the way.
        assert pipeline.handle(batch(40, 44), Context()) == {"processed": 5}
    assert left(connection) == (1, 0)
    assert pipeline.handle(batch(40, 44), Context()) == {"isolated": 5}
    assert left(connection) == (0, 0)


def test_a_marker_stays_until_the_queue_has_the_records(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, connection: Connection
) -> None:
    killed(pipeline, job, batch(40, 44))
    queues.broken = True
    with pytest.raises(QueueUnavailable):
        pipeline.handle(batch(40, 44), Context())
    assert left(connection) == (1, 0)
    queues.broken = False
    assert pipeline.handle(batch(40, 44), Context()) == {"isolated": 5}
    assert left(connection) == (0, 0)
    assert not job.batches


# Without the database.


@pytest.fixture
def outage(postgres_server: PostgresServer, database_url: str) -> Callable[[], Any]:
    """A while in which nobody is connected, or can be."""
    name = str(conninfo_to_dict(database_url)["dbname"])

    @contextmanager
    def outage() -> Iterator[None]:
        with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as admin:
            allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
            admin.execute(allow.format(sql.Identifier(name), sql.SQL("false")))
            admin.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", (name,)
            )
            try:
                yield
            finally:
                admin.execute(allow.format(sql.Identifier(name), sql.SQL("true")))

    return outage


def test_without_the_database_nothing_begins(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, outage: Callable[[], Any]
) -> None:
    message = body_of(Received(Coordinates(TOPIC, 3, 7), value_of(event()), _now(), _now()))
    with outage():
        for source in (batch(40, 44), from_sqs(message)):
            with pytest.raises(DatabaseUnavailable):
                pipeline.handle(source, Context())
    assert not job.batches
    assert not queues.sent


def through_outage(
    pipeline: Pipeline, job: ScriptedJob, outage: Callable[[], Any], source: dict[str, Any], last: str
) -> None:
    """An invocation that does its work, and in the midst of which the database goes away until after its end."""
    gone = outage()

    def goes_away(delivery: Delivery[Any]) -> Outcome:
        if delivery.event.id == last:
            gone.__enter__()
        return Done()

    job.outcome = goes_away
    # What the invocation has done stays done, whatever cannot be removed.
    counts = pipeline.handle(source, Context())
    job.outcome = lambda delivery: Done()
    gone.__exit__(None, None, None)
    assert set(counts) == {"processed"}


def test_what_an_outage_left_behind_is_made_up_for_by_the_process_s_next_invocation(
    pipeline: Pipeline,
    job: ScriptedJob,
    queues: RecordingQueues,
    outage: Callable[[], Any],
    database_url: str,
) -> None:
    # As often as a killer may start alone, and once more.
    for _ in range(MAX_UNFINISHED_STARTS + 1):
        through_outage(pipeline, job, outage, from_sqs(message_of(7)), "7")
    through_outage(pipeline, job, outage, batch(40, 44), "44")
    with outage(), pytest.raises(DatabaseUnavailable):
        pipeline.handle(batch(40, 44), Context())
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert left(connection) == (1, 0)
        # Still remembered.
        assert pipeline.handle(batch(40, 44), Context()) == {"processed": 5}
        assert left(connection) == (0, 0)
    assert not queues.sent


def test_a_marker_left_by_an_outage_costs_only_the_way_through_the_retry_queue(
    pipeline: Pipeline,
    job: ScriptedJob,
    queues: RecordingQueues,
    outage: Callable[[], Any],
    database: Database,
    database_url: str,
) -> None:
    through_outage(pipeline, job, outage, batch(40, 44), "44")
    # Another process.
    pipeline = Pipeline(EMAIL, job, settings_of(EMAIL), database, queues=queues)
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert left(connection) == (1, 0)
        assert pipeline.handle(batch(40, 44), Context()) == {"isolated": 5}
        assert left(connection) == (0, 0)
        for body in queues.take(RETRY):
            assert pipeline.handle(from_sqs(body), Context()) == {"processed": 1}
        assert pipeline.handle(batch(40, 44), Context()) == {"processed": 5}
        assert left(connection) == (0, 0)
    assert not queues.sent


# From the retry queue.


def message_of(offset: int, *, partition: int = 3, **changes: Any) -> dict[str, Any]:
    value = value_of(event(event_id=str(offset)))
    return {**body_of(Received(Coordinates(TOPIC, partition, offset), value, _now(), _now())), **changes}


def test_the_receive_after_three_starts_without_an_end_makes_a_dead_letter_and_asks_nobody(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, connection: Connection
) -> None:
    killer = message_of(7, isolated=True)
    for _ in range(3):
        killed(pipeline, job, from_sqs(killer))
    assert not queues.sent
    # Its namesakes elsewhere have a count of their own.
    for other in (message_of(8), message_of(7, partition=4)):
        assert pipeline.handle(from_sqs(other), Context()) == {"processed": 1}
    assert pipeline.handle(from_sqs(message_of(7)), by_alias("email-bulk")) == {"processed": 1}
    assert job.ids == ["8", "7", "7"]
    assert left(connection) == (0, 1)

    assert pipeline.handle(from_sqs(killer), Context()) == {"dead_lettered": 1}
    assert job.ids == ["8", "7", "7"]
    assert not job.given_up
    assert left(connection) == (0, 0)
    (letter,) = queues.take(DEAD_LETTERS)
    assert (letter["dead_letter"]["reason"], letter["dead_letter"]["attempts"]) == (KILLED_ALONE, 0)
    assert (letter["partition"], letter["offset"], letter["value"]) == (3, 7, killer["value"])

    # A redrive begins anew.
    for _ in range(3):
        killed(pipeline, job, from_sqs(letter))
    assert pipeline.handle(from_sqs(letter), Context()) == {"dead_lettered": 1}
    assert pipeline.handle(from_sqs(letter), Context()) == {"processed": 1}
    assert left(connection) == (0, 0)


def test_an_orderly_end_clears_the_count(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, connection: Connection
) -> None:
    for _ in range(3):
        killed(pipeline, job, from_sqs(message_of(7)))
        killed(pipeline, job, from_sqs(message_of(7)))
        job.outcome = lambda delivery: Retry("no")
        assert pipeline.handle(from_sqs(message_of(7)), Context()) == {"retried": 1}
        assert left(connection) == (0, 0)
    queues.broken = True
    with pytest.raises(QueueUnavailable):
        pipeline.handle(from_sqs(message_of(7)), Context())
    assert left(connection) == (0, 0)


def test_a_killer_whose_dead_letter_is_not_kept_is_still_one(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, connection: Connection
) -> None:
    for _ in range(3):
        killed(pipeline, job, from_sqs(message_of(7)))
    queues.broken = True
    with pytest.raises(QueueUnavailable):
        pipeline.handle(from_sqs(message_of(7)), Context())
    assert not job.batches
    assert left(connection) == (0, 1)
    queues.broken = False
    assert pipeline.handle(from_sqs(message_of(7)), Context()) == {"dead_lettered": 1}
    assert left(connection) == (0, 0)


def test_several_messages_at_once_are_counted_each(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, connection: Connection
) -> None:
    several = {"Records": [from_sqs(message_of(offset))["Records"][0] for offset in (7, 9, 7, 8)]}
    for _ in range(3):
        killed(pipeline, job, from_sqs(message_of(8)))
    killed(pipeline, job, from_sqs(message_of(9)))
    assert pipeline.handle(several, Context()) == {"processed": 2, "skipped": 1, "dead_lettered": 1}
    assert job.ids == ["7", "9"]
    (letter,) = queues.take(DEAD_LETTERS)
    assert letter["offset"] == 8
    assert left(connection) == (0, 0)


@pytest.mark.parametrize("kind", BAD)
def test_isolated_each_record_still_has_one_owner(
    kind: str, database: Database, connection: Connection
) -> None:
    value, owner, _ = BAD[kind]
    queues, done = RecordingQueues(), []
    for job_type in EVENT_JOB_TYPES:
        job = ScriptedJob()
        for lane in job_type.lanes:
            context = by_alias(lane.name)
            passed = [
                good
                for good in GOOD
                if job_type is UNROUTABLE or json.loads(good)["type"] in lane.event_types
            ]
            source = from_kafka(*passed, value, HEARTBEAT)
            handle = handler(job_type, database, job, queues)
            mark(connection, lane.consumer_group("job-workers"))
            assert handle(source, context) == {"isolated": len(passed) + 2}
            for body in queues.take(lane.retry_queue_setting):
                handle(from_sqs(body), context)
        done += job.ids
    assert Counter(done) == {json.loads(good)["id"]: 1 for good in GOOD}
    letters = {body["dead_letter"]["job_type"] for _, text, _ in queues.sent if (body := json.loads(text))}
    assert letters == {owner}
    assert len(queues.sent) == (2 if owner == "email" else 1)
    assert left(connection) == (0, 0)


def handler(job_type: EventJobType, database: Database, job: ScriptedJob, queues: RecordingQueues) -> Handle:
    if job_type is UNROUTABLE:
        return Unroutable(settings_of(UNROUTABLE), database, queues=queues).handle  # type: ignore[arg-type]
    return Pipeline(job_type, job, settings_of(job_type), database, queues=queues).handle


def mark(connection: Connection, group: str, *, days_ago: int = 0) -> None:
    """The marker of an invocation that was killed."""
    connection.execute(
        "INSERT INTO campaign_jobs.batch_markers"
        " (consumer_group, topic, partition, marker_id, first_offset, last_offset, created_at)"
        " VALUES (%s, %s, 3, gen_random_uuid(), 0, 1000, now() - make_interval(days => %s))",
        (group, TOPIC, days_ago),
    )


def test_unroutable_isolates_as_every_function_does(
    database: Database, queues: RecordingQueues, connection: Connection
) -> None:
    handle = Unroutable(settings_of(UNROUTABLE), database, queues=queues).handle  # type: ignore[arg-type]
    mark(connection, "job-workers-unroutable")
    assert handle(from_kafka(b"x", GOOD[0]), Context()) == {"isolated": 2}
    bad, owned = queues.take("RETRY_QUEUE_URL_UNROUTABLE")
    assert handle(from_sqs(bad), Context()) == {"dead_lettered": 1}
    # Its owner has it from Kafka, and must not get it twice.
    assert handle(from_sqs(owned), Context()) == {"ignored": 1}
    assert len(queues.take("DEAD_LETTER_QUEUE_URL_UNROUTABLE")) == 1
    assert not queues.sent
    assert left(connection) == (0, 0)


# What it costs.


def test_it_costs_two_round_trips_for_each_batch_whatever_its_size(
    database_url: str, queues: RecordingQueues
) -> None:
    class Counting(Database):
        round_trips = 0

        def transaction(self, isolation: IsolationLevel | None = None) -> Any:
            self.round_trips += 3
            return super().transaction(isolation)

        def statement(self, *arguments: Any) -> Any:
            self.round_trips += 1
            return super().statement(*arguments)

    counting = Counting(database_url)
    pipeline = Pipeline(REWARD, ScriptedJob(), settings_of(REWARD), counting, queues=queues)
    for source in (batch(7, 7), batch(0, 999), from_sqs(message_of(7))):
        counting.round_trips = 0
        pipeline.handle(source, Context())
        assert counting.round_trips == 2
    counting.close()


def test_the_relay_forgets_what_nobody_comes_to_find(database: Database, connection: Connection) -> None:
    mark(connection, "job-workers-email", days_ago=2)
    mark(connection, "job-workers-email")
    for offset, days in ((1, 16), (2, 14)):
        connection.execute(
            "INSERT INTO campaign_jobs.solo_starts VALUES ('g', 't', 0, %s, 1, now() - make_interval(days => %s))",
            (offset, days),
        )
    relay = Relay(database, RecordingProducer())  # type: ignore[arg-type]
    assert relay.round() == RelayReport(rounds=1, markers_forgotten=2)
    assert left(connection) == (1, 1)
    # Not in every round, because the relay looks each second.
    mark(connection, "job-workers-email", days_ago=2)
    assert relay.round() == RelayReport(rounds=1)
