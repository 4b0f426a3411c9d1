"""Publishes what is planned, and keeps where and when Kafka took each record."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from confluent_kafka import KafkaError, Message, Producer

from campaign_jobs.errors import CampaignJobsError
from local.chaos.plan import Planned

PATIENCE_SECONDS: Final = 120


class NotPublished(CampaignJobsError):
    """Kafka did not take everything, although it had long been back."""


@dataclass(frozen=True)
class Published:
    """One record that Kafka acknowledged."""

    planned: Planned
    partition: int
    offset: int
    at: datetime


class Publisher:
    """A service's producer, which publishes once more what Kafka has not acknowledged.

    A broker that has just come back may not know its topic for a moment, and then the client gives records back.
    """

    def __init__(self, brokers: str, topic: str) -> None:
        self.topic = topic
        self.published: list[Published] = []
        self._lock = threading.Lock()
        self._again: list[Planned] = []
        self._producer = Producer(
            {
                "bootstrap.servers": brokers,
                "enable.idempotence": True,
                "delivery.timeout.ms": PATIENCE_SECONDS * 1000,
                "reconnect.backoff.max.ms": 1000,
                "log_level": 0,
            }
        )

    def publish(self, records: Sequence[Planned]) -> None:
        """Hand them to the producer's own thread; `flush` waits for them."""
        with self._lock:
            again, self._again = self._again, []
        for planned in (*again, *records):

            def delivered(error: KafkaError | None, message: Message, planned: Planned = planned) -> None:
                partition, offset = message.partition(), message.offset()
                with self._lock:
                    if error is not None or partition is None or offset is None:
                        self._again.append(planned)
                    else:
                        self.published.append(Published(planned, partition, offset, datetime.now(UTC)))

            self._producer.produce(self.topic, value=planned.value, key=planned.key, on_delivery=delivered)
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait for everything that was published. Raises NotPublished."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (left := self._producer.flush(1)) or self._again:
            if time.monotonic() > deadline:
                raise NotPublished(f"Kafka did not take {left + len(self._again)} records")
            self.publish([])
