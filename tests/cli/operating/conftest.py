"""An environment of real parts for one test, and the command line as somebody types it."""

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest

from campaign_jobs import catalog
from campaign_jobs.producer import JobProducer
from campaign_jobs.settings import KafkaSettings
from campaign_jobs_cli import targets
from campaign_jobs_cli.app import run
from campaign_jobs_cli.targets import Target
from local.aws import AwsStandIn
from local.aws.preparation import catalog_queues, prepare
from local.control import Control
from local.kafka import KafkaBroker
from local.mappings.registered import RegisteredMapping
from local.schedules import Schedule
from tests.integration.email_campaign import MailCampaign


class Nothing:
    """A function that is never invoked, and a poller that never polls."""

    def invoke(self, event: object) -> None:  # noqa: ARG002
        raise AssertionError("nobody invokes it")

    def start(self) -> None:
        """Begins nothing."""

    def stop(self) -> None:
        """Ends nothing."""


class GradualMapping(RegisteredMapping):
    """As Lambda's are: for some looks after a change it is on its way."""

    looks = 3

    def settle(self) -> None:
        self._left = 0

    def start(self) -> None:
        super().start()
        self._left = self.looks

    def stop(self) -> None:
        super().stop()
        self._left = self.looks

    def description(self) -> dict[str, Any]:
        described = super().description()
        self._left = max(0, self._left - 1)
        on = described["State"] == "Enabled"
        return described if not self._left else {**described, "State": "Enabling" if on else "Disabling"}


def mappings(environment: str, consumer_group: str) -> list[RegisteredMapping]:
    def registered(job_type: str, alias: str | None, **source: str) -> RegisteredMapping:
        return GradualMapping(
            Nothing,  # type: ignore[arg-type]
            function_name=f"campaign-jobs-{environment}-{job_type}",
            alias=alias,
            batch_size=1,
            batching_window_seconds=0,
            **source,
        )

    found = [
        mapping
        for job_type in catalog.EVENT_JOB_TYPES
        for lane in job_type.lanes
        for mapping in (
            registered(
                job_type.name,
                lane.name,
                topic="job-events",
                consumer_group=lane.consumer_group(consumer_group),
            ),
            registered(job_type.name, lane.name, queue_name=f"campaign-jobs-{environment}-{lane.name}-retry"),
        )
    ]
    found += [
        registered(fed.name, None, queue_name=f"campaign-jobs-{environment}-{fed.name}")
        for fed in catalog.QUEUE_JOB_TYPES
    ]
    for mapping in found:
        mapping.start()
        mapping.settle()
    return found


@pytest.fixture
def target(aws: AwsStandIn, database_url: str, kafka_broker: KafkaBroker, topic: str) -> Iterator[Target]:
    """An environment whose topic, database and queues are this test's alone."""
    name = f"test{uuid.uuid4().hex[:8]}"
    prepare(
        boto3.client("sesv2"),
        boto3.client("sqs"),
        ["example.com"],
        catalog_queues(prefix=f"campaign-jobs-{name}"),
    )
    rules = [
        Schedule(f"campaign-jobs-{name}-{each.name}", timedelta(hours=1), Nothing())
        for each in catalog.SCHEDULED_JOB_TYPES
    ]
    group = f"group-of-{topic}"
    with Control([], mappings(name, group), rules) as control:

        @cache
        def client(service: str) -> Any:
            endpoint = control.url if service in ("lambda", "events") else aws.endpoint_url
            return boto3.client(service, endpoint_url=endpoint)  # type: ignore[call-overload]

        yield Target(
            name=name,
            region="eu-central-1",
            kafka=KafkaSettings(kafka_brokers=kafka_broker.bootstrap_servers, kafka_job_topic=topic),
            consumer_group=group,
            default_sender="hello@example.com",
            conninfo=lambda: database_url,
            make_client=client,
        )


@dataclass(frozen=True)
class Ran:
    """How one command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out, self.err
        return json.loads(self.out)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Type = Callable[..., Ran]


@pytest.fixture
def type_(
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Type:
    """Types a command, and says how it went. The environment is found at once; the rest is as in a terminal."""
    monkeypatch.setattr(targets, "find", lambda name, *, directory: target)
    # Where rich and typer look: a wide terminal, and a home of the test's own.
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def typed(*words: object) -> Ran:
        capsys.readouterr()
        code = run([str(word) for word in words])
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return typed


@pytest.fixture
def publish(target: Target) -> Iterator[Callable[[Sequence[tuple[str | bytes | None, bytes]]], None]]:
    """Publishes records as they are."""
    with JobProducer.from_settings(target.kafka) as producer:
        yield producer.publish


@pytest.fixture
def campaign(connection: psycopg.Connection[Any]) -> MailCampaign:
    return MailCampaign(connection)
