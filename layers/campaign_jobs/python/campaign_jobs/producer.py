"""Publishing events to Kafka, for services and for `relay`.

    with JobProducer(brokers="localhost:9092", topic="job-events") as producer:
        producer.enqueue_email_job(EmailJobPayload(type="verification", campaign_id=..., user_id=...))

Importing this needs neither AWS libraries nor a database driver; Kafka's client is imported with the first event.
"""

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from campaign_jobs import catalog
from campaign_jobs.errors import ProducerClosed, PublishError, SettingsError
from campaign_jobs.events import (
    EmailJobPayload,
    Event,
    Payload,
    PositionRecalcJobPayload,
    RewardDeliveryJobPayload,
    as_value,
    events_of,
    new_event,
    partition_key,
)
from campaign_jobs.settings import KafkaSettings

if TYPE_CHECKING:
    from campaign_jobs.kafka_connection import KafkaConnection

Message = tuple[str | bytes | None, bytes]
"""A record's key and value."""

MINIMUM_DELIVERY_TIMEOUT_SECONDS: Final = 60


class EventProducer(ABC):
    """What every producer can do, the one that writes to Kafka as well as the one that records for tests.

    Each `enqueue...` returns once the event is safe, with its id, and raises InvalidEvent when it would not follow the
    contract (nothing has been sent then), or PublishError when it was not acknowledged.
    """

    def enqueue_email_job(
        self,
        payload: EmailJobPayload,
        *,
        event_id: str | None = None,
        account_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> str:
        """Ask for one mail to one user; returns the event's id. The optional values are those of `new_event`."""
        return self._enqueue(payload, event_id, account_id, timestamp)

    def enqueue_position_recalc_job(
        self,
        payload: PositionRecalcJobPayload,
        *,
        event_id: str | None = None,
        account_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> str:
        """Ask for all positions of a campaign to be recalculated; returns the event's id."""
        return self._enqueue(payload, event_id, account_id, timestamp)

    def enqueue_reward_delivery_job(
        self,
        payload: RewardDeliveryJobPayload,
        *,
        event_id: str | None = None,
        account_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> str:
        """Ask for the delivery of one user reward; returns the event's id."""
        return self._enqueue(payload, event_id, account_id, timestamp)

    def enqueue_many(self, payloads: Sequence[Payload | Event]) -> list[str]:
        """Ask for many jobs at once, all in flight together; returns their events' ids in order.

        Where some are not acknowledged the others are: PublishError's `events` holds just those to give here again.
        """
        events = events_of(payloads)
        with _naming(events):
            self.publish(_messages(events))
        return [event.id for event in events]

    def publish(self, messages: Sequence[Message]) -> None:
        """Publish keys and values as they are; returns when every one is acknowledged.

        Raises PublishError whose `unacknowledged` holds the positions of those that were not; all others were.
        """
        self.submit(messages).result()

    @abstractmethod
    def submit(self, messages: Sequence[Message]) -> "Future[None]":
        """Begin to publish; the future ends as `publish` would. For callers that do something else meanwhile."""

    @abstractmethod
    def close(self) -> None:
        """Wait for what is in flight and disconnect. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enqueue(
        self, payload: Payload, event_id: str | None, account_id: str | None, timestamp: datetime | None
    ) -> str:
        event = new_event(payload, event_id=event_id, account_id=account_id, timestamp=timestamp)
        return self.enqueue_many([event])[0]


class JobProducer(EventProducer):
    """Publishes to a Kafka topic, idempotently, and waits for every in-sync replica.

    It connects with the first event, and again in a forked child, so it may be built when a module is imported. Threads
    may share it. In AWS Lambda nothing is left to send when an `enqueue...` has returned.
    """

    def __init__(
        self,
        *,
        brokers: str | Sequence[str],
        topic: str = catalog.DEFAULT_TOPIC,
        auth: Literal["none", "iam"] | str = "none",
        region: str | None = None,
        connect_timeout_seconds: float = 15,
        delivery_timeout_seconds: float = MINIMUM_DELIVERY_TIMEOUT_SECONDS,
        options: Mapping[str, str | int | float | bool] | None = None,
    ) -> None:
        """`brokers` is host:port, several as a list or separated by commas. `auth` is `none`, or `iam` for MSK.

        `region` is the cluster's AWS region, for `iam`, where the brokers' names do not tell it.
        `connect_timeout_seconds` is how long the first event waits for any broker to answer,
        `delivery_timeout_seconds` (at least 60) how long sending is repeated before an event counts as not
        acknowledged. `options` are further settings of librdkafka, such as `client.id`. Raises SettingsError with a
        line for each wrong value.
        """
        listed = brokers if isinstance(brokers, str) else ",".join(brokers)
        self._settings = KafkaSettings.load(
            {"KAFKA_BROKERS": listed, "KAFKA_JOB_TOPIC": topic, "KAFKA_AUTH": auth}
        )
        if delivery_timeout_seconds < MINIMUM_DELIVERY_TIMEOUT_SECONDS:
            problem = f"allowed is {MINIMUM_DELIVERY_TIMEOUT_SECONDS} or more"
            raise SettingsError([f"delivery_timeout_seconds={delivery_timeout_seconds:g}: {problem}"])
        self._region = region
        self._connect_timeout_seconds = connect_timeout_seconds
        self._delivery_timeout_seconds = delivery_timeout_seconds
        self._options = dict(options or {})
        self._closed = False
        self._process_id = os.getpid()
        self._connection: KafkaConnection | None = None
        self._connecting = threading.Lock()

    @classmethod
    def from_settings(cls, settings: KafkaSettings) -> Self:
        """A producer for KAFKA_BROKERS, KAFKA_JOB_TOPIC and KAFKA_AUTH."""
        return cls(brokers=settings.kafka_brokers, topic=settings.kafka_job_topic, auth=settings.kafka_auth)

    def submit(self, messages: Sequence[Message]) -> "Future[None]":
        if self._closed:
            raise ProducerClosed("the producer was closed; build a new one", range(len(messages)))
        try:
            connection = self._connected()
        except PublishError as error:
            error.unacknowledged = tuple(range(len(messages)))
            raise
        return connection.submit(messages)

    def republish(self, messages: Sequence[Message], milliseconds: Sequence[int]) -> None:
        """As `publish`, each record with its time in milliseconds since 1970, or 0 for now.

        For records that were on the topic before: an event without a timestamp was asked for at its record's time.
        """
        if self._closed:
            raise ProducerClosed("the producer was closed; build a new one", range(len(messages)))
        self._connected().submit(messages, milliseconds).result()

    def submit_to_each_partition(self, value_of: Callable[[int], bytes]) -> "tuple[int, Future[None]]":
        """Begin to publish a record without a key to each partition, for heartbeats, which no service publishes.

        Returns how many partitions there are, and a future that ends as `publish` would. Raises PublishError.
        """
        if self._closed:
            raise ProducerClosed("the producer was closed; build a new one")
        return self._connected().submit_to_each_partition(value_of)

    def close(self) -> None:
        self._closed = True
        if self._process_id != os.getpid():
            return
        with self._connecting:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _connected(self) -> "KafkaConnection":
        from campaign_jobs.kafka_connection import KafkaConnection

        if self._process_id != os.getpid():
            # Kafka's client does not survive a fork: its threads stayed with the parent.
            if self._connection is not None:
                self._connection.abandon()
            self._process_id, self._connection, self._connecting = os.getpid(), None, threading.Lock()
        with self._connecting:
            if self._connection is not None and self._connection.broken:
                self._connection.close()
                self._connection = None
            if self._connection is None:
                self._connection = KafkaConnection(
                    self._settings,
                    region=self._region,
                    connect_timeout_seconds=self._connect_timeout_seconds,
                    delivery_timeout_seconds=self._delivery_timeout_seconds,
                    options=self._options,
                )
            return self._connection


class AsyncJobProducer:
    """The same for asyncio: coroutines that leave the event loop free while Kafka answers.

    It works on any producer, and closes it: `AsyncJobProducer(JobProducer(...))`, in tests
    `AsyncJobProducer(RecordingProducer())`.
    """

    def __init__(self, producer: EventProducer) -> None:
        self._producer = producer
        # Only connecting, and a full queue, block; one thread of our own keeps them off asyncio's shared ones.
        self._submitting = ThreadPoolExecutor(1, thread_name_prefix="enqueues events")

    @classmethod
    def from_settings(cls, settings: KafkaSettings) -> Self:
        return cls(JobProducer.from_settings(settings))

    async def enqueue_email_job(
        self,
        payload: EmailJobPayload,
        *,
        event_id: str | None = None,
        account_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> str:
        return await self._enqueue(payload, event_id, account_id, timestamp)

    async def enqueue_position_recalc_job(
        self,
        payload: PositionRecalcJobPayload,
        *,
        event_id: str | None = None,
        account_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> str:
        return await self._enqueue(payload, event_id, account_id, timestamp)

    async def enqueue_reward_delivery_job(
        self,
        payload: RewardDeliveryJobPayload,
        *,
        event_id: str | None = None,
        account_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> str:
        return await self._enqueue(payload, event_id, account_id, timestamp)

    async def enqueue_many(self, payloads: Sequence[Payload | Event]) -> list[str]:
        events = events_of(payloads)
        with _naming(events):
            await self.publish(_messages(events))
        return [event.id for event in events]

    async def publish(self, messages: Sequence[Message]) -> None:
        loop = asyncio.get_running_loop()
        acknowledged = await loop.run_in_executor(self._submitting, self._producer.submit, messages)
        await asyncio.wrap_future(acknowledged)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._submitting, self._producer.close)
        self._submitting.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _enqueue(
        self, payload: Payload, event_id: str | None, account_id: str | None, timestamp: datetime | None
    ) -> str:
        event = new_event(payload, event_id=event_id, account_id=account_id, timestamp=timestamp)
        return (await self.enqueue_many([event]))[0]


def _messages(events: Sequence[Event]) -> list[Message]:
    return [(partition_key(event), as_value(event)) for event in events]


@contextmanager
def _naming(events: Sequence[Event]) -> Iterator[None]:
    try:
        yield
    except PublishError as error:
        error.events = tuple(events[position] for position in error.unacknowledged)
        raise
