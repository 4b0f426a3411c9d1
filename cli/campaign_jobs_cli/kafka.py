"""Reading from Kafka as a person does, without a group: nothing that is read here is committed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import AdminClient

from campaign_jobs.kafka_connection import iam_settings
from campaign_jobs_cli.errors import NotFound, Unreachable
from campaign_jobs_cli.targets import Target

TIMEOUT_SECONDS = 15


def client_settings(target: Target) -> dict[str, Any]:
    """librdkafka's settings for the environment's brokers. Raises NotAuthorized where IAM gives no token."""
    settings: dict[str, Any] = {
        "bootstrap.servers": target.kafka.kafka_brokers,
        "client.id": "campaign-jobs-cli",
        # Whatever matters is raised.
        "log_level": 0,
    }
    if target.kafka.kafka_auth == "iam":
        settings |= iam_settings(target.kafka.kafka_brokers, region=None)
    return settings


@contextmanager
def consumer(target: Target) -> Iterator[Consumer]:
    """A consumer to assign partitions to. Closed at the end."""
    settings = {
        # librdkafka wants one, even of who never joins it.
        "group.id": f"{target.consumer_group}-command-line",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
        "fetch.wait.max.ms": 100,
    }
    client = Consumer({**client_settings(target), **settings})
    try:
        _let_ask_for_token(target, client)
        yield client
    finally:
        client.close()


def admin(target: Target) -> AdminClient:
    client = AdminClient(client_settings(target))
    _let_ask_for_token(target, client)
    return client


def _let_ask_for_token(target: Target, client: Consumer | AdminClient) -> None:
    """Without a poll, nobody asks for it."""
    if target.kafka.kafka_auth == "iam":
        client.poll(0)


def partitions(target: Target, client: Consumer | AdminClient) -> list[int]:
    """The topic's partitions, in order. Raises Unreachable or NotFound."""
    topic = target.kafka.kafka_job_topic
    try:
        found = client.list_topics(topic, timeout=TIMEOUT_SECONDS).topics[topic]
    except KafkaException as error:
        raise unreachable(target, error) from error
    if found.error is not None:
        raise NotFound(f"topic {topic} of {target.name}: {found.error.str()}")
    return sorted(found.partitions)


def unreachable(target: Target, error: KafkaException) -> Unreachable:
    return Unreachable(
        f"Kafka of {target.name} ({target.kafka.kafka_brokers}) does not answer: {error.args[0].str()}"
    )
