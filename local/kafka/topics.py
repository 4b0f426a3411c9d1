"""The topic of the local system."""

import time
from collections.abc import Mapping
from typing import Final

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from confluent_kafka.cimpl import NewTopic

from campaign_jobs.catalog import TOPIC_PARTITIONS
from campaign_jobs.errors import CampaignJobsError

_TIMEOUT_SECONDS: Final = 30


class TopicError(CampaignJobsError):
    """The topic could not be created, or exists with another number of partitions."""


def create_topic(
    bootstrap_servers: str,
    topic: str,
    *,
    partitions: int = TOPIC_PARTITIONS,
    configuration: Mapping[str, str] | None = None,
) -> None:
    """Create the topic unless it is there, and return when every partition has a leader.

    Raises TopicError when it exists with another number of partitions, or Kafka does not create it.
    """
    # Whatever goes wrong is raised with its cause, so librdkafka need not write it to the terminal as well.
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    new = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=dict(configuration or {}))
    try:
        admin.create_topics([new], request_timeout=_TIMEOUT_SECONDS)[topic].result(_TIMEOUT_SECONDS)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise TopicError(
                f"topic {topic} cannot be created on {bootstrap_servers}: {error.args[0].str()}"
            ) from error
    _wait_for_leaders(admin, topic, partitions)


def _wait_for_leaders(admin: AdminClient, topic: str, partitions: int) -> None:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while True:
        try:
            metadata = admin.list_topics(topic, timeout=_TIMEOUT_SECONDS).topics[topic]
        except KafkaException as error:
            raise TopicError(f"topic {topic} cannot be looked at: {error.args[0].str()}") from error
        # Right after its creation a topic may be unknown to the broker for a moment.
        if metadata.error is None:
            if len(metadata.partitions) != partitions:
                raise TopicError(
                    f"topic {topic} has {len(metadata.partitions)} partitions, but {partitions} are needed"
                )
            if _is_led(admin, topic, partitions):
                return
        if time.monotonic() > deadline:
            raise TopicError(f"topic {topic} has partitions without a leader after {_TIMEOUT_SECONDS} s")
        time.sleep(0.05)


def _is_led(admin: AdminClient, topic: str, partitions: int) -> bool:
    """Whether the leaders that the metadata names have heard of it: until then they refuse their partitions."""
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    asked = {TopicPartition(topic, partition): latest for partition in range(partitions)}
    try:
        for answer in admin.list_offsets(asked, request_timeout=_TIMEOUT_SECONDS).values():
            answer.result()
    except KafkaException:
        return False
    return True
