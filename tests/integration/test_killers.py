"""A record that kills its process, in every manner and every function, with real processes, Kafka and SQS."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from confluent_kafka import Producer

from campaign_jobs.catalog import EMAIL, EVENT_JOB_TYPES, UNROUTABLE, EventJobType
from campaign_jobs.database.connection import Connection
from campaign_jobs.settings import BY_FUNCTION
from campaign_jobs.worker.delivery import Coordinates
from campaign_jobs.worker.isolation import KILLED_ALONE
from campaign_jobs.worker.messages import Received, body_of
from local.aws import AwsStandIn
from local.functions import Function, FunctionAlias, FunctionConfiguration, FunctionFailed
from local.kafka import KafkaBroker
from local.mappings.kafka import KafkaMapping
from local.mappings.sqs import SqsMapping
from tests.integration.email_campaign import DEFAULT_SENDER, UNSUBSCRIBE_SETTINGS, MailCampaign
from tests.integration.position_campaign import Campaign as PositionCampaign

# For batches that are to end by their size: no test outlives this window, however slow the machine.
LONG = 300
NEIGHBORS = 4
PARTITION = 3
HANG_SECONDS = 7


@dataclass
class Impatient:
    """Invokes by an alias, and makes messages visible at once where Lambda would wait for their time-out."""

    alias: FunctionAlias
    sqs: Any
    queue_url: str

    def invoke(self, event: dict[str, Any]) -> Any:
        try:
            return self.alias.invoke(event)
        except FunctionFailed:
            for record in event.get("Records", []):
                self.sqs.change_message_visibility(
                    QueueUrl=self.queue_url, ReceiptHandle=record["receiptHandle"], VisibilityTimeout=0
                )
            raise


@dataclass
class Worker:
    """One function with the mappings of its first lane."""

    job_type: EventJobType
    function: Function
    sqs: Any
    urls: dict[str, str]
    kills: Path
    brokers: str
    topic: str
    connection: Connection
    mappings: list[KafkaMapping | SqsMapping] = field(default_factory=list)

    @property
    def retry_queue_url(self) -> str:
        return self.urls[self.job_type.lanes[0].retry_queue_setting]

    def read_topic(self, batch_size: int) -> KafkaMapping:
        lane = self.job_type.lanes[0]
        mapping = KafkaMapping(
            bootstrap_servers=self.brokers,
            topic=self.topic,
            consumer_group=lane.consumer_group("job-workers") + self.topic,
            function=self.function.alias(lane.name),
            filter_pattern=lane.filter_pattern(),
            batch_size=batch_size,
            batching_window_seconds=LONG,
            first_backoff_seconds=0.05,
        )
        return self._start(mapping)

    def read_retry_queue(self) -> SqsMapping:
        alias = self.function.alias(self.job_type.lanes[0].name)
        mapping = SqsMapping(
            sqs=self.sqs,
            queue_url=self.retry_queue_url,
            function=Impatient(alias, self.sqs, self.retry_queue_url),
            batch_size=1,
        )
        return self._start(mapping)

    def _start(self, mapping: Any) -> Any:
        self.mappings.append(mapping)
        mapping.start()
        return mapping

    def publish(self, values: list[bytes]) -> None:
        producer = Producer({"bootstrap.servers": self.brokers, "linger.ms": 0})
        for value in values:
            producer.produce(self.topic, value, partition=PARTITION)
        assert producer.flush(30) == 0

    def killed(self) -> int:
        return len(self.kills.read_text().splitlines()) if self.kills.exists() else 0

    def letters(self) -> list[dict[str, Any]]:
        """The dead letters since the last look."""
        url, found = self.urls[self.job_type.dead_letter_queue_setting], []
        while messages := self.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
            found += [json.loads(message["Body"]) for message in messages]
        return found

    def left(self) -> list[Any]:
        return self.connection.execute(
            "SELECT topic, partition, first_offset FROM campaign_jobs.batch_markers"
            " UNION ALL SELECT topic, partition, record_offset FROM campaign_jobs.solo_starts"
        ).fetchall()


@pytest.fixture
def worker(
    kafka_broker: KafkaBroker,
    topic: str,
    aws: AwsStandIn,
    database_url: str,
    connection: Connection,
    repository: Path,
    tmp_path: Path,
) -> Iterator[Callable[..., Worker]]:
    sqs = boto3.client("sqs")
    made: list[Worker] = []

    def start(job_type: EventJobType, *, hangs: bool = False) -> Worker:
        names = BY_FUNCTION[job_type.name].environment_names()
        urls = {
            name: sqs.create_queue(
                QueueName=f"{name[:40]}-{uuid.uuid4().hex}",
                Attributes={"VisibilityTimeout": "600", "MaximumMessageSize": "1048576"},
            )["QueueUrl"]
            for name in names
            if "_QUEUE_URL_" in name
        }
        kills = tmp_path / "killed"
        values = {
            "DATABASE_URL": database_url,
            "DEFAULT_SENDER": DEFAULT_SENDER,
            **UNSUBSCRIBE_SETTINGS,
        }
        configuration = FunctionConfiguration(
            name=f"campaign-jobs-test-{job_type.name}",
            handler=repository / "tests/integration/handlers/killable.py",
            environment={
                **urls,
                **{name: value for name, value in values.items() if name in names},
                "KAFKA_JOB_CONSUMER_GROUP": "job-workers",
                "KILLABLE": job_type.name,
                "KILLED": str(kills),
            },
            timeout_seconds=HANG_SECONDS if hangs else job_type.timeout_seconds,
            memory_mb=job_type.memory_mb,
            log_dir=tmp_path / "logs",
            aws_endpoint_url=aws.endpoint_url,
            region="eu-central-1",
        )
        function = Function(configuration, max_concurrency=2)
        made.append(
            Worker(
                job_type,
                function,
                sqs,
                urls,
                kills,
                kafka_broker.bootstrap_servers,
                topic,
                connection,
            )
        )
        return made[-1]

    yield start
    for each in made:
        for mapping in each.mappings:
            mapping.stop()
        each.function.close()


def wait_for(condition: Callable[[], object], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Neighbors:
    """Records of one job type, a killer among them, and a look at whether all but the killer are done."""

    def __init__(self, job_type: EventJobType, connection: Connection) -> None:
        self._job_type = job_type
        self._connection = connection
        self._mails = MailCampaign(connection)
        self._expected: list[Any] = []

    def values(self, count: int) -> list[bytes]:
        return [json.dumps(self._event()).encode() for _ in range(count)]

    def killer(self, manner: str) -> bytes:
        event = self._event()
        self._expected.pop()
        return json.dumps({**event, "note": f"die by {manner}"}).encode()

    def _event(self) -> dict[str, Any]:
        common = {"id": str(uuid.uuid4()), "timestamp": "2025-01-01T12:00:00Z"}
        match self._job_type.name:
            case "email":
                event = self._mails.event("verification", self._mails.add_user())
                self._expected.append(event["id"])
                return event
            case "position":
                campaign = PositionCampaign(self._connection)
                self._expected.append(campaign.id)
                return {
                    **common,
                    "type": "job.position.recalculate",
                    "data": {"campaign_id": str(campaign.id)},
                }
            case "reward":
                reward = self._mails.earn(self._mails.add_reward("email"))
                self._expected.append(reward)
                return {**common, "type": "job.reward.deliver", "data": {"user_reward_id": str(reward)}}
            case _:
                self._expected.append(common["id"])
                return {**common, "type": "job.of.nobody"}

    def done(self, letters: list[dict[str, Any]]) -> bool:
        query = {
            "email": "SELECT event_id FROM campaign_jobs.email_messages WHERE status = 'accepted'",
            "position": "SELECT campaign_id FROM campaign_jobs.position_runs WHERE runs > 0",
            "reward": "SELECT id FROM campaign_jobs.user_rewards WHERE status = 'delivering'",
        }.get(self._job_type.name)
        if query is None:
            found = [json.loads(letter["value"])["id"] for letter in letters]
        else:
            found = [row[0] for row in self._connection.execute(query.encode())]
        return sorted(map(str, found)) == sorted(map(str, self._expected))


pytestmark = pytest.mark.timeout(300)

CASES = [
    *((job_type, "os._exit") for job_type in EVENT_JOB_TYPES),
    (EMAIL, "SIGKILL"),
    (EMAIL, "memory"),
    (UNROUTABLE, "a hang"),
]


@pytest.mark.parametrize(("job_type", "manner"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_killer_from_kafka_costs_its_partition_two_deliveries_and_its_neighbors_nothing(
    worker: Callable[..., Worker], connection: Connection, job_type: EventJobType, manner: str
) -> None:
    it = worker(job_type, hangs=manner == "a hang")
    neighbors = Neighbors(job_type, connection)
    values = neighbors.values(NEIGHBORS)
    killer = neighbors.killer(manner)
    # The killer is the third of five records, and behind them is a batch that must not wait for it.
    it.publish([*values[:2], killer, *values[2:], *neighbors.values(NEIGHBORS + 1)])
    mapping = it.read_topic(NEIGHBORS + 1)
    wait_for(lambda: mapping.counters.delivered == 2 * (NEIGHBORS + 1))
    # Killed, isolated, and the next batch.
    assert (mapping.counters.batches, mapping.counters.failed_batches) == (3, 1)
    assert it.killed() == 1

    retries = it.read_retry_queue()
    letters: list[dict[str, Any]] = []
    wait_for(lambda: letters.extend(it.letters()) or (killers(letters) and retries.idle()))
    assert_ended_alone(it, neighbors, letters, killer, kills=1 + 3)
    assert retries.counters.failed_batches == 3


@pytest.mark.parametrize(("job_type", "manner"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_killer_from_the_retry_queue_is_a_dead_letter_after_three_starts(
    worker: Callable[..., Worker], connection: Connection, job_type: EventJobType, manner: str
) -> None:
    it = worker(job_type, hangs=manner == "a hang")
    neighbors = Neighbors(job_type, connection)
    values = neighbors.values(NEIGHBORS)
    killer = neighbors.killer(manner)
    for offset, value in enumerate([*values[:2], killer, *values[2:]]):
        now = datetime.now(UTC)
        body = body_of(Received(Coordinates(it.topic, PARTITION, offset), value, now, now))
        it.sqs.send_message(QueueUrl=it.retry_queue_url, MessageBody=json.dumps(body))
    retries = it.read_retry_queue()
    letters: list[dict[str, Any]] = []
    wait_for(lambda: letters.extend(it.letters()) or (killers(letters) and retries.idle()))
    assert_ended_alone(it, neighbors, letters, killer, kills=3)
    assert retries.counters.failed_batches == 3


def killers(letters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [letter for letter in letters if letter["dead_letter"]["reason"] == KILLED_ALONE]


def assert_ended_alone(
    it: Worker, neighbors: Neighbors, letters: list[dict[str, Any]], killer: bytes, *, kills: int
) -> None:
    """The killer is one dead letter after its starts, and nothing else is left of it."""
    assert it.killed() == kills
    letters += it.letters()
    (letter,) = killers(letters)
    assert letter["value"].encode() == killer
    assert (letter["partition"], letter["offset"], letter["attempts"]) == (PARTITION, 2, 0)
    assert neighbors.done([each for each in letters if each is not letter])
    if it.job_type is not UNROUTABLE:
        assert letters == [letter]
    assert it.left() == []
