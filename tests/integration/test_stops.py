"""Messages of a retry queue outlast a stop, however long: neither the count of receives nor the retention ends them."""

import json
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest

from campaign_jobs import catalog
from campaign_jobs.catalog import EMAIL, UNROUTABLE
from campaign_jobs.database.connection import Database
from campaign_jobs.errors import BatchStopped, DatabaseUnavailable, QueueUnavailable
from campaign_jobs.worker.delivery import Coordinates, Delivery
from campaign_jobs.worker.messages import Received, body_of
from campaign_jobs.worker.outcomes import Done, Outcome
from campaign_jobs.worker.pipeline import Pipeline
from campaign_jobs.worker.queues import SqsQueues
from campaign_jobs.worker.unroutable import Unroutable
from tests.integration.invocations import (
    TOPIC,
    Context,
    RecordingQueues,
    ScriptedJob,
    event,
    from_sqs,
    settings_of,
    value_of,
)

RETRY = "RETRY_QUEUE_URL_EMAIL"
Handle = Callable[..., Mapping[str, int]]


@pytest.fixture
def queues() -> RecordingQueues:
    return RecordingQueues()


def stopped(_: Delivery[Any]) -> Outcome:
    raise DatabaseUnavailable("gone")


@pytest.fixture
def job() -> ScriptedJob:
    return ScriptedJob(stopped)


@pytest.fixture
def pipeline(database: Database, job: ScriptedJob, queues: RecordingQueues) -> Pipeline:
    return Pipeline(EMAIL, job, settings_of(EMAIL), database, queues=queues)


def message(**changes: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    received = Received(Coordinates(TOPIC, 3, 7), value_of(event()), now, now, attempts_spent=4)
    return {**body_of(received, reason="the endpoint answered 500"), **changes}


def received(body: dict[str, Any], *, times: int = 1, ago: timedelta = timedelta()) -> dict[str, Any]:
    made = from_sqs(body)
    sent = round((datetime.now(UTC) - ago).timestamp() * 1000)
    made["Records"][0]["attributes"] |= {"ApproximateReceiveCount": str(times), "SentTimestamp": str(sent)}
    return made


@pytest.mark.parametrize(
    ("times", "ago", "renewed"),
    [
        (1, timedelta(), False),
        (catalog.RETRY_MAX_RECEIVES // 2, timedelta(days=6), False),
        (catalog.RETRY_MAX_RECEIVES // 2 + 1, timedelta(), True),
        (1, timedelta(days=8), True),
    ],
)
def test_a_message_that_sqs_would_soon_give_up_is_sent_again_as_it_is(
    pipeline: Pipeline, queues: RecordingQueues, times: int, ago: timedelta, renewed: bool
) -> None:
    body = message()
    if not renewed:
        with pytest.raises(DatabaseUnavailable):
            pipeline.handle(received(body, times=times, ago=ago), Context())
    else:
        assert pipeline.handle(received(body, times=times, ago=ago), Context()) == {"renewed": 1}
    assert queues.take(RETRY) == ([body] if renewed else [])
    assert not queues.sent


def test_where_sqs_takes_nothing_the_message_stays_where_it_is(
    pipeline: Pipeline, queues: RecordingQueues
) -> None:
    queues.broken = True
    with pytest.raises(QueueUnavailable):
        pipeline.handle(received(message(), times=999), Context())


def test_what_is_not_stopped_is_not_sent_again(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    job.outcome = lambda delivery: Done()
    assert pipeline.handle(received(message(), times=999), Context()) == {"processed": 1}
    assert not queues.sent


def test_a_time_out_that_is_too_short_and_an_unknown_alias_are_stops_as_well(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    job.least_seconds = 1_000
    assert pipeline.handle(received(message(), times=999), Context()) == {"renewed": 1}
    # What is no message of ours was never read, and is left as it is.
    unreadable = received(message(), times=999)
    unreadable["Records"][0]["body"] = "{"
    with pytest.raises(BatchStopped):
        pipeline.handle(unreadable, Context())
    # Nobody knows to which queue to send it.
    context = Context()
    context.invoked_function_arn += "-unknown"
    with pytest.raises(BatchStopped):
        pipeline.handle(received(message(), times=999), context)
    assert len(queues.sent) == 1


def test_unroutable_does_so_too(queues: RecordingQueues) -> None:
    gone = Database("postgresql://127.0.0.1:1/none", timeout_seconds=2)
    unroutable = Unroutable(settings_of(UNROUTABLE), gone, queues=queues)  # type: ignore[arg-type]
    assert unroutable.handle(received(message(), times=999), Context()) == {"renewed": 1}
    assert queues.take("RETRY_QUEUE_URL_UNROUTABLE") != []


@pytest.mark.usefixtures("aws")
def test_a_stop_longer_than_all_receives_loses_nothing_and_spends_nothing(
    database: Database, job: ScriptedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "RETRY_MAX_RECEIVES", 4)
    sqs = boto3.client("sqs")
    dead_letters = sqs.create_queue(QueueName=f"dead-{uuid.uuid4().hex}")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=dead_letters, AttributeNames=["QueueArn"])["Attributes"][
        "QueueArn"
    ]
    queue_url = sqs.create_queue(
        QueueName=f"retry-{uuid.uuid4().hex}",
        Attributes={
            "VisibilityTimeout": "0",
            "RedrivePolicy": json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 4}),
        },
    )["QueueUrl"]
    settings = settings_of(EMAIL)
    monkeypatch.setattr(type(settings), "retry_queue_url", lambda self, lane: queue_url)
    pipeline = Pipeline(EMAIL, job, settings, database, queues=SqsQueues())
    sqs.send_message(QueueUrl=queue_url, MessageBody=json.dumps(message()))

    def receive() -> Mapping[str, int] | None:
        """As the mapping does: what succeeded is deleted."""
        found = sqs.receive_message(QueueUrl=queue_url, AttributeNames=["All"]).get("Messages", [])
        if not found:
            return None
        records = [{"body": each["Body"], "attributes": each["Attributes"]} for each in found]
        try:
            counts = pipeline.handle({"Records": records}, Context())
        except BatchStopped:
            return None
        sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=found[0]["ReceiptHandle"])
        return counts

    assert [receive() for _ in range(12)].count({"renewed": 1}) == 4
    job.outcome = lambda delivery: Done()
    assert receive() == {"processed": 1}
    (delivery,) = job.batches[-1]
    assert delivery.attempts_spent == 4
    assert sqs.receive_message(QueueUrl=dead_letters).get("Messages", []) == []
