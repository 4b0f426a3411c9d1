"""The message of retry and dead-letter queues: one format, so that a dead letter sent to its retry queue just works.

ASCII JSON. A value that is UTF-8 text stands as it came under `value`, any other as `value_base64`; of one that is too
large only its size and hash are kept. A dead letter is the same message plus `dead_letter`: reason, attempts, job type.
"""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from campaign_jobs import catalog
from campaign_jobs.errors import CampaignJobsError
from campaign_jobs.worker.delivery import Coordinates

READABLE_BYTES: Final = 2_000
"""A value that is no longer stands as text in any case, because people read it."""
MAX_UNREADABLE_CHARACTERS: Final = 80_000
"""Escaped, a character takes up to twelve bytes, and SQS takes 1 MiB."""
_INT4_MAX: Final = 2**31 - 1
_INT8_MAX: Final = 2**63 - 1


class UnreadableMessage(CampaignJobsError):
    """A message of a retry queue is not one of ours."""


class Received(NamedTuple):
    """One record as an invocation has it, from Kafka or from a retry queue."""

    coordinates: Coordinates
    value: bytes | None
    recorded_at: datetime
    """Kafka's timestamp of the record."""
    first_received_at: datetime
    attempts_spent: int = 0
    not_before: datetime | None = None
    from_retry_queue: bool = False
    isolated: bool = False
    """It was handed on as it came, because a record near it killed an invocation."""
    dropped_value: dict[str, Any] | None = None
    """Size and hash of a value that was too large to keep."""

    @property
    def has_other_readers(self) -> bool:
        """Whether the other functions get the record from Kafka as well, so that it is left to its owner."""
        return self.isolated or not self.from_retry_queue

    @property
    def why_dropped(self) -> str | None:
        """Why there is no value any more, for people; None where there is one."""
        if self.dropped_value is None:
            return None
        return (
            f"the value has {self.dropped_value['bytes']} bytes and was not kept; "
            f"allowed are at most {catalog.MAX_VALUE_BYTES}"
        )

    def with_attempt(self) -> "Received":
        return self._replace(attempts_spent=self.attempts_spent + 1)


def from_kafka(event: dict[str, Any], *, now: datetime) -> list[Received]:
    """The records of an event of Lambda's event-source mapping for MSK, in the order of each partition."""
    return [
        Received(
            coordinates=Coordinates(record["topic"], record["partition"], record["offset"]),
            value=None if record.get("value") is None else base64.b64decode(record["value"]),
            recorded_at=_recorded_at(record["timestamp"], now),
            first_received_at=now,
        )
        for records in event["records"].values()
        for record in records
    ]


def _recorded_at(milliseconds: int, now: datetime) -> datetime:
    # A producer may write any number into a record, and the record must not stop its partition.
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds >= 0 else now
    except (ValueError, OverflowError, OSError):
        return now


def body_of(
    received: Received, *, not_before: datetime | None = None, reason: str | None = None
) -> dict[str, Any]:
    """The message that hands a record on to a retry queue."""
    body: dict[str, Any] = {
        "topic": received.coordinates.topic,
        "partition": received.coordinates.partition,
        "offset": received.coordinates.offset,
        "recorded_at": received.recorded_at.isoformat(),
        "first_received_at": received.first_received_at.isoformat(),
        "attempts": received.attempts_spent,
        **_encoded_value(received),
    }
    if received.isolated:
        body["isolated"] = True
    if not_before is not None:
        body["not_before"] = not_before.isoformat()
    if reason is not None:
        body["reason"] = reason
    return body


def dead_letter_of(received: Received, *, job_type: str, reason: str, now: datetime) -> dict[str, Any]:
    """The message that keeps a record for people, with why it is there."""
    details = {
        "job_type": job_type,
        "reason": reason,
        "attempts": received.attempts_spent,
        "at": now.isoformat(),
    }
    return {**body_of(received), "dead_letter": details}


def read_body(text: str, *, now: datetime) -> Received:
    """Read a message of a retry queue. A redriven dead letter starts anew: no attempts spent, received now.

    Raises UnreadableMessage when it is not one of ours.
    """
    try:
        body = json.loads(text)
        redriven = "dead_letter" in body
        return Received(
            coordinates=_coordinates(body),
            value=_decoded_value(body),
            recorded_at=_moment(body["recorded_at"]),
            first_received_at=now if redriven else _moment(body["first_received_at"]),
            attempts_spent=0 if redriven else _number(body["attempts"], _INT4_MAX),
            not_before=None if redriven or "not_before" not in body else _moment(body["not_before"]),
            from_retry_queue=True,
            isolated=not redriven and body.get("isolated") is True,
            dropped_value=_dropped_value(body),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UnreadableMessage(
            f"not a message of campaign-jobs ({type(error).__name__}); allowed are the bodies of its dead letters"
        ) from None


def _coordinates(body: dict[str, Any]) -> Coordinates:
    """As Kafka and the database have them, because starts are counted by them."""
    coordinates = Coordinates(str(body["topic"]), int(body["partition"]), int(body["offset"]))
    if not (
        re.fullmatch(r"[A-Za-z0-9._-]{1,249}", coordinates.topic)
        and 0 <= coordinates.partition < 2**31
        and 0 <= coordinates.offset < 2**63
    ):
        raise ValueError("no coordinates of a record in Kafka")
    return coordinates


def dead_letter_of_unreadable(text: str, *, job_type: str, reason: str, now: datetime) -> dict[str, Any]:
    """The message that keeps another one that nobody can read: as it came, or the beginning of one that is long."""
    body: dict[str, Any] = {"unreadable_body": text[:MAX_UNREADABLE_CHARACTERS]}
    if len(text) > MAX_UNREADABLE_CHARACTERS:
        value = text.encode("utf-8", "surrogatepass")
        body["unreadable_body_cut"] = {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}
    return {**body, "dead_letter": {"job_type": job_type, "reason": reason, "at": now.isoformat()}}


def _encoded_value(received: Received) -> dict[str, Any]:
    if received.dropped_value is not None:
        return {"value_dropped": received.dropped_value}
    value = received.value
    if value is None:
        return {"value": None}
    if len(value) > catalog.MAX_VALUE_BYTES:
        return {"value_dropped": {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}}
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode("ascii")}
    # Escaped, a control character takes six bytes, one outside ASCII too, or twelve. A message of SQS has room for the
    # longest value in Base64, but not for that.
    encoded = base64.b64encode(value).decode("ascii")
    if len(value) > READABLE_BYTES and len(json.dumps(text)) > len(encoded):
        return {"value_base64": encoded}
    return {"value": text}


def _decoded_value(body: dict[str, Any]) -> bytes | None:
    if len(body.keys() & {"value", "value_base64", "value_dropped"}) != 1:
        raise ValueError("a value in several forms, or in none")
    if "value_base64" in body:
        return base64.b64decode(body["value_base64"], validate=True)
    value = body.get("value")
    return None if value is None else str(value).encode("utf-8")


def _dropped_value(body: dict[str, Any]) -> dict[str, Any] | None:
    dropped = body.get("value_dropped")
    if dropped is None:
        return None
    return {"bytes": _number(dropped["bytes"], _INT8_MAX), "sha256": str(dropped["sha256"])[:64]}


def _number(value: Any, largest: int) -> int:
    number = int(value)
    if not 0 <= number <= largest:
        raise ValueError("a number out of range")
    return number


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment.astimezone(UTC)
