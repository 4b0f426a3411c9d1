"""A batch of outcomes through SQS."""

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest

from campaign_jobs.catalog import EMAIL, MAX_VALUE_BYTES, UNROUTABLE
from campaign_jobs.errors import QueueUnavailable
from campaign_jobs.worker.delivery import Coordinates
from campaign_jobs.worker.messages import Received, body_of, read_body
from campaign_jobs.worker.queues import Outgoing, SqsQueues
from campaign_jobs.worker.unroutable import Unroutable
from local.aws import AwsStandIn
from tests.integration.invocations import (
    SQS_LIMIT,
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
from tests.integration.pipeline.pipelines import database, pipeline_of


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
