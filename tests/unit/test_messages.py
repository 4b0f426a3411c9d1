"""Messages of retry and dead-letter queues at the edges of what SQS takes."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from campaign_jobs.worker.messages import UnreadableMessage, dead_letter_of_unreadable, read_body
from campaign_jobs.worker.queues import MAX_BATCH_BYTES

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def body(**changes: Any) -> str:
    moment = "2026-01-01T00:00:00+00:00"
    valid = {"topic": "job-events", "partition": 0, "offset": 7, "attempts": 2, "value": "x"}
    return json.dumps({**valid, "recorded_at": moment, "first_received_at": moment, **changes})


@pytest.mark.parametrize("character", ["x", "\x01", "é", "\U0001f600", "\ud800"])
def test_the_dead_letter_of_any_unreadable_message_fits(character: str) -> None:
    """SQS takes it in UTF-8, and we send it escaped: twelve bytes for four."""
    dead_letter = dead_letter_of_unreadable(character * 300_000, job_type="email", reason="…", now=NOW)
    assert len(json.dumps(dead_letter)) <= MAX_BATCH_BYTES
    assert dead_letter["unreadable_body_cut"]["bytes"] > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"attempts": -1},
        {"attempts": 2**31},
        {"attempts": -(10**300)},
        {"partition": -1},
        {"offset": 2**63},
        {"topic": ""},
        {"topic": "é" * 250},
        {"value_dropped": {"bytes": -1, "sha256": "0"}},
        {"value_dropped": "large"},
    ],
    ids=str,
)
def test_a_message_that_kafka_cannot_have_given_is_not_ours(changes: dict[str, Any]) -> None:
    """With attempts far below zero, the wait before the next one overflowed and the message came back for ever."""
    assert read_body(body(), now=NOW).attempts_spent == 2
    with pytest.raises(UnreadableMessage):
        read_body(body(**changes), now=NOW)


def test_of_a_dropped_value_only_size_and_hash_go_on() -> None:
    dropped = {"bytes": 300_000, "sha256": "0" * 64}
    message = json.loads(body(value_dropped={**dropped, "more": "x" * 1_000}))
    del message["value"]
    received = read_body(json.dumps(message), now=NOW)
    assert received.dropped_value == dropped
