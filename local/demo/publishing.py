"""Publishing as services do: through JobProducer from Python, as raw JSON from any other language."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError, Message, Producer

from campaign_jobs import catalog
from campaign_jobs.errors import CampaignJobsError
from campaign_jobs.events import EmailJobPayload, Event, Payload, PositionRecalcJobPayload, new_event
from campaign_jobs.producer import JobProducer
from local.demo.cast import BadRecord
from local.demo.outcomes import coordinates_key

FLUSH_SECONDS = 30


class NotPublished(CampaignJobsError):
    """Kafka did not take a raw record."""


@dataclass(frozen=True)
class Asked:
    """Events about one thing, and what they come to together: of two that ask for the same, either may do it."""

    about: str
    ids: tuple[str, ...]
    outcomes: tuple[str, ...]


class Publisher:
    """Publishes, and keeps what it published and what should become of it."""

    def __init__(self, brokers: str, topic: str) -> None:
        self.topic = topic
        self.asked: list[Asked] = []
        self.bad_records: dict[str, BadRecord] = {}
        """By their coordinates."""
        self.records = 0
        self._producer = JobProducer(brokers=brokers, topic=topic)
        self._raw = Producer({"bootstrap.servers": brokers, "log_level": 0, "acks": "all"})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.flush(FLUSH_SECONDS if error is None else 0)
        self._producer.close()

    def publish(self, asks: Sequence[tuple[Payload, Asked]], *, repeats: bool = True) -> None:
        """One event for each id of each ask. Every third ask is raw JSON, and its first event is sent twice.

        Without `repeats` no event is sent twice.
        """
        events: list[Event] = []
        for number, (payload, asked) in enumerate(asks):
            own = [new_event(payload, event_id=event_id) for event_id in asked.ids]
            self.asked.append(asked)
            if number % 3:
                events += own
                continue
            for event in [*own, *(own[:1] if repeats else [])]:
                self._send(raw_value(event))
        # A producer that repeats what was acknowledged already, as one does after a lost answer.
        repeated = events[::10] if repeats else []
        self._producer.enqueue_many([*events, *repeated])
        self.records += len(events) + len(repeated)
        self._flush()

    def publish_bad(self, records: Sequence[BadRecord]) -> None:
        """Records that break the contract, among the others of every partition, found again by their coordinates."""
        for number, record in enumerate(records):

            def delivered(error: KafkaError | None, message: Message, record: BadRecord = record) -> None:
                if error is None:
                    partition, offset = message.partition(), message.offset()
                    assert partition is not None and offset is not None
                    self.bad_records[coordinates_key(self.topic, partition, offset)] = record

            partition = number % catalog.TOPIC_PARTITIONS
            self._raw.produce(self.topic, value=record.value, partition=partition, on_delivery=delivered)
            self.records += 1
        self._flush()
        if len(self.bad_records) < len(records):
            raise NotPublished(f"Kafka took {len(self.bad_records)} of {len(records)} bad records")

    def _send(self, value: bytes) -> None:
        self._raw.produce(self.topic, value=value)
        self.records += 1

    def _flush(self) -> None:
        left = self._raw.flush(FLUSH_SECONDS)
        if left:
            raise NotPublished(f"Kafka did not take {left} records within {FLUSH_SECONDS} s")


def raw_value(event: Event) -> bytes:
    """The event as a Go service sends it: null for what is absent, zero points, fields of its own, no key."""
    payload = event.data
    data: dict[str, Any] = payload.model_dump(mode="json")
    envelope: dict[str, Any] = {"id": event.id, "type": event.type}
    if isinstance(payload, EmailJobPayload):
        data = {name: value or None for name, value in data.items()} | {"source": "signup-form"}
    if isinstance(payload, EmailJobPayload | PositionRecalcJobPayload):
        envelope |= {"account_id": str(payload.campaign_id), "campaign_id": str(payload.campaign_id)}
    envelope |= {"data": data, "timestamp": _as_go(datetime.now(UTC)), "trace_id": None, "schema": 2}
    return json.dumps(envelope).encode()


def _as_go(moment: datetime) -> str:
    # Nanoseconds, as time.Time is written.
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond:06d}000Z"
