"""Lambda's `aws:kafka` event, and which records fit into one.

Sources: AWS Lambda Developer Guide, "Using Lambda with Amazon MSK" (the shape) and "Batching behavior" (size, payload).
"""

import base64
import json
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME, Message

from local.mappings import MAX_PAYLOAD_BYTES

ENVELOPE_BYTES: Final = 2_048
"""Set aside for everything in the event that is not a record."""

_TIMESTAMP_TYPES: Final = {TIMESTAMP_CREATE_TIME: "CREATE_TIME", TIMESTAMP_LOG_APPEND_TIME: "LOG_APPEND_TIME"}


@dataclass(frozen=True)
class Record:
    """One record as the event shows it."""

    partition: int
    offset: int
    fields: dict[str, Any]
    payload_bytes: int


class Batching:
    """Records in the order they were read, cut into batches from the front."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._records: list[Record] = []
        self._payload_bytes = ENVELOPE_BYTES

    def __bool__(self) -> bool:
        return bool(self._records)

    def add(self, record: Record) -> None:
        self._records.append(record)
        self._payload_bytes += record.payload_bytes

    def is_full(self) -> bool:
        """Whether a batch need not wait for more: it has its size, or the next record no longer fits."""
        return len(self._records) >= self._batch_size or self._payload_bytes > MAX_PAYLOAD_BYTES

    def batch(self) -> list[Record]:
        """What one invocation takes of them. A record that alone is too large goes alone."""
        payload_bytes = ENVELOPE_BYTES
        for count, record in enumerate(self._records[: self._batch_size]):
            payload_bytes += record.payload_bytes
            if count and payload_bytes > MAX_PAYLOAD_BYTES:
                return self._records[:count]
        return self._records[: self._batch_size]

    def remove_first(self, count: int) -> None:
        self._keep(self._records[count:])

    def forget(self, partitions: AbstractSet[int]) -> None:
        self._keep([record for record in self._records if record.partition not in partitions])

    def first_offsets(self) -> dict[int, int]:
        """By partition, the first record's offset."""
        return {record.partition: record.offset for record in reversed(self._records)}

    def _keep(self, records: list[Record]) -> None:
        self._records = records
        self._payload_bytes = ENVELOPE_BYTES + sum(record.payload_bytes for record in records)


def kafka_event(
    batch: list[Record], topic: str, event_source_arn: str, bootstrap_servers: str
) -> dict[str, Any]:
    records: dict[str, list[dict[str, Any]]] = {}
    for record in batch:
        records.setdefault(f"{topic}-{record.partition}", []).append(record.fields)
    return {
        "eventSource": "aws:kafka",
        "eventSourceArn": event_source_arn,
        "bootstrapServers": bootstrap_servers,
        "records": records,
    }


def record_of(message: "Message[bytes, bytes]") -> Record:
    partition, offset = message.partition(), message.offset()
    assert partition is not None and offset is not None  # librdkafka sets them on every record it has read.
    timestamp_type, timestamp = message.timestamp()
    fields = {
        "topic": message.topic(),
        "partition": partition,
        "offset": offset,
        "timestamp": timestamp,
        "timestampType": _TIMESTAMP_TYPES.get(timestamp_type, "NO_TIMESTAMP_TYPE"),
        "key": _base64(message.key()),
        "value": _base64(message.value()),
        "headers": [{name: _signed_bytes(value)} for name, value in _headers(message)],
    }
    return Record(partition, offset, fields, len(json.dumps(fields)) + 2)


def _headers(message: "Message[bytes, bytes]") -> list[tuple[str, bytes | None]]:
    headers: Any = message.headers() or []
    return list(headers)


def _signed_bytes(value: bytes | None) -> list[int]:
    """Java's bytes, as Lambda's poller writes them: 128 to 255 are negative (Powertools decodes both)."""
    return [byte - 256 if byte > 127 else byte for byte in value or b""]


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode("ascii")
