"""The topic of the local system."""

import time
from collections.abc import Mapping
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
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
            if all(partition.leader >= 0 for partition in metadata.partitions.values()):
                return
        if time.monotonic() > deadline:
            raise TopicError(f"topic {topic} has partitions without a leader after {_TIMEOUT_SECONDS} s")
        time.sleep(0.05)
