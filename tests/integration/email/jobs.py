"""The email job as its tests make it, run it and let it die."""

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email import store
from campaign_jobs.email.job import EmailJob
from campaign_jobs.events import EmailEvent
from campaign_jobs.worker.delivery import Delivery
from campaign_jobs.worker.outcomes import Later, Outcome
from tests.integration.email_campaign import DEFAULT_SENDER, UNSUBSCRIBE_LINKS, RecordingSender
from tests.integration.reward_campaign import deadline

POOL_SIZE = 10
OTHERS_CLAIM = "the mail is claimed by somebody else"
CHANGED = "what the mail was decided by changed meanwhile"


def job_of(database: Database, sender: RecordingSender, **changes: Any) -> EmailJob:
    settings: dict[str, Any] = {
        "pool_size": POOL_SIZE,
        "default_sender": DEFAULT_SENDER,
        "unsubscribe_links": UNSUBSCRIBE_LINKS,
    }
    return EmailJob(database, sender, **{**settings, **changes})


def process(job: EmailJob, *deliveries: Delivery[EmailEvent], seconds: float = 100) -> list[Outcome]:
    return list(job.process(deliveries, deadline(seconds)))


def is_later(outcome: Outcome, reason: str, longest: float) -> bool:
    return (
        isinstance(outcome, Later)
        and outcome.reason == reason
        and timedelta() < outcome.after <= timedelta(seconds=longest)
    )


class Crash(BaseException):
    """The process is gone."""


def crash_while_recording(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The process dies after the sends of pool-full `number`, before they are recorded."""
    record, count = store.record, iter(range(1, 1000))

    def dying(*arguments: Any, **named: Any) -> Any:
        if next(count) >= number:
            raise Crash
        return record(*arguments, **named)

    monkeypatch.setattr(store, "record", dying)


def losing_the_connection(connection: Connection, *arguments: Any, **named: Any) -> Any:
    """What `store.record` does where the database is lost before it."""
    connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    raise AssertionError("unreachable")


class Holder:
    """Somebody who keeps mails' rows locked."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def hold(self, *deliveries: Delivery[EmailEvent]) -> None:
        ids = [delivery.event.id for delivery in deliveries]
        self._connection.execute(
            "SELECT FROM campaign_jobs.email_messages WHERE event_id = ANY (%s) FOR UPDATE", (ids,)
        )

    def let_go(self) -> None:
        self._connection.rollback()
