"""Stand-in for Lambda's Kafka event-source mapping (on-demand pollers).

What it keeps to, from the AWS Lambda Developer Guide ("Using Lambda with Amazon MSK"): order within a partition,
several partitions in one payload, a batch that ends at its size, its window or 6 MB, offsets committed after a
successful invocation only (those of filtered-out records too), and a failed batch delivered again until it succeeds.
"""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from local.functions import FunctionFailed
from local.mappings import LOCAL_ACCOUNT, LOCAL_REGION, Invocable, MappingBroken, MappingCounters
from local.mappings.filters import KafkaFilter
from local.mappings.kafka_event import Batching, kafka_event, record_of
from local.processes import Service

LOCAL_CLUSTER_ARN: Final = (
    f"arn:aws:kafka:{LOCAL_REGION}:{LOCAL_ACCOUNT}:cluster/campaign-jobs-local/{UUID(int=0)}-1"
)
DEFAULT_WINDOW_SECONDS: Final = 0.5
"""Lambda's window for Kafka where none is set."""
MAX_BATCH_SIZE: Final = 10_000
MAX_WINDOW_SECONDS: Final = 300

_POLL_SECONDS: Final = 0.1
_FIRST_BACKOFF_SECONDS: Final = 0.5
_LAST_BACKOFF_SECONDS: Final = 10.0
_COMMIT_RETRY_SECONDS: Final = 1.0
# Lambda's limit for functions that Kafka feeds is 14 minutes; a poller that waits for one must not be thrown out.
_MAX_POLL_INTERVAL_MS: Final = 16 * 60 * 1000

log = logging.getLogger(__name__)


class KafkaMapping(Service):
    """Feeds one function from one topic, in a thread of its own, as one consumer of `consumer_group`."""

    def __init__(
        self,
        *,
        bootstrap_servers: str,
        topic: str,
        consumer_group: str,
        function: Invocable,
        filter_pattern: Mapping[str, Any] | None = None,
        batch_size: int = 100,
        batching_window_seconds: float = 0,
        event_source_arn: str = LOCAL_CLUSTER_ARN,
        first_backoff_seconds: float = _FIRST_BACKOFF_SECONDS,
    ) -> None:
        """A window of 0 is Lambda's default of 500 ms. Raises ValueError or InvalidFilterPattern."""
        if not 1 <= batch_size <= MAX_BATCH_SIZE:
            raise ValueError(f"batch_size={batch_size}; allowed are 1 to {MAX_BATCH_SIZE}")
        if not 0 <= batching_window_seconds <= MAX_WINDOW_SECONDS:
            raise ValueError(
                f"batching_window_seconds={batching_window_seconds}; allowed are 0 to {MAX_WINDOW_SECONDS}"
            )
        self.consumer_group = consumer_group
        self.counters = MappingCounters()
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._function = function
        self._filter = KafkaFilter([] if filter_pattern is None else [filter_pattern])
        self._window_seconds = batching_window_seconds or DEFAULT_WINDOW_SECONDS
        self._event_source_arn = event_source_arn
        self._first_backoff_seconds = first_backoff_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"mapping {consumer_group}", daemon=True)
        self._admin: AdminClient | None = None
        self._broken: BaseException | None = None
        self._next_commit = 0.0

        # What `caught_up` reads from other threads.
        self._lock = threading.Lock()
        self._assigned: set[int] = set()
        self._read: dict[int, int] = {}
        """By partition, the offset after the last record read, filtered out or not."""
        self._ends: dict[int, int] = {}
        """By partition, the end that the broker told us of, where there was nothing more to read."""
        self._collected = Batching(batch_size)
        """Passed by the filter and not yet delivered; the batch in flight among them."""
        self._uncommitted: dict[int, int] = {}
        """By partition, the offset to commit after a successful invocation."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop polling, let the batch in flight finish, commit its offsets and leave the group."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def caught_up(self) -> bool:
        """Whether every record of our partitions is read and, where the filter passed it, delivered and committed.

        Raises MappingBroken when the thread has ended on an error.
        """
        if self._broken is not None:
            raise MappingBroken(f"mapping {self.consumer_group}: {self._broken}") from self._broken
        with self._lock:
            assigned = sorted(self._assigned)
        if not assigned:
            return False
        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": self._bootstrap_servers, "log_level": 0})
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        try:
            places = [TopicPartition(self._topic, partition) for partition in assigned]
            answers = self._admin.list_offsets(dict.fromkeys(places, latest), request_timeout=2)
            ends = {place.partition: answer.result().offset for place, answer in answers.items()}
        except KafkaException:
            return False  # Without the broker nobody knows.
        with self._lock:
            return (
                self._assigned == set(assigned)
                and not self._collected
                and not self._uncommitted
                and all(self._position(partition) >= end for partition, end in ends.items())
            )

    # The mapping's own thread, from here on.

    def _run(self) -> None:
        try:
            consumer = Consumer(self._consumer_configuration())
            try:
                consumer.subscribe(
                    [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
                )
                log.info("%s: reads %s", self.consumer_group, self._topic)
                while not self._stopping.is_set():
                    self._collect(consumer)
                    if not self._stopping.is_set():
                        self._deliver(consumer)
            finally:
                # Leaving the group revokes our partitions, and with that commits what is still due.
                consumer.close()
            log.info("%s: stopped", self.consumer_group)
        except BaseException as error:
            self._broken = error
            log.exception("%s: broken, nothing is delivered any more", self.consumer_group)

    def _consumer_configuration(self) -> dict[str, Any]:
        return {
            "bootstrap.servers": self._bootstrap_servers,
            "group.id": self.consumer_group,
            "client.id": f"mapping-{self.consumer_group}",
            "auto.offset.reset": "earliest",  # TRIM_HORIZON
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "max.poll.interval.ms": _MAX_POLL_INTERVAL_MS,
            # The least the broker takes: whoever starts again after a crash waits this long for its own former self.
            "session.timeout.ms": 6_000,
            "heartbeat.interval.ms": 1_000,
            "reconnect.backoff.max.ms": 1_000,
            "fetch.wait.max.ms": 100,
            "queued.max.messages.kbytes": 16_384,
            "error_cb": self._on_error,
            # `error_cb` hears of what matters, and librdkafka would repeat it twenty times a second.
            "log_level": 0,
        }

    def _collect(self, consumer: Consumer) -> None:
        """Read until a batch is there: its size, its window or Lambda's payload limit is reached."""
        window_ends: float | None = None
        while not self._stopping.is_set():
            timeout = _POLL_SECONDS
            if self._collected:
                now = time.monotonic()
                window_ends = now + self._window_seconds if window_ends is None else window_ends
                if now >= window_ends or self._collected.is_full():
                    return
                timeout = min(timeout, window_ends - now)
            self._poll(consumer, timeout)
            self._commit(consumer)

    def _poll(self, consumer: Consumer, timeout: float) -> None:
        message = consumer.poll(timeout)
        if message is None:
            return
        error = message.error()
        if error is None:
            self._accept(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            with self._lock:
                self._ends[_number(message.partition())] = _number(message.offset())
        else:
            log.warning("%s: %s", self.consumer_group, error.str())

    def _accept(self, message: "Message[bytes, bytes]") -> None:
        partition, offset = _number(message.partition()), _number(message.offset())
        record = record_of(message) if self._filter.passes(message.value()) else None
        if record is None:
            self.counters.add(filtered_out=1)
        with self._lock:
            self._read[partition] = offset + 1
            if record is not None:
                self._collected.add(record)

    def _deliver(self, consumer: Consumer) -> None:
        """Invoke with one batch, again and again until it succeeds, its partitions are taken away or we stop."""
        backoff = self._first_backoff_seconds
        while batch := self._collected.batch():
            self.counters.add(batches=1)
            try:
                self._function.invoke(
                    kafka_event(batch, self._topic, self._event_source_arn, self._bootstrap_servers)
                )
            except FunctionFailed as error:
                self.counters.add(failed_batches=1, failed=len(batch))
                log.warning(
                    "%s: a batch of %d failed and comes again: %s", self.consumer_group, len(batch), error
                )
                self._back_off(consumer, backoff)
                if self._stopping.is_set():
                    return
                backoff = min(backoff * 2, _LAST_BACKOFF_SECONDS)
            else:
                self.counters.add(delivered=len(batch))
                log.debug("%s: delivered %d", self.consumer_group, len(batch))
                self._settle(len(batch))
                self._commit(consumer)
                return

    def _back_off(self, consumer: Consumer, seconds: float) -> None:
        """Wait, reading nothing, but answer the group: another member may be waiting to take partitions over."""
        paused = consumer.assignment()
        consumer.pause(paused)
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
            self._poll(consumer, min(left, _POLL_SECONDS))
        # Those too that the group has taken away meanwhile: Kafka's client would give them back to us paused, for good.
        consumer.resume(paused)

    def _settle(self, delivered: int) -> None:
        """What has been read up to the first record that is still to be delivered may be committed now."""
        with self._lock:
            self._collected.remove_first(delivered)
            self._uncommitted.update(self._read | self._collected.first_offsets())

    def _commit(self, consumer: Consumer) -> None:
        """Commit what is due. Where the broker does not take it, it stays due, and is tried again a little later."""
        if not self._uncommitted or time.monotonic() < self._next_commit:
            return
        due = dict(self._uncommitted)
        places = [TopicPartition(self._topic, partition, offset) for partition, offset in due.items()]
        try:
            answers = consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            self._next_commit = time.monotonic() + _COMMIT_RETRY_SECONDS
            log.warning("%s: offsets not committed yet: %s", self.consumer_group, error.args[0].str())
            return
        refused = {place.partition for place in answers or () if place.error is not None}
        with self._lock:
            for partition, offset in due.items():
                if partition not in refused and self._uncommitted.get(partition) == offset:
                    del self._uncommitted[partition]
        self._next_commit = time.monotonic() + _COMMIT_RETRY_SECONDS if refused else 0

    def _position(self, partition: int) -> int:
        return max(self._read.get(partition, -1), self._ends.get(partition, -1))

    # Called by librdkafka from within `poll` and `close`, so in the same thread and never during an invocation.

    def _on_assign(self, _: Consumer, places: list[TopicPartition]) -> None:
        with self._lock:
            self._assigned.update(place.partition for place in places)

    def _on_revoke(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        # The next owner starts from the committed offsets, so they have to be there before the partitions go.
        self._next_commit = 0
        self._commit(consumer)
        self._forget(places)

    def _on_lost(self, _: Consumer, places: list[TopicPartition]) -> None:
        self._forget(places)

    def _forget(self, places: list[TopicPartition]) -> None:
        """Drop all we know of partitions that are another member's now, or come back from the committed offset."""
        gone = {place.partition for place in places}
        with self._lock:
            self._assigned -= gone
            self._collected.forget(gone)
            for known in (self._read, self._ends, self._uncommitted):
                for partition in gone:
                    known.pop(partition, None)

    def _on_error(self, error: KafkaError) -> None:
        level = logging.WARNING if error.code() == KafkaError._ALL_BROKERS_DOWN else logging.DEBUG
        log.log(level, "%s: %s", self.consumer_group, error.str())


def _number(value: int | None) -> int:
    assert value is not None  # librdkafka sets it on everything that `poll` returns.
    return value
