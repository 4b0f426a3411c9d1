"""How far each lane is behind in each partition: heartbeats, offsets, and the oldest record that waits for it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from campaign_jobs import catalog
from campaign_jobs_cli import kafka, records
from campaign_jobs_cli.records import Range, Record
from campaign_jobs_cli.targets import Target

MAX_RECORDS: Final = 2_000
"""The most that is read of a partition to find the oldest record that waits."""

_LEADER_MOVES: Final = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
_PAUSE_SECONDS: Final = 0.2

Ages = Mapping[tuple[str, int], float]
"""Seconds by consumer group and partition."""


@dataclass(frozen=True)
class PartitionLag:
    """One lane in one partition."""

    lane: catalog.Lane
    group: str
    partition: int
    heartbeat_age_seconds: float | None
    """Since the last heartbeat was published that the lane has got through; None where there never was one."""
    committed: int | None
    end: int
    events: int
    """Records between what is committed and the end, those of others among them."""
    seconds_behind: float | None
    """How long the oldest record has waited that the lane's filter passes; 0 where none waits, None where none was
    found within MAX_RECORDS."""

    def as_row(self, job_type: str) -> dict[str, Any]:
        return {
            "job_type": job_type,
            "lane": self.lane.name,
            "partition": self.partition,
            "heartbeat_age_seconds": self.heartbeat_age_seconds,
            "committed": self.committed,
            "end": self.end,
            "events": self.events,
            "seconds_behind": self.seconds_behind,
        }


def look(target: Target, client: AdminClient) -> list[PartitionLag]:
    """Every lane in every partition. Raises Unreachable or NotFound."""
    partitions = kafka.partitions(target, client)
    groups = {lane.consumer_group(target.consumer_group): lane for lane in catalog.JOB_TYPE_BY_LANE}
    ages, now = _heartbeats(target)
    try:
        begins = _edges(target, client, partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        ends = _edges(target, client, partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        committed = {group: _committed(target, client, group, partitions) for group in groups}
    except KafkaException as error:
        raise kafka.unreachable(target, error) from error
    # A mapping that has committed nothing begins where the topic does.
    nexts = {
        (group, partition): max(committed[group].get(partition, 0), begins[partition])
        for group in groups
        for partition in partitions
    }
    waiting = _oldest_waiting(target, groups, nexts, ends)
    found = []
    for group, lane in groups.items():
        for partition in partitions:
            events = max(0, ends[partition] - nexts[group, partition])
            since = waiting.get((group, partition))
            behind = (
                since
                if since is None or isinstance(since, float)
                else max(0.0, (now - since).total_seconds())
            )
            found.append(
                PartitionLag(
                    lane,
                    group,
                    partition,
                    ages.get((group, partition)),
                    committed[group].get(partition),
                    ends[partition],
                    events,
                    behind,
                )
            )
    return found


def _heartbeats(target: Target) -> tuple[Ages, datetime]:
    """Their ages, and the database's time."""
    with target.database() as connection:
        rows = connection.execute(
            "SELECT now.now, heartbeats.consumer_group, heartbeats.partition, extract(epoch FROM now.now"
            " - coalesce(published_at, awaited_since))::float8 AS age"
            " FROM (SELECT clock_timestamp() AS now) AS now"
            " LEFT JOIN campaign_jobs.heartbeats ON heartbeats.topic = %s",
            [target.kafka.kafka_job_topic],
        ).fetchall()
    ages = {
        (row["consumer_group"], row["partition"]): max(0.0, row["age"])
        for row in rows
        if row["consumer_group"] is not None
    }
    return ages, rows[0]["now"]


def _edges(
    target: Target, client: AdminClient, partitions: Sequence[int], which: OffsetSpec
) -> dict[int, int]:
    asked = {TopicPartition(target.kafka.kafka_job_topic, partition): which for partition in partitions}
    deadline = time.monotonic() + kafka.TIMEOUT_SECONDS
    while True:
        answers = client.list_offsets(asked, request_timeout=kafka.TIMEOUT_SECONDS)
        try:
            return {each.partition: answer.result().offset for each, answer in answers.items()}
        except KafkaException as error:
            # While leaders move, as they do when brokers are updated, this call alone does not ask the next one itself.
            if error.args[0].code() not in _LEADER_MOVES or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)
            kafka.partitions(target, client)


def _committed(target: Target, client: AdminClient, group: str, partitions: Sequence[int]) -> dict[int, int]:
    asked = ConsumerGroupTopicPartitions(
        group, [TopicPartition(target.kafka.kafka_job_topic, partition) for partition in partitions]
    )
    answer = client.list_consumer_group_offsets([asked], request_timeout=kafka.TIMEOUT_SECONDS)[
        group
    ].result()
    return {each.partition: each.offset for each in answer.topic_partitions or () if each.offset >= 0}


def _oldest_waiting(
    target: Target,
    groups: Mapping[str, catalog.Lane],
    nexts: Mapping[tuple[str, int], int],
    ends: Mapping[int, int],
) -> dict[tuple[str, int], datetime | float]:
    """When the oldest record was published that waits for a group in a partition, or 0.0 where none does.

    One look at each partition serves all groups. What is not found within MAX_RECORDS is left out.
    """
    wanted: dict[tuple[str, int], int] = {}
    found: dict[tuple[str, int], datetime | float] = {}
    for key, offset in nexts.items():
        if offset < ends[key[1]]:
            wanted[key] = offset
        else:
            found[key] = 0.0
    if not wanted:
        return found
    ranges = []
    for partition in sorted({partition for _, partition in wanted}):
        start = min(offset for (_, each), offset in wanted.items() if each == partition)
        ranges.append(Range(partition, start, min(ends[partition], start + MAX_RECORDS)))
    with kafka.consumer(target) as client:
        for batch in records.read(target, client, ranges):
            for record in batch:
                for key in [key for key in wanted if _waits_for(key, record, wanted[key], groups)]:
                    found[key] = record.at
                    del wanted[key]
            if not wanted:
                return found
    for key in wanted:
        if next(each for each in ranges if each.partition == key[1]).end == ends[key[1]]:
            found[key] = 0.0
    return found


def _waits_for(key: tuple[str, int], record: Record, offset: int, groups: Mapping[str, catalog.Lane]) -> bool:
    group, partition = key
    return (
        record.partition == partition
        and record.offset >= offset
        and records.passes(record, groups[group].event_types)
    )
