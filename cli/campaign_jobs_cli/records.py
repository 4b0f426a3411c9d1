"""Reading a range of the topic, and what a record is: an event, a heartbeat, or nobody's."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from campaign_jobs import events
from campaign_jobs.catalog import HEARTBEAT_EVENT_TYPE
from campaign_jobs.errors import InvalidEvent, NotOurs
from campaign_jobs.events import Event
from campaign_jobs_cli import kafka
from campaign_jobs_cli.errors import Unreachable, WrongInput
from campaign_jobs_cli.targets import Target
from campaign_jobs_cli.times import Edge, Offsets, Point

BATCH: Final = 1_000
# Short, because Ctrl-C is only heard between two looks.
_LOOK_SECONDS: Final = 0.25
_SILENCE_SECONDS: Final = 30


@dataclass(frozen=True)
class Range:
    """Offsets of one partition; None as its end means for ever."""

    partition: int
    start: int
    end: int | None
    """The first offset that is not in it."""


@dataclass(frozen=True)
class Record:
    partition: int
    offset: int
    at: datetime
    """Kafka's timestamp."""
    key: bytes | None
    value: bytes | None

    @property
    def place(self) -> str:
        """As people name it, and as --from takes it."""
        return f"{self.partition}:{self.offset}"


@dataclass(frozen=True)
class Understood:
    """A record with what it is."""

    record: Record
    event: Event | None = None
    decoded: dict[str, Any] | None = None
    """The JSON object, where there is one with a type."""
    reason: str | None = None
    """Why it is no event, or an invalid one: what a dead letter of it would say."""

    @property
    def is_heartbeat(self) -> bool:
        return self.event is None and self.reason is None


def understand(record: Record) -> Understood:
    """What unroutable, or the job type that owns it, would say of it."""
    try:
        decoded = events.read_object(record.value)
        if events.owner(decoded["type"]) is None:
            return Understood(record, decoded=decoded)
    except NotOurs as error:
        return Understood(record, reason=str(error))
    try:
        return Understood(record, events.parse(decoded, recorded_at=record.at), decoded)
    except InvalidEvent as error:
        return Understood(record, decoded=decoded, reason=str(error))


def passes(record: Record, event_types: Sequence[str]) -> bool:
    """Whether Lambda hands it to a mapping whose filter has these types: what is no JSON object passes every filter."""
    try:
        event_type = events.read_object(record.value)["type"]
    except NotOurs:
        return True
    return not event_types or event_type in event_types or event_type == HEARTBEAT_EVENT_TYPE


def ranges(target: Target, client: Consumer, start: Point, end: Point | None) -> list[Range]:
    """What lies between two points now, by partition; without an end, and for ever after. Raises Unreachable."""
    wanted = kafka.partitions(target, client)
    for point in (start, end):
        if isinstance(point, Offsets):
            if unknown := sorted(point.by_partition.keys() - set(wanted)):
                raise WrongInput(f"the topic has no partition {unknown[0]}; its last is {wanted[-1]}")
            wanted = [partition for partition in wanted if partition in point.by_partition]
    starts = _offsets(target, client, start, wanted)
    ends = dict.fromkeys(wanted) if end is None else _offsets(target, client, end, wanted)
    return [Range(partition, starts[partition], ends[partition]) for partition in wanted]


def _offsets(target: Target, client: Consumer, point: Point, partitions: Sequence[int]) -> dict[int, int]:
    """Where a point is in each partition, within what is there."""
    topic, timeout = target.kafka.kafka_job_topic, kafka.TIMEOUT_SECONDS
    try:
        edges = {
            partition: client.get_watermark_offsets(TopicPartition(topic, partition), timeout=timeout)
            for partition in partitions
        }
        if isinstance(point, datetime):
            asked = [
                TopicPartition(topic, partition, max(0, round(point.timestamp() * 1000)))
                for partition in partitions
            ]
            answer = client.offsets_for_times(asked, timeout=timeout)
            # Where no record is that late, the answer is a negative number.
            by_time = {each.partition: each.offset for each in answer if each.offset >= 0}
            return {partition: by_time.get(partition, high) for partition, (_, high) in edges.items()}
    except KafkaException as error:
        raise kafka.unreachable(target, error) from error
    if isinstance(point, Offsets):
        wanted = point.by_partition
        return {partition: min(max(wanted[partition], low), high) for partition, (low, high) in edges.items()}
    return {partition: low if point is Edge.BEGINNING else high for partition, (low, high) in edges.items()}


def read(target: Target, client: Consumer, wanted: Sequence[Range]) -> Iterator[list[Record]]:
    """The records of some ranges, a batch at a time, each partition in its order. Raises Unreachable.

    With a range that has no end it ends only where Kafka does not answer, and yields an empty batch now and then.
    """
    topic = target.kafka.kafka_job_topic
    left = {each.partition: each for each in wanted if each.end is None or each.start < each.end}
    if not left:
        return
    client.assign([TopicPartition(topic, each.partition, each.start) for each in left.values()])
    heard = time.monotonic()
    while left:
        batch = []
        for message in client.consume(BATCH, _LOOK_SECONDS):
            heard = time.monotonic()
            partition = message.partition()
            if partition not in left:
                continue
            end = left[partition].end
            if error := message.error():
                if error.code() != KafkaError._PARTITION_EOF:
                    raise kafka.unreachable(target, KafkaException(error))
                over = end is not None
            else:
                record = _record(message)
                if end is None or record.offset < end:
                    batch.append(record)
                over = end is not None and record.offset >= end - 1
            if over:
                del left[partition]
                client.pause([TopicPartition(topic, partition)])
        if time.monotonic() - heard > _SILENCE_SECONDS:
            if any(each.end is not None for each in left.values()):
                raise Unreachable(
                    f"Kafka of {target.name} ({target.kafka.kafka_brokers}) has sent nothing for {_SILENCE_SECONDS} s"
                )
            # Who waits for more would take a Kafka that is gone for a quiet topic.
            kafka.partitions(target, client)
            heard = time.monotonic()
        handed_over = time.monotonic()
        yield batch
        # What the reader has done with it meanwhile was not Kafka's silence.
        heard += time.monotonic() - handed_over


def _record(message: Message) -> Record:
    milliseconds = message.timestamp()[1]
    partition, offset, key, value = message.partition(), message.offset(), message.key(), message.value()
    assert partition is not None
    assert offset is not None
    try:
        at = datetime.fromtimestamp(max(milliseconds, 0) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        # A producer may write any number.
        at = datetime.max.replace(tzinfo=UTC)
    return Record(partition, offset, at, _bytes(key), _bytes(value))


def _bytes(given: bytes | str | None) -> bytes | None:
    return given.encode() if isinstance(given, str) else given
