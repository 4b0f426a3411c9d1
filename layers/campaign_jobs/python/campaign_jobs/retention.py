"""Deletes what has been kept long enough, a batch at a time; the schedule of analytics runs it.

Each batch is a short transaction that finds its rows by an index, skips what somebody else has locked, and waits for
nobody. What a run does not get to, the next one does. What stays however old it is: see decision 0013.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Final, LiteralString

from campaign_jobs.analytics.job import BUCKET, TRAILING
from campaign_jobs.database.batches import repeat_on_conflict
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.settings import RetentionSettings
from campaign_jobs.worker.delivery import Deadline

ROWS_AT_ONCE: Final = 1_000
LONGEST_SECONDS: Final = 60.0
"""A run goes on for this long at most; a batch takes some hundredths of a second."""
UNTIL_DEADLINE_SECONDS: Final = 30.0
"""What is left of an invocation when it stops."""
RECOUNTED: Final = TRAILING + 2 * BUCKET
"""The next run of analytics counts again what is as little behind its watermark."""


@dataclass(frozen=True)
class RetentionReport:
    """What one run did."""

    deleted: Mapping[str, int]
    """Rows, by table."""
    finished: bool
    """Whether nothing is left that is old enough, but for what somebody else has locked."""


def counts(report: RetentionReport) -> dict[str, float]:
    """The report as a metric."""
    return {"rows_deleted": float(sum(report.deleted.values()))}


class Retention:
    """Deletes old rows of every table that grows with time."""

    def __init__(self, database: Database, settings: RetentionSettings) -> None:
        self._database = database
        self._kept: dict[str, timedelta] = {
            item.name: getattr(settings, item.name) for item in fields(RetentionSettings)
        }

    def run(self, deadline: Deadline) -> RetentionReport:
        """Delete until nothing is left, or the time is over. Raises DatabaseUnavailable."""
        seconds = min(deadline.earlier(UNTIL_DEADLINE_SECONDS).remaining_seconds(), LONGEST_SECONDS)
        ending = Deadline.of_invocation(lambda: int(seconds * 1000))
        deleted = {item.table: 0 for item in TABLES}
        unfinished = list(TABLES)
        with self._database.within(deadline):
            # A batch of each in turn, so that a long backlog in one keeps no other from its turn.
            while unfinished and ending.remaining_seconds() > 0:
                item = unfinished.pop(0)
                batch = self._delete_batch(item)
                deleted[item.table] += batch.deleted
                if batch.is_full:
                    unfinished.append(item)
        return RetentionReport(deleted, finished=not unfinished)

    def _delete_batch(self, item: "_Table") -> "_Batch":
        kept = self._kept[item.setting]
        return repeat_on_conflict(self._database, lambda connection: item.delete(connection, kept))


@dataclass(frozen=True)
class _Batch:
    deleted: int
    is_full: bool
    """There may be more of it."""


@dataclass(frozen=True)
class _Table:
    table: str
    setting: str
    delete: Callable[[Connection, timedelta], _Batch]


def _by_age(statement: LiteralString) -> Callable[[Connection, timedelta], _Batch]:
    """For tables in which no row is an obstacle: what is old enough may go."""

    def delete(connection: Connection, kept: timedelta) -> _Batch:
        deleted = connection.execute(statement, {"kept": kept, "limit": ROWS_AT_ONCE}).rowcount
        return _Batch(deleted, is_full=deleted == ROWS_AT_ONCE)

    return delete


# By ctid: the rows are locked, so they stay where they are, and no key is looked up twice.

# What was published and what Kafka will never take; what waits stays.
_DELETE_OUTBOX: Final[LiteralString] = """
DELETE FROM campaign_jobs.outbox WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM campaign_jobs.outbox
    WHERE (published_at IS NOT NULL OR refused IS NOT NULL)
      AND coalesce(published_at, created_at) < now() - %(kept)s::interval
    ORDER BY coalesce(published_at, created_at) LIMIT %(limit)s FOR UPDATE SKIP LOCKED
))
"""

_DELETE_ATTEMPTS: Final[LiteralString] = """
DELETE FROM campaign_jobs.webhook_attempts WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM campaign_jobs.webhook_attempts
    WHERE attempted_at < now() - %(kept)s::interval
    ORDER BY attempted_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
))
"""

# What was dismissed is remembered by fraud_dismissals; a confirmed case holds its user for good.
_DELETE_CASES: Final[LiteralString] = """
DELETE FROM campaign_jobs.fraud_cases WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM campaign_jobs.fraud_cases
    WHERE status IN ('dismissed', 'retracted') AND blocked_from IS NULL
      AND updated_at < now() - %(kept)s::interval
    ORDER BY updated_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
))
"""

_DELETE_METRICS: Final[LiteralString] = """
DELETE FROM campaign_jobs.campaign_metrics WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM campaign_jobs.campaign_metrics
    WHERE bucket < now() - %(kept)s::interval
    ORDER BY bucket LIMIT %(limit)s FOR UPDATE SKIP LOCKED
))
"""

# One run at a time.
_LOCK_EVENTS: Final = """
SELECT FROM campaign_jobs.retention WHERE table_name = 'email_events' FOR NO KEY UPDATE SKIP LOCKED
"""

# An event of a mail that is not accepted may still be the proof that it is.
_MAY_GO: Final[LiteralString] = """
    recorded_at < {before} AND occurred_at < {before}
    AND EXISTS (SELECT FROM campaign_jobs.email_messages AS mail
                WHERE mail.tag = event.tag AND mail.status = 'accepted')
"""
_KEPT_SINCE: Final[LiteralString] = (
    "(SELECT kept_since FROM campaign_jobs.retention WHERE table_name = 'email_events')"
)

_DELETE_EVENTS: Final = f"""
DELETE FROM campaign_jobs.email_events WHERE ctid = ANY (ARRAY(
    SELECT event.ctid FROM campaign_jobs.email_events AS event
    WHERE {_MAY_GO.replace("{before}", _KEPT_SINCE)}
    ORDER BY recorded_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
))
"""  # noqa: S608 - constants of this module

_MOVE_EVENTS: Final = f"""
UPDATE campaign_jobs.retention SET kept_since = now() - %(kept)s::interval
WHERE table_name = 'email_events' AND kept_since < now() - %(kept)s::interval
  -- No EXISTS, which would read all of them where there is none, as most often.
  AND (SELECT true FROM campaign_jobs.email_events AS event
       WHERE {_MAY_GO.replace("{before}", "now() - %(kept)s::interval")} ORDER BY recorded_at LIMIT 1)
"""  # noqa: S608 - constants of this module


def _delete_events(connection: Connection, kept: timedelta) -> _Batch:
    """Delete what a transaction before this one has declared too old.

    Were it one transaction, an event that comes again would wait for the end of it and then be recorded as a new one.
    """
    if connection.execute(_LOCK_EVENTS).fetchone() is None:
        return _Batch(0, is_full=False)
    parameters = {"kept": kept, "limit": ROWS_AT_ONCE}
    deleted = connection.execute(_DELETE_EVENTS, parameters).rowcount
    is_full = deleted == ROWS_AT_ONCE
    if not is_full:
        is_full = connection.execute(_MOVE_EVENTS, parameters).rowcount > 0
    return _Batch(deleted, is_full)


# One run at a time, and none while a backfill counts. Nothing that analytics would count again, and nothing at all
# before it has counted.
_LOCK_MAILS: Final = """
SELECT least(now() - %(kept)s::interval, watermark - %(recounted)s::interval), after_created_at, after_event_id
FROM campaign_jobs.retention JOIN campaign_jobs.job_watermarks ON job_type = 'analytics'
WHERE table_name = 'email_messages'
FOR NO KEY UPDATE OF retention SKIP LOCKED
"""

# As the index says. A parked mail waits however long, and one that must not go twice stays as long as its user.
_PASSES: Final[LiteralString] = """
    asked_at IS NOT NULL AND status <> 'parked' AND (once_key IS NULL OR status <> 'accepted')
"""

# Of what is looked at, a mail stays that may still count as accepted, because SES has reported of it, and the last
# position that each user was told. One that changes meanwhile is locked or, once changed, no longer old.
_DELETE_MAILS: Final = f"""
WITH looked_at AS MATERIALIZED (
    SELECT event_id, created_at FROM campaign_jobs.email_messages
    WHERE {_PASSES}
      AND (created_at, event_id)
        > (coalesce(%(after_created_at)s::timestamptz, '-infinity'), coalesce(%(after_event_id)s::text, ''))
      AND created_at < %(before)s
    ORDER BY created_at, event_id LIMIT %(limit)s
), passed AS MATERIALIZED (
    SELECT mail.event_id FROM campaign_jobs.email_messages AS mail
    WHERE mail.event_id = ANY (ARRAY(SELECT event_id FROM looked_at))
      AND {_PASSES}
      AND mail.asked_at < %(before)s AND mail.updated_at < %(before)s
      AND (mail.status = 'accepted'
           OR NOT EXISTS (SELECT FROM campaign_jobs.email_events AS event WHERE event.tag = mail.tag))
      AND (mail.status <> 'accepted' OR mail.type <> 'position_update' OR EXISTS (
           SELECT FROM campaign_jobs.email_messages AS later
           WHERE later.user_id = mail.user_id AND later.type = 'position_update' AND later.status = 'accepted'
             AND later.accepted_at > mail.accepted_at))
    ORDER BY mail.event_id FOR UPDATE OF mail SKIP LOCKED
), deleted AS (
    DELETE FROM campaign_jobs.email_messages WHERE event_id = ANY (ARRAY(SELECT event_id FROM passed))
    RETURNING event_id
)
SELECT (SELECT count(*) FROM deleted), (SELECT count(*) FROM looked_at), last.created_at, last.event_id
FROM (SELECT) AS always
LEFT JOIN (SELECT created_at, event_id FROM looked_at ORDER BY created_at DESC, event_id DESC LIMIT 1) AS last ON true
"""  # noqa: S608 - constants of this module

_MOVE_MAILS: Final = """
UPDATE campaign_jobs.retention
SET kept_since = CASE WHEN %(deleted)s > 0 THEN greatest(kept_since, %(before)s) ELSE kept_since END,
    after_created_at = %(after_created_at)s, after_event_id = %(after_event_id)s
WHERE table_name = 'email_messages'
"""


def _delete_mails(connection: Connection, kept: timedelta) -> _Batch:
    """Look at the next thousand. There may be a million that stay, so each look goes on where the last one ended."""
    row = connection.execute(_LOCK_MAILS, {"kept": kept, "recounted": RECOUNTED}).fetchone()
    if row is None:
        return _Batch(0, is_full=False)
    before, after_created_at, after_event_id = row
    parameters: dict[str, Any] = {
        "before": before,
        "limit": ROWS_AT_ONCE,
        "after_created_at": after_created_at,
        "after_event_id": after_event_id,
    }
    found = connection.execute(_DELETE_MAILS, parameters).fetchone()
    assert found is not None
    deleted, looked_at, last_created_at, last_event_id = found
    is_full = looked_at == ROWS_AT_ONCE
    connection.execute(
        _MOVE_MAILS,
        {
            "deleted": deleted,
            "before": before,
            # At the end it begins anew.
            "after_created_at": last_created_at if is_full else None,
            "after_event_id": last_event_id if is_full else None,
        },
    )
    return _Batch(deleted, is_full)


TABLES: Final = (
    _Table("email_events", "email_event_retention_days", _delete_events),
    _Table("email_messages", "email_message_retention_days", _delete_mails),
    _Table("outbox", "outbox_retention_days", _by_age(_DELETE_OUTBOX)),
    _Table("webhook_attempts", "webhook_attempt_retention_days", _by_age(_DELETE_ATTEMPTS)),
    _Table("fraud_cases", "fraud_case_retention_days", _by_age(_DELETE_CASES)),
    _Table("campaign_metrics", "campaign_metric_retention_days", _by_age(_DELETE_METRICS)),
)
