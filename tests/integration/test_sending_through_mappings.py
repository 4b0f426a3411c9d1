"""The email function as a process behind Kafka mappings: what the account's rate and its stops do to batches."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from confluent_kafka import Producer

from campaign_jobs.catalog import EMAIL
from campaign_jobs.database.connection import Connection
from campaign_jobs.email.sending import POOLFUL_SECONDS
from campaign_jobs.worker.pipeline import SETTLING_SECONDS
from local.aws import AccountSettings, AwsStandIn
from local.aws.mails import read_mails
from local.functions import REPOSITORY, Function, FunctionConfiguration
from local.kafka import KafkaBroker
from local.mappings.kafka import KafkaMapping
from tests.conftest import SENDER_DOMAIN
from tests.integration.email_campaign import UNSUBSCRIBE_SETTINGS, MailCampaign

QUEUES = ("RETRY_QUEUE_URL_EMAIL", "RETRY_QUEUE_URL_EMAIL_BULK", "DEAD_LETTER_QUEUE_URL_EMAIL")


class Running:
    """The function with a mapping for each lane, and what the test asks of them."""

    def __init__(self, connection: Connection, aws: AwsStandIn, brokers: str, topic: str) -> None:
        self.campaign = MailCampaign(connection)
        self.mappings: dict[str, KafkaMapping] = {}
        self.queue_urls: dict[str, str] = {}
        self._aws = aws
        self._topic = topic
        self._producer = Producer({"bootstrap.servers": brokers, "linger.ms": 5})

    def publish(self, *events: dict[str, Any]) -> None:
        for event in events:
            self._producer.produce(self._topic, json.dumps(event).encode(), key=event["data"]["user_id"])
        assert self._producer.flush(60) == 0

    def accepted(self, type_: str) -> int:
        return int(
            self.campaign._one(
                "SELECT count(*) FROM campaign_jobs.email_messages WHERE status = 'accepted' AND type = %s",
                type_,
            )
        )

    def mails(self) -> Counter[str]:
        """How many mails each address has got."""
        return Counter(
            mail.to[0]
            for mail in read_mails(self._aws.mail_directory)
            if mail.tags.get("campaign") == str(self.campaign.id)
        )

    def in_queues(self) -> int:
        """Messages in the retry queues and the dead-letter queue, visible or not."""
        sqs = boto3.client("sqs")
        names = [
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesDelayed",
            "ApproximateNumberOfMessagesNotVisible",
        ]
        return sum(
            int(count)
            for url in self.queue_urls.values()
            for count in sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"].values()  # type: ignore[arg-type]
        )


Start = Callable[..., Running]


@pytest.fixture
def start(
    kafka_broker: KafkaBroker,
    topic: str,
    aws: AwsStandIn,
    database_url: str,
    connection: Connection,
    tmp_path: Path,
) -> Iterator[Start]:
    functions: list[Function] = []
    running = Running(connection, aws, kafka_broker.bootstrap_servers, topic)

    def start(*, timeout_seconds: float = 120) -> Running:
        sqs = boto3.client("sqs")
        running.queue_urls = {
            name: sqs.create_queue(QueueName=f"{topic}-{name}")["QueueUrl"] for name in QUEUES
        }
        function = Function(
            FunctionConfiguration(
                name="email",
                handler=REPOSITORY / "functions" / "email" / "handler.py",
                environment={
                    **running.queue_urls,
                    "DATABASE_URL": database_url,
                    "DEFAULT_SENDER": f"hello@{SENDER_DOMAIN}",
                    **UNSUBSCRIBE_SETTINGS,
                },
                timeout_seconds=timeout_seconds,
                memory_mb=512,
                log_dir=tmp_path,
                aws_endpoint_url=aws.endpoint_url,
                region="eu-central-1",
            ),
            max_concurrency=2,
        )
        functions.append(function)
        for lane in EMAIL.lanes:
            running.mappings[lane.name] = KafkaMapping(
                bootstrap_servers=kafka_broker.bootstrap_servers,
                topic=topic,
                consumer_group=lane.consumer_group(topic),
                function=function.alias(lane.name),
                filter_pattern=lane.filter_pattern(),
                batch_size=lane.batch_size,
                batching_window_seconds=lane.batching_window_seconds,
                first_backoff_seconds=0.05,
            )
            running.mappings[lane.name].start()
        return running

    yield start
    # So that what is in flight ends soon.
    connection.execute("UPDATE campaign_jobs.send_tokens SET rate = 100000, paused_until = '-infinity'")
    for mapping in running.mappings.values():
        mapping.stop()
    for function in functions:
        function.close()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.1)


def test_a_verification_leaves_before_most_of_the_bulk_mail_ahead_of_it(
    start: Start, aws: AwsStandIn
) -> None:
    aws.set_account(AccountSettings(max_send_rate=20))
    running = start()
    campaign = running.campaign
    updates = []
    for place in range(1, 2_001):
        user = campaign.add_user(original_position=10_000 + place)
        campaign.rank(user, place)
        updates.append(campaign.event("position_update", user))
    running.publish(*updates)
    until(lambda: running.accepted("position_update") >= 20, "some of the bulk mail is out")
    running.publish(campaign.event("verification", campaign.add_user()))
    until(lambda: running.accepted("verification") == 1, "the verification is out")
    assert running.accepted("position_update") < 1_000


def test_an_account_that_is_paused_keeps_its_batches_and_spends_nothing(
    start: Start, aws: AwsStandIn
) -> None:
    aws.set_account(AccountSettings(sending_enabled=False))
    running = start()
    campaign = running.campaign
    users = [campaign.add_user() for _ in range(20)]
    running.publish(*(campaign.event("verification", user) for user in users))
    mapping = running.mappings["email"]
    until(lambda: mapping.counters.failed_batches >= 3, "the batch has failed again and again")
    assert campaign.statuses() == {}
    aws.set_account(AccountSettings())
    until(lambda: running.accepted("verification") == 20, "everything is out")
    until(mapping.caught_up, "the offsets are committed")
    assert running.mails() == {campaign.address(user): 1 for user in users}
    assert running.in_queues() == 0


@pytest.mark.timeout(300)  # Its batch lives until its deadline, several times over.
def test_a_rate_that_is_used_up_until_the_deadline_fails_the_batch_and_the_rest_goes_later(
    start: Start, aws: AwsStandIn
) -> None:
    aws.set_account(AccountSettings(max_send_rate=5))
    running = start(timeout_seconds=SETTLING_SECONDS + POOLFUL_SECONDS + 4)
    campaign = running.campaign
    users = [campaign.add_user() for _ in range(50)]
    running.publish(*(campaign.event("welcome", user) for user in users))
    mapping = running.mappings["email"]
    until(lambda: running.accepted("welcome") == 50, "everything is out")
    until(mapping.caught_up, "the offsets are committed")
    assert mapping.counters.failed_batches >= 1
    assert running.mails() == {campaign.address(user): 1 for user in users}
    assert campaign.statuses() == {"accepted": 50}
    assert running.in_queues() == 0
