"""Every kind of record through every function: who does it, ignores it or makes it a dead letter, and its retries."""

import base64
import hashlib
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import psycopg
import pytest
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st

from campaign_jobs import events
from campaign_jobs.catalog import (
    EMAIL,
    EVENT_JOB_TYPES,
    MAX_VALUE_BYTES,
    POSITION,
    REWARD,
    UNROUTABLE,
    EventJobType,
)
from campaign_jobs.database.batches import Refusal
from campaign_jobs.database.connection import Database
from campaign_jobs.errors import DatabaseUnavailable, OutOfTime, QueueUnavailable, UnknownLane
from campaign_jobs.settings import BY_FUNCTION, EventJobSettings
from campaign_jobs.worker import pipeline as pipeline_module
from campaign_jobs.worker.delivery import Coordinates, Deadline, Delivery
from campaign_jobs.worker.messages import (
    MAX_UNREADABLE_CHARACTERS,
    Received,
    body_of,
    dead_letter_of,
    read_body,
)
from campaign_jobs.worker.outcomes import Done, Later, Outcome, Rejected, Retry, Skipped
from campaign_jobs.worker.pipeline import SETTLING_SECONDS, Pipeline, lane_of
from campaign_jobs.worker.queues import SEND_SECONDS, Outgoing, SqsQueues
from campaign_jobs.worker.settle import MAX_BACKOFF, backoff
from campaign_jobs.worker.unroutable import Unroutable
from local.aws import AwsStandIn
from local.postgres import PostgresServer
from tests.conftest import TEMPLATE_DATABASE
from tests.integration.email_campaign import UNSUBSCRIBE_SETTINGS

TOPIC = "job-events"
UUIDS = [str(uuid.UUID(int=number)) for number in range(1, 4)]
SQS_LIMIT = 1_048_576


class Context:
    aws_request_id = "8f0c…"
    invoked_function_arn = "arn:aws:lambda:us-east-1:000000000000:function:campaign-jobs-test-email:email"

    def get_remaining_time_in_millis(self) -> int:
        return 100_000


@dataclass
class RecordingQueues:
    """Keeps messages as SQS would: as text."""

    sent: list[tuple[str, str, int]] = field(default_factory=list)
    broken: bool = False

    def send(self, messages: Sequence[Outgoing]) -> None:
        if self.broken:
            raise QueueUnavailable("SQS did not take messages")
        for message in messages:
            self.sent.append((message.queue_url, json.dumps(message.body), message.delay_seconds))

    def take(self, queue: str) -> list[dict[str, Any]]:
        """The bodies sent to a queue since the last look."""
        taken = [json.loads(body) for url, body, _ in self.sent if url == url_of(queue)]
        self.sent = [entry for entry in self.sent if entry[0] != url_of(queue)]
        return taken


@dataclass
class ScriptedJob:
    """Does what `outcome` says and remembers what it was given."""

    outcome: Callable[[Delivery[Any]], Outcome] = lambda delivery: Done()
    batches: list[list[Delivery[Any]]] = field(default_factory=list)
    given_up: list[tuple[str, str]] = field(default_factory=list)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    """What the database says to giving up the events with these ids."""
    least_seconds: float = 0

    def process(self, deliveries: Sequence[Delivery[Any]], deadline: Deadline) -> Sequence[Outcome]:
        assert 0 < deadline.remaining_seconds() <= 100
        self.batches.append(list(deliveries))
        return [self.outcome(delivery) for delivery in deliveries]

    def give_up(
        self, given_up: Sequence[tuple[Delivery[Any], str]]
    ) -> Sequence[tuple[Delivery[Any], Refusal]]:
        self.given_up += [
            (delivery.event.id, reason)
            for delivery, reason in given_up
            if delivery.event.id not in self.refusals
        ]
        return [
            (delivery, self.refusals[delivery.event.id])
            for delivery, _ in given_up
            if delivery.event.id in self.refusals
        ]

    @property
    def ids(self) -> list[str]:
        return [delivery.event.id for batch in self.batches for delivery in batch]


def url_of(name: str) -> str:
    return f"https://sqs.example.com/000000000000/{name.lower().replace('_', '-')}"


def settings_of(job_type: EventJobType) -> EventJobSettings:
    environ = {
        "DATABASE_URL": "postgresql://db/jobs",
        "DEFAULT_SENDER": "hello@example.com",
        **UNSUBSCRIBE_SETTINGS,
    }
    of = BY_FUNCTION[job_type.name]
    environ |= {name: url_of(name) for name in of.environment_names() if "_QUEUE_URL_" in name}
    loaded = of.load(environ)
    assert isinstance(loaded, EventJobSettings)
    return loaded


@pytest.fixture
def queues() -> RecordingQueues:
    return RecordingQueues()


@pytest.fixture
def job() -> ScriptedJob:
    return ScriptedJob()


_database: Database | None = None


@pytest.fixture(scope="module", autouse=True)
def _one_database(postgres_server: PostgresServer) -> Iterator[None]:
    """For all tests here: but for heartbeats, an invocation leaves nothing in it, whatever its end."""
    global _database  # noqa: PLW0603  Invocations are made in functions that take no fixtures.
    name = f"test_{uuid.uuid4().hex}"
    url = postgres_server.create_database(name, template=TEMPLATE_DATABASE)
    _database = Database(url)
    yield
    with psycopg.connect(url) as connection:
        for table in ("batch_markers", "solo_starts"):
            assert connection.execute(f"SELECT * FROM campaign_jobs.{table}").fetchall() == []
    _database.close()
    postgres_server.drop_database(name)


def database() -> Database:
    assert _database is not None
    return _database


def pipeline_of(job_type: EventJobType, job: ScriptedJob, queues: Any) -> Pipeline:
    return Pipeline(job_type, job, settings_of(job_type), database(), queues=queues)


@pytest.fixture
def pipeline(job: ScriptedJob, queues: RecordingQueues) -> Pipeline:
    return pipeline_of(EMAIL, job, queues)


def unroutable_of(queues: Any) -> Unroutable:
    return Unroutable(settings_of(UNROUTABLE), database(), queues=queues)  # type: ignore[arg-type]


def event(type_: str = "job.email.verification", event_id: str = "good", **changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"campaign_id": UUIDS[0], "user_id": UUIDS[1]}
    if type_ == "job.reward.deliver":
        data = {"user_reward_id": UUIDS[2]}
    if type_ == "job.email.milestone":
        data["milestone"] = 5
    if type_ == "job.email.reward_earned":
        data["user_reward_id"] = UUIDS[2]
    return {"id": event_id, "type": type_, "data": data, "timestamp": "2025-01-01T12:00:00Z", **changes}


def value_of(event: Any) -> bytes:
    return json.dumps(event).encode()


def from_kafka(*values: bytes | None, timestamp: int = 1_735_732_800_000) -> dict[str, Any]:
    records: list[dict[str, Any]] = [
        {
            "topic": TOPIC,
            "partition": 3,
            "offset": 40 + number,
            "timestamp": timestamp,
            "timestampType": "CREATE_TIME",
            "key": None,
            "value": None if value is None else base64.b64encode(value).decode(),
            "headers": [],
        }
        for number, value in enumerate(values)
    ]
    return {"eventSource": "aws:kafka", "records": {f"{TOPIC}-3": records}}


def from_sqs(body: dict[str, Any] | str) -> dict[str, Any]:
    text = body if isinstance(body, str) else json.dumps(body)
    attributes = {"ApproximateReceiveCount": "1", "SentTimestamp": str(round(time.time() * 1000))}
    return {"Records": [{"messageId": "1", "body": text, "attributes": attributes}]}


# Every record has one owner.

BAD: dict[str, tuple[bytes | None, str, str]] = {
    # value, owner, a part of the reason
    "not JSON": (b"not JSON", "unroutable", "the value is not JSON: Expecting value (line 1, column 1)"),
    "empty": (b"", "unroutable", "the value is not JSON"),
    "NaN": (b'{"type": NaN}', "unroutable", "NaN is not a JSON number"),
    "too deep": (b"[" * 100_000, "unroutable", "nested too deeply"),
    "an array": (b'[{"type": "job.email.welcome"}]', "unroutable", "the value is a JSON array"),
    "a text": (b'"job.email.welcome"', "unroutable", "the value is a JSON text"),
    "null in JSON": (b"null", "unroutable", "the value is a JSON null"),
    "bad UTF-8": (b'{"type": "\xff"}', "unroutable", "the value is not UTF-8 (byte 10)"),
    "an encoded surrogate": (b'{"type": "\xed\xa0\x80"}', "unroutable", "the value is not UTF-8"),
    "null": (None, "unroutable", "the value is null"),
    "no type": (b'{"id": "1"}', "unroutable", "the event's type is missing"),
    "a type that is null": (b'{"type": null}', "unroutable", "the event's type is missing"),
    "a type that is a number": (b'{"type": 7}', "unroutable", "the event's type is a JSON number"),
    "an unknown type": (b'{"type": "job.email.goodbye"}', "unroutable", "'job.email.goodbye' is unknown"),
    "a type in an array": (b'{"type": ["job.email.welcome"]}', "unroutable", "the event's type is a JSON array"),
    "a lone surrogate as type": (b'{"type": "\\ud800"}', "unroutable", "is unknown; allowed are job.email."),
    "too large": (b'{"type": "job.reward.deliver", "": "' + b"x" * MAX_VALUE_BYTES + b'"}', "unroutable", "bytes"),
    "no id": (value_of(event("job.email.welcome", id=None)), "email", "id: Field required"),
    "no user": (value_of(event("job.email.welcome", data={"campaign_id": UUIDS[0]})), "email", "data.user_id"),
    "a lone surrogate": (b'{"id": "\\ud800", "type": "job.position.recalculate"}', "position", "lone surrogate"),
    "NUL": (value_of(event("job.reward.deliver", "a\x00b")), "reward", "must not contain NUL"),
    "data that is an array": (value_of(event("job.reward.deliver", data=[])), "reward", "data: Input should be"),
}  # fmt: skip
GOOD = [
    value_of(event(type_, f"good-{type_}"))
    for job_type in EVENT_JOB_TYPES
    for lane in job_type.lanes
    for type_ in lane.event_types
]
HEARTBEAT = b'{"type": "campaign-jobs.heartbeat", "id": "h"}'


@pytest.mark.parametrize("kind", BAD)
def test_each_bad_record_becomes_one_dead_letter_among_its_good_neighbors(kind: str) -> None:
    value, owner, reason = BAD[kind]
    queues = RecordingQueues()
    # Whatever the mappings' filters let through, each function is handed everything.
    batch = from_kafka(*GOOD[:4], value, HEARTBEAT, *GOOD[4:])
    done = []
    for job_type in (EMAIL, POSITION, REWARD):
        job = ScriptedJob()
        counts = pipeline_of(job_type, job, queues).handle(batch, Context())
        done += job.ids
        mine = len(job_type.event_types)
        bad = 1 if owner == job_type.name else 0
        others = len(GOOD) + 1 - mine - bad
        expected = {"processed": mine, "ignored": others, "dead_lettered": bad, "heartbeats": 1}
        assert counts == {name: count for name, count in expected.items() if count}
    counts = unroutable_of(queues).handle(batch, Context())
    assert counts["dead_lettered"] == (1 if owner == "unroutable" else 0)
    assert Counter(done) == {json.loads(good)["id"]: 1 for good in GOOD}

    ((queue, text, _),) = queues.sent
    assert queue == url_of(f"DEAD_LETTER_QUEUE_URL_{owner}")
    body = json.loads(text)
    assert (body["topic"], body["partition"], body["offset"]) == (TOPIC, 3, 44)
    assert body["dead_letter"]["job_type"] == owner
    assert reason in body["dead_letter"]["reason"]
    assert body["dead_letter"]["attempts"] == 0
    if kind == "too large":
        assert value is not None
        digest = hashlib.sha256(value).hexdigest()
        assert body["value_dropped"] == {"bytes": len(value), "sha256": digest}
        assert len(text) < 2_000
    else:
        assert read_body(text, now=datetime.now(UTC)).value == value


@pytest.mark.parametrize("kind", BAD)
def test_a_redriven_bad_record_ends_as_a_dead_letter_again_wherever_it_is_sent(kind: str) -> None:
    value, _, _ = BAD[kind]
    received = Received(Coordinates(TOPIC, 3, 44), value, datetime.now(UTC), datetime.now(UTC))
    letter = dead_letter_of(received, job_type="unroutable", reason="…", now=datetime.now(UTC))
    for job_type in (EMAIL, POSITION, REWARD):
        queues, job = RecordingQueues(), ScriptedJob()
        assert pipeline_of(job_type, job, queues).handle(from_sqs(letter), Context()) == {"dead_lettered": 1}
        ((queue, text, _),) = queues.sent
        assert queue == url_of(f"DEAD_LETTER_QUEUE_URL_{job_type.name}")
        assert not job.batches
        if kind == "too large":
            # The size and the hash of what could not be kept stay with it.
            body = json.loads(text)
            size = letter["value_dropped"]["bytes"]
            assert body["dead_letter"]["reason"] == (
                f"the value has {size} bytes and was not kept; allowed are at most 262144"
            )
            assert body["value_dropped"] == letter["value_dropped"]


def test_a_heartbeat_is_passed_in_silence_from_wherever_it_comes(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    received = Received(Coordinates(TOPIC, 0, 0), HEARTBEAT, datetime.now(UTC), datetime.now(UTC))
    for source, counted in ((from_kafka(HEARTBEAT), "heartbeats"), (from_sqs(body_of(received)), "ignored")):
        assert pipeline.handle(source, Context()) == {counted: 1}
        assert unroutable_of(queues).handle(source, Context()) == {counted: 1}
    assert not job.batches
    assert not queues.sent


def test_an_event_redriven_to_the_wrong_owner_says_where_it_belongs(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    received = Received(
        Coordinates(TOPIC, 0, 7), value_of(event("job.reward.deliver")), datetime.now(UTC), datetime.now(UTC)
    )
    letter = dead_letter_of(received, job_type="reward", reason="no", now=datetime.now(UTC))
    assert pipeline.handle(from_sqs(letter), Context()) == {"dead_lettered": 1}
    (body,) = queues.take("DEAD_LETTER_QUEUE_URL_EMAIL")
    assert (
        body["dead_letter"]["reason"] == "job.reward.deliver belongs to the job type reward: redrive it there"
    )
    assert not job.batches
    # The same record from Kafka is simply another one's.
    assert pipeline.handle(from_kafka(received.value), Context()) == {"ignored": 1}


@pytest.mark.parametrize(
    ("type_", "queue"),
    [
        ("job.email.welcome", "RETRY_QUEUE_URL_EMAIL"),
        ("job.email.milestone", "RETRY_QUEUE_URL_EMAIL_BULK"),
        ("job.position.recalculate", "RETRY_QUEUE_URL_POSITION"),
        ("job.reward.deliver", "RETRY_QUEUE_URL_REWARD"),
    ],
)
def test_unroutable_hands_on_what_has_an_owner_by_now(
    queues: RecordingQueues, type_: str, queue: str
) -> None:
    received = Received(
        Coordinates(TOPIC, 2, 9), value_of(event(type_)), datetime.now(UTC), datetime.now(UTC), 3
    )
    letter = dead_letter_of(received, job_type="unroutable", reason="unknown", now=datetime.now(UTC))
    assert unroutable_of(queues).handle(from_sqs(letter), Context()) == {"handed_on": 1}
    (body,) = queues.take(queue)
    assert not queues.sent
    assert (body["offset"], body["attempts"]) == (9, 0)
    assert "dead_letter" not in body
    assert read_body(json.dumps(body), now=datetime.now(UTC)).value == received.value
    # From the topic it leaves it to its owner.
    assert unroutable_of(queues).handle(from_kafka(received.value), Context()) == {"ignored": 1}


@pytest.mark.parametrize("milliseconds", [-1, -(2**62), 2**62, 253_402_300_800_000])
def test_a_time_that_no_calendar_has_does_not_stop_a_partition(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, milliseconds: int
) -> None:
    job.outcome = lambda delivery: Retry("no")
    without_time = value_of(event(timestamp=None))
    assert pipeline.handle(from_kafka(without_time, b"x", timestamp=milliseconds), Context())["retried"] == 1
    assert unroutable_of(queues).handle(from_kafka(b"x", timestamp=milliseconds), Context()) == {
        "dead_lettered": 1
    }
    (body,) = queues.take("RETRY_QUEUE_URL_EMAIL")
    assert abs(
        read_body(json.dumps(body), now=datetime.now(UTC)).recorded_at - datetime.now(UTC)
    ) < timedelta(minutes=1)


# The lane of an invocation.

FUNCTION_ARN = "arn:aws:lambda:us-east-1:000000000000:function:campaign-jobs-test-email"


def test_the_alias_that_is_invoked_says_the_lane() -> None:
    for lane in EMAIL.lanes:
        assert lane_of(EMAIL, f"{FUNCTION_ARN}:{lane.name}") == lane


@pytest.mark.parametrize("alias", ["", ":$LATEST", ":position", ":7"])
def test_a_lane_that_cannot_be_known_stops_the_batch_where_there_are_several(
    alias: str, pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    context = Context()
    context.invoked_function_arn = f"{FUNCTION_ARN}{alias}"
    with pytest.raises(UnknownLane, match=r"allowed are email, email-bulk"):
        pipeline.handle(from_kafka(value_of(event())), context)
    assert not job.batches
    assert not queues.sent
    (only,) = REWARD.lanes
    assert lane_of(REWARD, context.invoked_function_arn) == only


# The order and the identity of events in a batch.


def test_the_more_urgent_comes_first_and_equals_stay_in_order(pipeline: Pipeline, job: ScriptedJob) -> None:
    def urgent(event_id: str, priority: int | None) -> bytes:
        whole = event(event_id=event_id)
        whole["data"]["priority"] = priority
        return value_of(whole)

    pipeline.handle(
        from_kafka(urgent("a", 0), urgent("b", 5), urgent("c", None), urgent("d", -1), urgent("e", 5)),
        Context(),
    )
    assert job.ids == ["b", "e", "a", "c", "d"]


def test_the_same_event_twice_in_a_batch_is_done_once(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    job.outcome = lambda delivery: Retry("no")
    counts = pipeline.handle(
        from_kafka(value_of(event()), value_of(event()), value_of(event(event_id="other"))), Context()
    )
    assert counts == {"retried": 2, "skipped": 1}
    assert job.ids == ["good", "other"]
    assert [body["offset"] for body in queues.take("RETRY_QUEUE_URL_EMAIL")] == [40, 42]


# Outcomes.


def delivered(outcome: Outcome, *, job_type: EventJobType = EMAIL, body: Any = None) -> tuple[Any, ...]:
    queues, job = RecordingQueues(), ScriptedJob(lambda delivery: outcome)
    pipeline = pipeline_of(job_type, job, queues)
    counts = pipeline.handle(from_kafka(value_of(event())) if body is None else from_sqs(body), Context())
    return counts, queues.sent, job


@pytest.mark.parametrize(
    ("outcome", "name"), [(Done(), "processed"), (Skipped("verified already"), "skipped")]
)
def test_what_is_finished_goes_nowhere(outcome: Outcome, name: str) -> None:
    counts, sent, job = delivered(outcome)
    assert counts == {name: 1}
    assert not sent
    assert not job.given_up


def test_what_is_rejected_is_given_up_and_kept() -> None:
    counts, ((queue, text, delay),), job = delivered(Rejected("never"))
    assert counts == {"dead_lettered": 1}
    assert (queue, delay) == (url_of("DEAD_LETTER_QUEUE_URL_EMAIL"), 0)
    letter = json.loads(text)
    assert letter["dead_letter"]["reason"] == "never"
    assert letter["dead_letter"]["attempts"] == 1
    assert job.given_up == [("good", "never")]


def test_a_retry_spends_attempts_up_to_the_last_and_a_redrive_counts_anew() -> None:
    body: Any = None
    for attempt in range(1, EMAIL.max_attempts):
        counts, ((queue, text, delay),), job = delivered(Retry("down"), body=body)
        assert counts == {"retried": 1}
        assert queue == url_of("RETRY_QUEUE_URL_EMAIL")
        body = json.loads(text)
        assert (body["attempts"], body["reason"]) == (attempt, "down")
        assert 0 < delay <= MAX_BACKOFF.total_seconds()
        assert not job.given_up
        assert job.batches[0][0].attempts_spent == attempt - 1
        body["not_before"] = "2025-01-01T00:00:00+00:00"
    counts, ((queue, text, _),), job = delivered(Retry("down"), body=body)
    assert counts == {"dead_lettered": 1}
    assert queue == url_of("DEAD_LETTER_QUEUE_URL_EMAIL")
    reason = f"down (gave up after {EMAIL.max_attempts} attempts)"
    assert job.given_up == [("good", reason)]
    letter = json.loads(text)
    assert (letter["attempts"], letter["dead_letter"]["reason"]) == (EMAIL.max_attempts, reason)
    assert (letter["dead_letter"]["attempts"], letter["offset"]) == (EMAIL.max_attempts, 40)

    with time_machine.travel(datetime(2030, 1, 1, tzinfo=UTC), tick=False):
        counts, ((queue, text, _),), job = delivered(Retry("down"), body=letter)
    assert counts == {"retried": 1}
    assert json.loads(text)["attempts"] == 1
    assert job.batches[0][0].attempts_spent == 0
    # Patience with missing rows begins anew as well.
    assert job.batches[0][0].first_received_at == datetime(2030, 1, 1, tzinfo=UTC)


def test_a_redriven_letter_does_not_wait_for_a_time_that_its_record_had_to_wait_for() -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    received = Received(Coordinates(TOPIC, 0, 0), value_of(event()), later, later, 3)
    body = {**body_of(received, not_before=later), "dead_letter": {"reason": "no"}}
    counts, sent, _ = delivered(Done(), body=body)
    assert counts == {"processed": 1}
    assert not sent


def test_later_spends_nothing_and_keeps_when_it_was_first_received() -> None:
    with time_machine.travel(datetime(2030, 1, 1, tzinfo=UTC), tick=False):
        counts, ((_, text, delay),), _ = delivered(Later("claimed", timedelta(seconds=7.2)))
    assert counts == {"postponed": 1}
    assert delay == 8
    body = json.loads(text)
    assert (body["attempts"], body["reason"]) == (0, "claimed")
    assert datetime.fromisoformat(body["not_before"]) == datetime(2030, 1, 1, 0, 0, 7, 200_000, tzinfo=UTC)
    with time_machine.travel(datetime(2030, 1, 1, 0, 0, 8, tzinfo=UTC), tick=False):
        counts, sent, job = delivered(Done(), body=body)
    assert counts == {"processed": 1}
    assert job.batches[0][0].first_received_at == datetime(2030, 1, 1, tzinfo=UTC)
    assert not sent


def test_a_long_wait_takes_several_hops_without_asking_the_job() -> None:
    with time_machine.travel(datetime(2030, 1, 1, tzinfo=UTC), tick=False) as clock:
        _, ((_, text, delay),), _ = delivered(Retry("503", timedelta(minutes=40)))
        hops = 0
        while True:
            # RecordingQueues keeps the delay that was wanted; SQS takes at most fifteen minutes of it.
            clock.shift(min(delay, 900))
            counts, sent, job = delivered(Done(), body=text)
            if counts == {"processed": 1}:
                break
            assert counts == {"postponed": 1}
            assert not job.batches
            ((_, text, delay),) = sent
            assert json.loads(text)["attempts"] == 1
            hops += 1
        assert hops == 2
        assert datetime.now(UTC) == datetime(2030, 1, 1, 0, 40, tzinfo=UTC)
        assert job.batches[0][0].attempts_spent == 1


@given(st.integers(0, 1000), st.timedeltas(timedelta(milliseconds=1), timedelta(days=2)))
def test_the_backoff_grows_and_stays_within_its_bounds(spent: int, first: timedelta) -> None:
    full = timedelta(seconds=min(first.total_seconds() * 2.0**spent, MAX_BACKOFF.total_seconds()))
    for _ in range(5):
        assert full * 0.499 <= backoff(spent, first) <= full


def test_the_attempts_of_a_mail_outlast_two_hours_without_ses() -> None:
    first_delay = settings_of(EMAIL).retry_first_delay
    waits = [backoff(spent, first_delay) for spent in range(EMAIL.max_attempts - 1)]
    assert timedelta(hours=2) < sum(waits, timedelta()) < timedelta(hours=5)


# Messages.

VALUES = {
    "ASCII": b'{"a": 1}',
    "not ASCII": '{"name": "Jörg 🎉"}'.encode(),
    "not UTF-8": b"\xff\xfe\x00",
    "null": None,
    "empty": b"",
    "an escaped lone surrogate": b'{"a": "\\ud800"}',
    "line separators": "\u2028\x00\x7f\x85".encode(),
    "long, mostly not ASCII": ("é" * 5_000).encode(),
    "long, hardly not ASCII": b"x" * 5_000 + "é".encode(),
}


def exchange(received: Received, **details: Any) -> tuple[str, Received]:
    text = json.dumps(body_of(received, **details))
    assert text.isascii()
    return text, read_body(text, now=datetime.now(UTC))


@pytest.mark.parametrize("kind", VALUES)
def test_a_record_comes_back_from_a_queue_as_it_was(kind: str) -> None:
    moment = datetime(2026, 3, 29, 1, 30, 0, 123_000, tzinfo=UTC)
    received = Received(Coordinates(TOPIC, 9, 2**40), VALUES[kind], moment, moment + timedelta(seconds=1), 3)
    text, back = exchange(received, not_before=moment + timedelta(minutes=1), reason="Größe")
    assert (back.coordinates, back.value) == (received.coordinates, received.value)
    assert (back.recorded_at, back.first_received_at) == (received.recorded_at, received.first_received_at)
    assert (back.attempts_spent, back.not_before) == (3, moment + timedelta(minutes=1))
    assert back.from_retry_queue
    assert ("value_base64" in text) == (kind in ("not UTF-8", "long, mostly not ASCII"))


@settings(max_examples=40)
@given(
    st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_any_value_comes_back_from_a_queue(value: bytes) -> None:
    now = datetime.now(UTC)
    assert exchange(Received(Coordinates(TOPIC, 0, 0), value, now, now))[1].value == value


@pytest.mark.parametrize(
    "part", [b"\x01", b"\x00", b'"', b"\\", "é".encode(), "🎉".encode(), b"\xff", b"x", b'{"a":"\x1f"}']
)
def test_the_longest_values_fit_a_message_of_sqs(part: bytes) -> None:
    value = (part * MAX_VALUE_BYTES)[: MAX_VALUE_BYTES - MAX_VALUE_BYTES % len(part)]
    now = datetime.now(UTC)
    received = Received(Coordinates("t" * 249, 2**31 - 1, 2**63 - 1), value, now, now)
    letter = json.dumps(dead_letter_of(received, job_type="unroutable", reason="ü" * 1000, now=now))
    assert letter.isascii()
    assert len(letter) < SQS_LIMIT - 400_000
    assert read_body(letter, now=now).value == value


def letter(**changes: Any) -> str:
    whole = {
        "topic": "t",
        "partition": 0,
        "offset": 0,
        "recorded_at": "2025-01-01T00:00:00Z",
        "dead_letter": {},
    }
    return json.dumps({**whole, "value": "x", **changes})


UNREADABLE = [
    "", "hello", "null", "[]", "7", '"x"', "{}", '{"dead_letter": {}}', "[" * MAX_UNREADABLE_CHARACTERS, "\x00\ud800",
    letter(topic=None, partition=None),
    letter(offset=float("inf")),
    letter(offset=2**63),
    letter(offset=-1),
    letter(partition=2**31),
    letter(topic="t\x00"),
    letter(topic="\ud800"),
    letter(recorded_at="2025-01-01T00:00:00"),
    letter(recorded_at="0001-01-01T00:00:00+09:00"),
    letter(value_base64="ä"),
    letter(value="\ud800"),
]  # fmt: skip


@pytest.mark.parametrize("text", UNREADABLE)
def test_a_message_that_is_not_ours_is_kept_once_as_it_came(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, text: str
) -> None:
    for handle, name in ((pipeline.handle, "email"), (unroutable_of(queues).handle, "unroutable")):
        assert handle(from_sqs(text), Context()) == {"dead_lettered": 1}
        (body,) = queues.take(f"DEAD_LETTER_QUEUE_URL_{name}")
        assert body["unreadable_body"] == text
        assert body["dead_letter"]["job_type"] == name
        assert "not a message of campaign-jobs" in body["dead_letter"]["reason"]
    assert not queues.sent
    assert not job.batches


def test_a_long_unreadable_message_can_be_kept(pipeline: Pipeline, queues: RecordingQueues) -> None:
    text = "é" * (SQS_LIMIT // 2)
    assert pipeline.handle(from_sqs(text), Context()) == {"dead_lettered": 1}
    ((_, kept, _),) = queues.sent
    assert len(kept) < SQS_LIMIT
    body = json.loads(kept)
    assert text.startswith(body["unreadable_body"])
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert body["unreadable_body_cut"] == {"bytes": SQS_LIMIT, "sha256": digest}


# What nobody foresaw.


@contextmanager
def logged(service: str) -> Iterator[list[dict[str, Any]]]:
    """The lines that a job type's logger writes."""
    lines: list[dict[str, Any]] = []
    logger = logging.getLogger(service)
    formatter = logger.handlers[0].formatter or logging.Formatter()

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.extend(map(json.loads, formatter.format(record).split("\n")))

    handler = Keeping()
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def test_an_unexpected_error_is_narrowed_down_to_its_event(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    def outcome(delivery: Delivery[Any]) -> Outcome:
        if delivery.event.id == "5":
            raise ZeroDivisionError(delivery.event.data.user_id)
        return Done()

    job.outcome = outcome
    with logged("email") as lines:
        counts = pipeline.handle(
            from_kafka(*(value_of(event(event_id=str(number))) for number in range(9))), Context()
        )
    (line,) = [line for line in lines if line["message"] == "unexpected error"]
    assert (line["event_id"], line["error"], line["level"]) == ("5", "ZeroDivisionError", "ERROR")
    assert "in outcome" in line["where"]
    # The text of an error may hold anything.
    assert UUIDS[1] not in json.dumps(lines)
    assert counts == {"processed": 8, "retried": 1}
    (body,) = queues.take("RETRY_QUEUE_URL_EMAIL")
    assert (body["offset"], body["reason"], body["attempts"]) == (45, "unexpected ZeroDivisionError", 1)


def test_a_record_that_cannot_even_be_read_as_foreseen_leaves_its_neighbors_alone(
    pipeline: Pipeline, queues: RecordingQueues, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = events.parse

    def breaks_on_five(decoded: dict[str, Any], **arguments: Any) -> Any:
        if decoded["id"] == "5":
            raise ZeroDivisionError
        return parse(decoded, **arguments)

    monkeypatch.setattr(events, "parse", breaks_on_five)
    batch = from_kafka(*(value_of(event(event_id=str(number))) for number in range(9)))
    assert pipeline.handle(batch, Context()) == {"processed": 8, "retried": 1}
    (body,) = queues.take("RETRY_QUEUE_URL_EMAIL")
    assert (body["offset"], body["reason"], body["attempts"]) == (45, "unexpected ZeroDivisionError", 1)
    worn_out = {**body, "attempts": EMAIL.max_attempts - 1}
    assert pipeline.handle(from_sqs(worn_out), Context()) == {"dead_lettered": 1}
    (dead,) = queues.take("DEAD_LETTER_QUEUE_URL_EMAIL")
    assert dead["dead_letter"]["reason"].startswith("unexpected ZeroDivisionError (gave up after")


def test_an_unexpected_error_in_giving_up_neither_loses_nor_stops_anything(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.outcome = lambda delivery: Rejected("never")
    give_up = job.give_up

    def breaking(
        given_up: Sequence[tuple[Delivery[Any], str]],
    ) -> Sequence[tuple[Delivery[Any], Refusal]]:
        if any(delivery.event.id == "2" for delivery, _ in given_up):
            raise ZeroDivisionError
        return give_up(given_up)

    monkeypatch.setattr(job, "give_up", breaking)
    assert pipeline.handle(
        from_kafka(*(value_of(event(event_id=str(number))) for number in range(5))), Context()
    ) == {"dead_lettered": 5}
    assert [event_id for event_id, _ in job.given_up] == ["0", "1", "3", "4"]
    assert [body["offset"] for body in queues.take("DEAD_LETTER_QUEUE_URL_EMAIL")] == [40, 41, 42, 43, 44]


def test_what_cannot_be_written_down_for_now_is_not_given_up_for_now(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    job.outcome = lambda delivery: Rejected("never")
    job.refusals = {"1": Refusal("a lock", passing=True), "3": Refusal("a constraint", passing=False)}
    values = [value_of(event(event_id=str(number))) for number in range(4)]
    with logged("email") as lines:
        assert pipeline.handle(from_kafka(*values), Context()) == {"dead_lettered": 3, "postponed": 1}
    assert [body["offset"] for body in queues.take("DEAD_LETTER_QUEUE_URL_EMAIL")] == [40, 42, 43]
    (body,) = queues.take("RETRY_QUEUE_URL_EMAIL")
    assert (body["offset"], body["attempts"]) == (41, 0)
    assert body["reason"] == "giving it up could not be written down: a lock"
    (line,) = [line for line in lines if line["message"] == "given up without being written down"]
    assert (line["event_id"], line["reason"]) == ("3", "a constraint")
    # It comes again, and is given up as soon as that can be written down.
    job.refusals = {}
    body["not_before"] = "2025-01-01T00:00:00+00:00"
    assert pipeline.handle(from_sqs(body), Context()) == {"dead_lettered": 1}
    assert ("1", "never") in job.given_up


def test_giving_up_leaves_the_queues_their_time(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "GIVING_UP_SECONDS", 0.5)
    ending = Deadline.of_invocation(lambda: round((SETTLING_SECONDS + 1) * 1000))

    class Ending(Context):
        def get_remaining_time_in_millis(self) -> int:
            return round(ending.remaining_seconds() * 1000)

    def waits_for_a_lock(_: object) -> None:
        with database().transaction() as connection:
            connection.execute("LOCK TABLE campaign_jobs.user_rewards")

    job.outcome = lambda delivery: Rejected("never")
    monkeypatch.setattr(job, "give_up", waits_for_a_lock)
    with database().transaction() as connection:
        url = connection.info.dsn
    with psycopg.connect(url) as service:
        service.execute("LOCK TABLE campaign_jobs.user_rewards")
        with pytest.raises(OutOfTime):
            pipeline.handle(from_kafka(value_of(event())), Ending())
    assert ending.remaining_seconds() > SEND_SECONDS
    assert not queues.sent


def test_every_line_about_a_record_has_its_ids_and_nothing_of_its_payload(
    pipeline: Pipeline, job: ScriptedJob
) -> None:
    outcomes: dict[str, Outcome] = {
        "a": Done(),
        "b": Skipped("s"),
        "c": Retry("r"),
        "d": Later("l", timedelta(1)),
        "e": Rejected("x"),
    }
    job.outcome = lambda delivery: outcomes[delivery.event.id]
    whole = [event(event_id=event_id) for event_id in outcomes]
    for each in whole:
        each["data"]["template_data"] = {"name": "Ada Lovelace"}
    with logged("email") as lines:
        pipeline.handle(
            from_kafka(*map(value_of, whole), b'{"type": "job.email.welcome", "id": "Ada"}'), Context()
        )
    settled = [line for line in lines if line["message"] == "event settled"]
    assert {line.get("event_id"): line["outcome"] for line in settled} == {
        "a": "done", "b": "skipped", "c": "retry", "d": "later", "e": "rejected", None: "rejected"
    }  # fmt: skip
    assert sorted(line["offset"] for line in settled) == list(range(40, 46))
    assert "Ada" not in json.dumps(lines)


def test_what_stops_the_batch_fails_it_and_spends_nothing(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    def outcome(delivery: Delivery[Any]) -> Outcome:
        raise DatabaseUnavailable("gone")

    job.outcome = outcome
    with pytest.raises(DatabaseUnavailable):
        pipeline.handle(from_kafka(value_of(event()), b'{"type": "job.email.welcome"}'), Context())
    assert not queues.sent
    assert len(job.batches) == 1


def test_a_queue_that_does_not_answer_fails_the_batch(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    queues.broken = True
    assert pipeline.handle(from_kafka(value_of(event())), Context()) == {"processed": 1}
    job.outcome = lambda delivery: Retry("no")
    with pytest.raises(QueueUnavailable):
        pipeline.handle(from_kafka(value_of(event())), Context())
    with pytest.raises(QueueUnavailable):
        pipeline.handle(from_sqs("not ours"), Context())
    for source in (from_kafka(None), from_sqs("not ours")):
        with pytest.raises(QueueUnavailable):
            unroutable_of(queues).handle(source, Context())


# Through SQS.


@pytest.fixture
def sqs(aws: AwsStandIn) -> Any:
    return boto3.client("sqs")


def create_queue(sqs: Any) -> str:
    attributes = {"MaximumMessageSize": str(SQS_LIMIT), "VisibilityTimeout": "60"}
    return str(sqs.create_queue(QueueName=f"test-{uuid.uuid4().hex}", Attributes=attributes)["QueueUrl"])


def receive_all(sqs: Any, url: str) -> list[str]:
    bodies: list[str] = []
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
        bodies += [message["Body"] for message in messages]
    return bodies


def test_sqs_takes_the_worst_batch_and_gives_it_back(sqs: Any) -> None:
    retry, dead = create_queue(sqs), create_queue(sqs)
    loaded = settings_of(UNROUTABLE)
    object.__setattr__(loaded, "dead_letter_queue_url_unroutable", dead)
    object.__setattr__(loaded, "retry_queue_url_email", retry)
    unroutable = Unroutable(loaded, database())  # type: ignore[arg-type]
    values = [(part * MAX_VALUE_BYTES)[:MAX_VALUE_BYTES] for part in (b"\x01", b"\xff", b'"', b"x")] * 3
    assert unroutable.handle(from_kafka(*values, b"\x00\x0b"), Context()) == {"dead_lettered": 13}
    letters = receive_all(sqs, dead)
    back = [read_body(text, now=datetime.now(UTC)) for text in letters]
    assert {received.coordinates.offset: received.value for received in back} == {
        40 + number: value for number, value in enumerate([*values, b"\x00\x0b"])
    }
    # A redriven letter just works, in both ways it can go.
    assert unroutable.handle(from_sqs(letters[0]), Context()) == {"dead_lettered": 1}
    owned = Received(Coordinates(TOPIC, 1, 1), value_of(event()), datetime.now(UTC), datetime.now(UTC))
    assert unroutable.handle(from_sqs(body_of(owned)), Context()) == {"handed_on": 1}
    (body,) = receive_all(sqs, retry)
    job = ScriptedJob()
    assert pipeline_of(EMAIL, job, RecordingQueues()).handle(from_sqs(body), Context()) == {"processed": 1}
    assert job.ids == ["good"]


def test_sqs_is_asked_for_no_more_than_it_takes(sqs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, queues = create_queue(sqs), SqsQueues()
    send, batches = queues._client.send_message_batch, []

    def recorded(*, QueueUrl: str, Entries: list[Any]) -> Any:  # noqa: N803
        batches.append(Entries)
        return send(QueueUrl=QueueUrl, Entries=Entries)

    monkeypatch.setattr(queues._client, "send_message_batch", recorded)
    queues.send([Outgoing(url, {"number": number}, delay_seconds=number * 100) for number in range(23)])
    assert [len(entries) for entries in batches] == [10, 10, 3]
    assert [entry["DelaySeconds"] for entries in batches for entry in entries] == [
        min(number * 100, 900) for number in range(23)
    ]


def test_a_queue_that_is_not_there_is_unavailable(sqs: Any) -> None:
    url = create_queue(sqs)
    sqs.delete_queue(QueueUrl=url)
    with pytest.raises(QueueUnavailable, match=url.rsplit("/", 1)[-1]):
        SqsQueues().send([Outgoing(url, {"a": 1})])


def test_what_sqs_refuses_of_a_batch_is_sent_again_and_then_reported(
    sqs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = create_queue(sqs)
    queues = SqsQueues()
    send, refusals = queues._client.send_message_batch, [2, 1]

    def refusing(*, QueueUrl: str, Entries: list[Any]) -> Any:  # noqa: N803
        refused = refusals.pop(0) if refusals else 0
        answer: Any = send(QueueUrl=QueueUrl, Entries=Entries[refused:]) if Entries[refused:] else {}
        failed = [
            {"Id": entry["Id"], "Code": "InternalError", "SenderFault": False} for entry in Entries[:refused]
        ]
        return {**answer, "Failed": failed}

    monkeypatch.setattr(queues._client, "send_message_batch", refusing)
    queues.send([Outgoing(url, {"number": number}) for number in range(12)])
    assert sorted(json.loads(body)["number"] for body in receive_all(sqs, url)) == list(range(12))
    refusals += [1, 1, 1]
    with pytest.raises(QueueUnavailable, match="InternalError"):
        queues.send([Outgoing(url, {"number": 0})])
