"""Slow dependencies and short deadlines, through real function processes: every invocation ends by itself."""

import base64
import json
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from campaign_jobs.catalog import EVENT_JOB_TYPES, UNROUTABLE
from campaign_jobs.database.connection import Connection
from campaign_jobs.email.sending import POOLFUL_SECONDS
from campaign_jobs.errors import InvocationTooShort, OutOfTime, QueueUnavailable
from campaign_jobs.position.job import RUN_RESERVE_SECONDS
from campaign_jobs.reward.job import RECORDING_SECONDS
from campaign_jobs.reward.webhooks.client import TOTAL_SECONDS
from campaign_jobs.settings import BY_FUNCTION
from campaign_jobs.worker.pipeline import SETTLING_SECONDS
from campaign_jobs.worker.queues import Outgoing, SqsQueues
from local.aws import Answer, AwsStandIn, ScriptLine
from local.functions import FunctionConfiguration, FunctionEnvironment, FunctionFailed
from tests.integration.email_campaign import DEFAULT_SENDER, UNSUBSCRIBE_SETTINGS, MailCampaign
from tests.integration.half_open import HalfOpenProxy

Invoke = Callable[..., FunctionEnvironment]

LEAST_SECONDS = {
    "email": POOLFUL_SECONDS,
    "position": RUN_RESERVE_SECONDS,
    "reward": TOTAL_SECONDS + RECORDING_SECONDS,
}


@pytest.fixture
def queue_urls(aws: AwsStandIn) -> dict[str, str]:
    sqs, run = boto3.client("sqs"), uuid.uuid4().hex[:8]
    return {
        name: sqs.create_queue(QueueName=f"{name.lower()}-{run}")["QueueUrl"]
        for settings in BY_FUNCTION.values()
        for name in settings.environment_names()
        if "_QUEUE_URL_" in name
    }


@pytest.fixture
def function(
    aws: AwsStandIn, queue_urls: dict[str, str], database_url: str, repository: Path, tmp_path: Path
) -> Iterator[Invoke]:
    made: list[FunctionEnvironment] = []

    def make(name: str, timeout_seconds: float, **environment: str) -> FunctionEnvironment:
        values = {
            "DATABASE_URL": database_url,
            "DEFAULT_SENDER": DEFAULT_SENDER,
            **UNSUBSCRIBE_SETTINGS,
            **queue_urls,
        }
        wanted = BY_FUNCTION[name].environment_names()
        made.append(
            FunctionEnvironment(
                FunctionConfiguration(
                    name=name,
                    handler=repository / "functions" / name / "handler.py",
                    environment={key: values[key] for key in wanted if key in values} | environment,
                    timeout_seconds=timeout_seconds,
                    memory_mb=512,
                    log_dir=tmp_path / "logs",
                    aws_endpoint_url=aws.endpoint_url,
                    region="eu-central-1",
                )
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


def from_kafka(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "eventSource": "aws:kafka",
        "records": {
            "job-events-0": [
                {
                    "topic": "job-events",
                    "partition": 0,
                    "offset": offset,
                    "timestamp": 1_735_732_800_000,
                    "key": None,
                    "value": base64.b64encode(json.dumps(event).encode()).decode(),
                }
                for offset, event in enumerate(events)
            ]
        },
    }


def taken(url: str) -> list[str]:
    """The bodies of the messages that a queue has."""
    sqs = boto3.client("sqs")
    bodies: list[str] = []
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", []):
        for message in messages:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            bodies.append(message["Body"])
    return bodies


def handed_on(queue_urls: dict[str, str]) -> list[str]:
    return [body for url in queue_urls.values() for body in taken(url)]


def test_mails_that_a_slow_ses_leaves_no_time_for_are_handed_on_unspent(
    function: Invoke, queue_urls: dict[str, str], connection: Connection, aws: AwsStandIn
) -> None:
    campaign = MailCampaign(connection)
    events = [campaign.event("verification", campaign.add_user()) for _ in range(60)]
    aws.play([ScriptLine("@", Answer.TIMEOUT, seconds=2)])
    email = function("email", SETTLING_SECONDS + POOLFUL_SECONDS + 5)
    counts = email.invoke(from_kafka(events), qualifier="email")
    assert counts["processed"] > 0
    assert counts["processed"] + counts["postponed"] == 60
    assert campaign.statuses() == {"accepted": counts["processed"], "released": counts["postponed"]}
    aws.play([])
    bodies = taken(queue_urls["RETRY_QUEUE_URL_EMAIL"])
    assert len(bodies) == counts["postponed"]
    assert all(json.loads(body)["attempts"] == 0 for body in bodies)
    for body in bodies:
        assert email.invoke({"Records": [{"body": body}]}, qualifier="email") == {"processed": 1}
    assert campaign.statuses() == {"accepted": 60}
    assert email.cold_starts == 1


def test_a_database_that_stops_answering_fails_the_batch_in_time(
    function: Invoke, database_url: str, connection: Connection, queue_urls: dict[str, str]
) -> None:
    campaign = MailCampaign(connection)
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    events = {
        "email": campaign.event("verification", user),
        "reward": {
            "id": "r",
            "type": "job.reward.deliver",
            "data": {"user_reward_id": str(user_reward)},
            "timestamp": "2025-01-01T12:00:00Z",
        },
        "position": {
            "id": "p",
            "type": "job.position.recalculate",
            "data": {"campaign_id": str(campaign.id)},
            "timestamp": "2025-01-01T12:00:00Z",
        },
    }
    port = urlsplit(database_url).port

    def stops_answering(name: str) -> None:
        event = events[name]
        with HalfOpenProxy(port or 5432) as proxy:
            url = database_url.replace(f":{port}/", f":{proxy.port}/")
            job = function(name, SETTLING_SECONDS + LEAST_SECONDS[name] + 4, DATABASE_URL=url)
            # It opens the connection, which the next invocation then finds dead.
            assert job.invoke(from_kafka([event]), qualifier=name) == {"processed": 1}
            proxy.freeze()
            with pytest.raises(FunctionFailed) as caught:
                job.invoke(from_kafka([{**event, "id": "another"}]), qualifier=name)
            assert caught.value.error_type == OutOfTime.__name__
            assert job.invoke(from_kafka([{**event, "id": "another"}]), qualifier=name)
            assert job.cold_starts == 1

    # Each waits for most of its invocation, so they do it at the same time.
    with ThreadPoolExecutor(len(events)) as pool:
        list(pool.map(stops_answering, events))
    assert handed_on(queue_urls) == []


def test_a_table_that_somebody_locks_fails_the_batch_in_time(
    function: Invoke, connection: Connection
) -> None:
    """Each row is as locked as the others, so splitting the batch helps nobody, and time runs out."""
    campaign = MailCampaign(connection)
    events = [campaign.event("verification", campaign.add_user()) for _ in range(20)]
    email = function("email", SETTLING_SECONDS + POOLFUL_SECONDS + 2)
    with connection.transaction():
        connection.execute("LOCK TABLE campaign_jobs.email_messages IN EXCLUSIVE MODE")
        with pytest.raises(FunctionFailed) as caught:
            email.invoke(from_kafka(events), qualifier="email")
    assert caught.value.error_type == OutOfTime.__name__
    assert campaign.statuses() == {}
    assert email.invoke(from_kafka(events), qualifier="email")["processed"] == 20


def test_a_queue_that_stops_answering_fails_the_batch_in_time(function: Invoke) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        unroutable = function(
            "unroutable",
            SETTLING_SECONDS + 5,
            AWS_ENDPOINT_URL_SQS=f"http://127.0.0.1:{silent.getsockname()[1]}",
        )
        with pytest.raises(FunctionFailed) as caught:
            unroutable.invoke(from_kafka([{"type": "job.unknown"}] * 1_000))
    assert caught.value.error_type == QueueUnavailable.__name__


def test_a_slow_queue_takes_the_messages_of_a_full_batch(
    aws: AwsStandIn, queue_urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred requests of a quarter of a second each: one after another they would not be done in time."""
    url = queue_urls["RETRY_QUEUE_URL_EMAIL"]
    messages = [Outgoing(url, {"n": number}) for number in range(1_000)]
    with HalfOpenProxy(urlsplit(aws.endpoint_url).port or 80, delay_seconds=0.125) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        SqsQueues().send(messages)
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint_url)
    assert sorted(json.loads(body)["n"] for body in taken(url)) == list(range(1_000))


def test_every_job_has_time_to_work_beside_settling() -> None:
    assert {UNROUTABLE.name, *LEAST_SECONDS} == {job_type.name for job_type in EVENT_JOB_TYPES}
    for job_type in EVENT_JOB_TYPES:
        assert job_type.timeout_seconds - SETTLING_SECONDS >= 2 * LEAST_SECONDS.get(job_type.name, 0)


@pytest.mark.parametrize("name", LEAST_SECONDS)
def test_a_time_out_that_leaves_no_time_to_work_fails_the_batch(
    function: Invoke, queue_urls: dict[str, str], name: str
) -> None:
    """Otherwise each event would go from the retry queue to the retry queue for ever, and spend nothing."""
    job = function(name, SETTLING_SECONDS + LEAST_SECONDS[name] - 1)
    with pytest.raises(
        FunctionFailed, match=rf"allowed are {SETTLING_SECONDS + LEAST_SECONDS[name]:g} s or more"
    ) as caught:
        job.invoke(from_kafka([{"id": "any"}]), qualifier=name)
    assert caught.value.error_type == InvocationTooShort.__name__
    assert handed_on(queue_urls) == []
