"""What happens after a job's outcomes: retry queue, dead letters, logs, counts. Nothing else sends to a queue."""

import json
import logging
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from aws_lambda_powertools import Logger

from campaign_jobs import catalog
from campaign_jobs.catalog import EventJobType
from campaign_jobs.observability import log_each
from campaign_jobs.worker.messages import Received, body_of, dead_letter_of, dead_letter_of_unreadable
from campaign_jobs.worker.outcomes import Done, Later, Outcome, Rejected, Retry, Skipped
from campaign_jobs.worker.queues import Outgoing, Queues

MAX_BACKOFF: Final = timedelta(hours=1)


class Settlement(NamedTuple):
    """One record with its outcome, and what is known of its event."""

    received: Received
    outcome: Outcome
    retry_queue_url: str
    event_id: str | None = None
    event_type: str | None = None


def backoff(attempts_spent: int, first_delay: timedelta) -> timedelta:
    """Exponential, at most an hour, with jitter over the upper half so that failures do not return all at once."""
    # In seconds, because a timedelta overflows.
    full = min(first_delay.total_seconds() * 2.0 ** min(attempts_spent, 30), MAX_BACKOFF.total_seconds())
    return timedelta(seconds=full * random.uniform(0.5, 1))


def spent(outcome: Outcome, received: Received, job_type: EventJobType) -> Outcome:
    """`outcome`, but Rejected when it is a retry after the last attempt."""
    if isinstance(outcome, Retry) and received.attempts_spent + 1 >= job_type.max_attempts:
        return Rejected(f"{outcome.reason} (gave up after {job_type.max_attempts} attempts)")
    return outcome


class Settler:
    """Settles the outcomes of one job type."""

    def __init__(
        self,
        job_type: EventJobType,
        *,
        queues: Queues,
        dead_letter_queue_url: str,
        first_delay: timedelta,
        logger: Logger,
    ) -> None:
        self._job_type = job_type
        self._queues = queues
        self._dead_letter_queue_url = dead_letter_queue_url
        self._first_delay = first_delay
        self._logger = logger

    def settle(self, settlements: Sequence[Settlement], *, now: datetime) -> Mapping[str, int]:
        """Hand on what is not finished, then log and count. Raises QueueUnavailable when a message was not kept."""
        outgoing = [message for item in settlements if (message := self._outgoing(item, now)) is not None]
        if outgoing:
            self._queues.send(outgoing)
        self._log(settlements)
        return Counter(_count_name(item.outcome) for item in settlements)

    def isolate(self, received: Sequence[Received], retry_queue_url: str) -> None:
        """Hand records on as they came, spending nothing. Raises QueueUnavailable when one was not kept."""
        self._queues.send(
            [Outgoing(retry_queue_url, body_of(item._replace(isolated=True))) for item in received]
        )

    def renew(self, event: dict[str, Any], retry_queue_url: str) -> int:
        """Send messages of the retry queue again as they are where a stop has brought them close to what SQS allows.

        Each time that a batch is stopped costs a receive, and a message that was received too often would become a
        dead letter without a reason. Returns how many were sent, or 0 where the event's messages can wait. Raises
        QueueUnavailable.
        """
        records = event.get("Records", [])
        if not any(_is_worn(record["attributes"]) for record in records):
            return 0
        try:
            bodies = [json.loads(record["body"]) for record in records]
        except (ValueError, RecursionError):
            return 0
        self._queues.send([Outgoing(retry_queue_url, body) for body in bodies])
        self._logger.warning("messages renewed", extra={"messages": len(bodies)})
        return len(bodies)

    def reject_unreadable(self, body: str, reason: str, *, now: datetime) -> None:
        """Keep a message of our retry queue that nobody can read, as it came. Raises QueueUnavailable."""
        dead_letter = dead_letter_of_unreadable(body, job_type=self._job_type.name, reason=reason, now=now)
        self._queues.send([Outgoing(self._dead_letter_queue_url, dead_letter)])
        self._logger.warning("unreadable message", extra={"reason": reason})

    def _outgoing(self, item: Settlement, now: datetime) -> Outgoing | None:
        received = item.received
        match item.outcome:
            case Done() | Skipped():
                return None
            case Rejected(reason):
                # The attempt that ended in the rejection counts, but not one that never began.
                dead = received.with_attempt() if item.event_id is not None else received
                body = dead_letter_of(dead, job_type=self._job_type.name, reason=reason, now=now)
                return Outgoing(self._dead_letter_queue_url, body)
            case Retry(reason, after):
                wait = backoff(received.attempts_spent, self._first_delay) if after is None else after
                return self._again(item, received.with_attempt(), wait, reason, now)
            case Later(reason, after):
                return self._again(item, received, after, reason, now)

    def _again(
        self, item: Settlement, received: Received, wait: timedelta, reason: str, now: datetime
    ) -> Outgoing:
        body = body_of(received, not_before=now + wait, reason=reason)
        # SQS delays fifteen minutes at most; a longer wait takes several hops, each looking at not_before.
        return Outgoing(item.retry_queue_url, body, delay_seconds=max(0, math.ceil(wait.total_seconds())))

    def _log(self, settlements: Sequence[Settlement]) -> None:
        bad = [item for item in settlements if isinstance(item.outcome, (Retry, Rejected))]
        good = [item for item in settlements if not isinstance(item.outcome, (Retry, Rejected))]
        log_each(self._logger, logging.WARNING, "event settled", map(_log_fields, bad))
        log_each(self._logger, logging.INFO, "event settled", map(_log_fields, good))


def _log_fields(item: Settlement) -> dict[str, object]:
    coordinates = item.received.coordinates
    fields: dict[str, object] = {
        "outcome": type(item.outcome).__name__.lower(),
        "attempts_spent": item.received.attempts_spent,
        "topic": coordinates.topic,
        "partition": coordinates.partition,
        "offset": coordinates.offset,
    }
    if item.event_id is not None:
        fields["event_id"] = item.event_id
    if item.event_type is not None:
        fields["event_type"] = item.event_type
    if (reason := getattr(item.outcome, "reason", None)) is not None:
        fields["reason"] = reason
    return fields


def _is_worn(attributes: dict[str, str]) -> bool:
    """Whether a message has used up half of its receives, or of the time that its queue keeps it."""
    sent = datetime.fromtimestamp(int(attributes["SentTimestamp"]) / 1000, UTC)
    return (
        int(attributes["ApproximateReceiveCount"]) > catalog.RETRY_MAX_RECEIVES / 2
        or datetime.now(UTC) - sent > timedelta(days=catalog.QUEUE_RETENTION_DAYS) / 2
    )


def _count_name(outcome: Outcome) -> str:
    match outcome:
        case Done():
            return "processed"
        case Skipped():
            return "skipped"
        case Retry():
            return "retried"
        case Later():
            return "postponed"
        case Rejected():
            return "dead_lettered"
