"""What Lambda hands to a function, and a job and queues that remember, for the tests of what is between them."""

import base64
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from campaign_jobs.catalog import EVENT_JOB_TYPES, MAX_VALUE_BYTES, EventJobType
from campaign_jobs.database.batches import Refusal
from campaign_jobs.errors import QueueUnavailable
from campaign_jobs.settings import BY_FUNCTION, EventJobSettings
from campaign_jobs.worker.delivery import Deadline, Delivery
from campaign_jobs.worker.outcomes import Done, Outcome
from campaign_jobs.worker.queues import Outgoing
from tests.integration.email_campaign import UNSUBSCRIBE_SETTINGS

TOPIC = "job-events"
UUIDS = [str(uuid.UUID(int=number)) for number in range(1, 4)]
SQS_LIMIT = 1_048_576


class Context:
    aws_request_id = "8f0c…"
    invoked_function_arn = "arn:aws:lambda:us-east-1:000000000000:function:campaign-jobs-test-email:email"

    def get_remaining_time_in_millis(self) -> int:
        return 100_000


@dataclass
class RecordingQueues:
    """Keeps messages as SQS would: as text."""

    sent: list[tuple[str, str, int]] = field(default_factory=list)
    broken: bool = False

    def send(self, messages: Sequence[Outgoing]) -> None:
        if self.broken:
            raise QueueUnavailable("SQS did not take messages")
        for message in messages:
            self.sent.append((message.queue_url, json.dumps(message.body), message.delay_seconds))

    def take(self, queue: str) -> list[dict[str, Any]]:
        """The bodies sent to a queue since the last look."""
        taken = [json.loads(body) for url, body, _ in self.sent if url == url_of(queue)]
        self.sent = [entry for entry in self.sent if entry[0] != url_of(queue)]
        return taken


@dataclass
class ScriptedJob:
    """Does what `outcome` says and remembers what it was given."""

    outcome: Callable[[Delivery[Any]], Outcome] = lambda delivery: Done()
    batches: list[list[Delivery[Any]]] = field(default_factory=list)
    given_up: list[tuple[str, str]] = field(default_factory=list)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    """What the database says to giving up the events with these ids."""
    least_seconds: float = 0

    def process(self, deliveries: Sequence[Delivery[Any]], deadline: Deadline) -> Sequence[Outcome]:
        assert 0 < deadline.remaining_seconds() <= 100
        self.batches.append(list(deliveries))
        return [self.outcome(delivery) for delivery in deliveries]

    def give_up(
        self, given_up: Sequence[tuple[Delivery[Any], str]]
    ) -> Sequence[tuple[Delivery[Any], Refusal]]:
        self.given_up += [
            (delivery.event.id, reason)
            for delivery, reason in given_up
            if delivery.event.id not in self.refusals
        ]
        return [
            (delivery, self.refusals[delivery.event.id])
            for delivery, _ in given_up
            if delivery.event.id in self.refusals
        ]

    @property
    def ids(self) -> list[str]:
        return [delivery.event.id for batch in self.batches for delivery in batch]


def url_of(name: str) -> str:
    return f"https://sqs.example.com/000000000000/{name.lower().replace('_', '-')}"


def settings_of(job_type: EventJobType) -> EventJobSettings:
    environ = {
        "DATABASE_URL": "postgresql://db/jobs",
        "DEFAULT_SENDER": "hello@example.com",
        **UNSUBSCRIBE_SETTINGS,
    }
    of = BY_FUNCTION[job_type.name]
    environ |= {name: url_of(name) for name in of.environment_names() if "_QUEUE_URL_" in name}
    loaded = of.load(environ)
    assert isinstance(loaded, EventJobSettings)
    return loaded


def event(type_: str = "job.email.verification", event_id: str = "good", **changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"campaign_id": UUIDS[0], "user_id": UUIDS[1]}
    if type_ == "job.reward.deliver":
        data = {"user_reward_id": UUIDS[2]}
    if type_ == "job.email.milestone":
        data["milestone"] = 5
    if type_ == "job.email.reward_earned":
        data["user_reward_id"] = UUIDS[2]
    return {"id": event_id, "type": type_, "data": data, "timestamp": "2025-01-01T12:00:00Z", **changes}


def value_of(event: Any) -> bytes:
    return json.dumps(event).encode()


def from_kafka(*values: bytes | None, timestamp: int = 1_735_732_800_000) -> dict[str, Any]:
    records: list[dict[str, Any]] = [
        {
            "topic": TOPIC,
            "partition": 3,
            "offset": 40 + number,
            "timestamp": timestamp,
            "timestampType": "CREATE_TIME",
            "key": None,
            "value": None if value is None else base64.b64encode(value).decode(),
            "headers": [],
        }
        for number, value in enumerate(values)
    ]
    return {"eventSource": "aws:kafka", "records": {f"{TOPIC}-3": records}}


def from_sqs(body: dict[str, Any] | str) -> dict[str, Any]:
    text = body if isinstance(body, str) else json.dumps(body)
    attributes = {"ApproximateReceiveCount": "1", "SentTimestamp": str(round(time.time() * 1000))}
    return {"Records": [{"messageId": "1", "body": text, "attributes": attributes}]}


BAD: dict[str, tuple[bytes | None, str, str]] = {
    # value, owner, a part of the reason
    "not JSON": (b"not JSON", "unroutable", "the value is not JSON: Expecting value (line 1, column 1)"),
    "empty": (b"", "unroutable", "the value is not JSON"),
    "NaN": (b'{"type": NaN}', "unroutable", "NaN is not a JSON number"),
    "too deep": (b"[" * 100_000, "unroutable", "nested too deeply"),
    "an array": (b'[{"type": "job.email.welcome"}]', "unroutable", "the value is a JSON array"),
    "a text": (b'"job.email.welcome"', "unroutable", "the value is a JSON text"),
    "null in JSON": (b"null", "unroutable", "the value is a JSON null"),
    "bad UTF-8": (b'{"type": "\xff"}', "unroutable", "the value is not UTF-8 (byte 10)"),
    "an encoded surrogate": (b'{"type": "\xed\xa0\x80"}', "unroutable", "the value is not UTF-8"),
    "null": (None, "unroutable", "the value is null"),
    "no type": (b'{"id": "1"}', "unroutable", "the event's type is missing"),
    "a type that is null": (b'{"type": null}', "unroutable", "the event's type is missing"),
    "a type that is a number": (b'{"type": 7}', "unroutable", "the event's type is a JSON number"),
    "an unknown type": (b'{"type": "job.email.goodbye"}', "unroutable", "'job.email.goodbye' is unknown"),
    "a type in an array": (b'{"type": ["job.email.welcome"]}', "unroutable", "the event's type is a JSON array"),
    "a lone surrogate as type": (b'{"type": "\\ud800"}', "unroutable", "is unknown; allowed are job.email."),
    "too large": (b'{"type": "job.reward.deliver", "": "' + b"x" * MAX_VALUE_BYTES + b'"}', "unroutable", "bytes"),
    "no id": (value_of(event("job.email.welcome", id=None)), "email", "id: Field required"),
    "no user": (value_of(event("job.email.welcome", data={"campaign_id": UUIDS[0]})), "email", "data.user_id"),
    "a lone surrogate": (b'{"id": "\\ud800", "type": "job.position.recalculate"}', "position", "lone surrogate"),
    "NUL": (value_of(event("job.reward.deliver", "a\x00b")), "reward", "must not contain NUL"),
    "data that is an array": (value_of(event("job.reward.deliver", data=[])), "reward", "data: Input should be"),
}  # fmt: skip
GOOD = [
    value_of(event(type_, f"good-{type_}"))
    for job_type in EVENT_JOB_TYPES
    for lane in job_type.lanes
    for type_ in lane.event_types
]
HEARTBEAT = b'{"type": "campaign-jobs.heartbeat", "id": "h"}'
