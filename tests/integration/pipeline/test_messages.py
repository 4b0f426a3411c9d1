"""A record comes back from a queue as it was, whatever it holds."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from campaign_jobs.catalog import MAX_VALUE_BYTES
from campaign_jobs.worker.delivery import Coordinates
from campaign_jobs.worker.messages import (
    MAX_UNREADABLE_CHARACTERS,
    Received,
    body_of,
    dead_letter_of,
    read_body,
)
from campaign_jobs.worker.pipeline import Pipeline
from tests.integration.invocations import SQS_LIMIT, TOPIC, Context, RecordingQueues, ScriptedJob, from_sqs
from tests.integration.pipeline.pipelines import unroutable_of

VALUES = {
    "ASCII": b'{"a": 1}',
    "not ASCII": '{"name": "Jörg 🎉"}'.encode(),
    "not UTF-8": b"\xff\xfe\x00",
    "null": None,
    "empty": b"",
    "an escaped lone surrogate": b'{"a": "\\ud800"}',
    "line separators": "\u2028\x00\x7f\x85".encode(),
    "long, mostly not ASCII": ("é" * 5_000).encode(),
    "long, hardly not ASCII": b"x" * 5_000 + "é".encode(),
}


def exchange(received: Received, **details: Any) -> tuple[str, Received]:
    text = json.dumps(body_of(received, **details))
    assert text.isascii()
    return text, read_body(text, now=datetime.now(UTC))


@pytest.mark.parametrize("kind", VALUES)
def test_a_record_comes_back_from_a_queue_as_it_was(kind: str) -> None:
    moment = datetime(2026, 3, 29, 1, 30, 0, 123_000, tzinfo=UTC)
    received = Received(Coordinates(TOPIC, 9, 2**40), VALUES[kind], moment, moment + timedelta(seconds=1), 3)
    text, back = exchange(received, not_before=moment + timedelta(minutes=1), reason="Größe")
    assert (back.coordinates, back.value) == (received.coordinates, received.value)
    assert (back.recorded_at, back.first_received_at) == (received.recorded_at, received.first_received_at)
    assert (back.attempts_spent, back.not_before) == (3, moment + timedelta(minutes=1))
    assert back.from_retry_queue
    assert ("value_base64" in text) == (kind in ("not UTF-8", "long, mostly not ASCII"))


@settings(max_examples=40)
@given(
    st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_any_value_comes_back_from_a_queue(value: bytes) -> None:
    now = datetime.now(UTC)
    assert exchange(Received(Coordinates(TOPIC, 0, 0), value, now, now))[1].value == value


@pytest.mark.parametrize(
    "part", [b"\x01", b"\x00", b'"', b"\\", "é".encode(), "🎉".encode(), b"\xff", b"x", b'{"a":"\x1f"}']
)
def test_the_longest_values_fit_a_message_of_sqs(part: bytes) -> None:
    value = (part * MAX_VALUE_BYTES)[: MAX_VALUE_BYTES - MAX_VALUE_BYTES % len(part)]
    now = datetime.now(UTC)
    received = Received(Coordinates("t" * 249, 2**31 - 1, 2**63 - 1), value, now, now)
    letter = json.dumps(dead_letter_of(received, job_type="unroutable", reason="ü" * 1000, now=now))
    assert letter.isascii()
    assert len(letter) < SQS_LIMIT - 400_000
    assert read_body(letter, now=now).value == value


def letter(**changes: Any) -> str:
    whole = {
        "topic": "t",
        "partition": 0,
        "offset": 0,
        "recorded_at": "2025-01-01T00:00:00Z",
        "dead_letter": {},
    }
    return json.dumps({**whole, "value": "x", **changes})


UNREADABLE = [
    "", "hello", "null", "[]", "7", '"x"', "{}", '{"dead_letter": {}}', "[" * MAX_UNREADABLE_CHARACTERS, "\x00\ud800",
    letter(topic=None, partition=None),
    letter(offset=float("inf")),
    letter(offset=2**63),
    letter(offset=-1),
    letter(partition=2**31),
    letter(topic="t\x00"),
    letter(topic="\ud800"),
    letter(recorded_at="2025-01-01T00:00:00"),
    letter(recorded_at="0001-01-01T00:00:00+09:00"),
    letter(value_base64="ä"),
    letter(value="\ud800"),
]  # fmt: skip


@pytest.mark.parametrize("text", UNREADABLE)
def test_a_message_that_is_not_ours_is_kept_once_as_it_came(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, text: str
) -> None:
    for handle, name in ((pipeline.handle, "email"), (unroutable_of(queues).handle, "unroutable")):
        assert handle(from_sqs(text), Context()) == {"dead_lettered": 1}
        (body,) = queues.take(f"DEAD_LETTER_QUEUE_URL_{name}")
        assert body["unreadable_body"] == text
        assert body["dead_letter"]["job_type"] == name
        assert "not a message of campaign-jobs" in body["dead_letter"]["reason"]
    assert not queues.sent
    assert not job.batches


def test_a_long_unreadable_message_can_be_kept(pipeline: Pipeline, queues: RecordingQueues) -> None:
    text = "é" * (SQS_LIMIT // 2)
    assert pipeline.handle(from_sqs(text), Context()) == {"dead_lettered": 1}
    ((_, kept, _),) = queues.sent
    assert len(kept) < SQS_LIMIT
    body = json.loads(kept)
    assert text.startswith(body["unreadable_body"])
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert body["unreadable_body_cut"] == {"bytes": SQS_LIMIT, "sha256": digest}
