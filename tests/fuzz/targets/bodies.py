"""Any message of a retry queue is read or kept as a dead letter, and what was read survives every way it may go."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from campaign_jobs.worker.messages import (
    Received,
    UnreadableMessage,
    body_of,
    dead_letter_of,
    dead_letter_of_unreadable,
    read_body,
)
from campaign_jobs.worker.queues import MAX_BATCH_BYTES
from campaign_jobs.worker.settle import backoff

NOW: Final = datetime(2026, 3, 1, tzinfo=UTC)


def run(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        received = read_body(text, now=NOW)
    except UnreadableMessage as error:
        assert str(error).isprintable()
        _fits(dead_letter_of_unreadable(text, job_type="email", reason=str(error), now=NOW))
        return
    assert received.from_retry_queue
    assert read_body(_fits(body_of(received)), now=NOW) == received._replace(not_before=None)
    wait = backoff(received.attempts_spent, timedelta(seconds=5))
    assert timedelta() < wait <= timedelta(hours=1)
    again = received.with_attempt()
    assert _read(body_of(again, not_before=NOW + wait, reason="…")) == again._replace(not_before=NOW + wait)
    dead = _read(dead_letter_of(received, job_type="email", reason="…", now=NOW))
    assert dead == received._replace(attempts_spent=0, first_received_at=NOW, not_before=None)


def _read(body: dict[str, Any]) -> Received:
    return read_body(_fits(body), now=NOW)


def _fits(body: dict[str, Any]) -> str:
    """The message as SQS gets it: ASCII, and no larger than it takes."""
    text = json.dumps(body, separators=(",", ":"))
    assert text.isascii()
    assert len(text) <= MAX_BATCH_BYTES
    return text
