"""The analytics job: five metrics for each campaign and hour of the campaign's time zone.

A bucket is counted again as a whole, never added to, from timestamps that are written once. So late rows, a repeated or
a missed run and any interval between runs give the same numbers, and a bucket that became empty loses its row.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from campaign_jobs.analytics.backfill import Backfill, InvalidBackfill, backfill_of
from campaign_jobs.database.connection import Connection, Database

TRAILING: Final = timedelta(hours=24)
"""How far behind the watermark buckets are counted again: a row may become visible that long after its timestamp."""

BUCKET: Final = timedelta(hours=1)

METRICS: Final = ("new_signups", "email_verifications", "referrals", "emails_sent", "rewards_delivered")

_LOCK: Final = "SELECT pg_try_advisory_xact_lock(hashtextextended('campaign_jobs.analytics', 0))"

_WATERMARK: Final = "SELECT watermark FROM campaign_jobs.job_watermarks WHERE job_type = 'analytics'"

_DELETE: Final = """
DELETE FROM campaign_jobs.campaign_metrics WHERE bucket >= %(begin)s::timestamptz AND bucket < %(end)s::timestamptz
"""

# A row belongs to the range when its bucket does, which is what the DELETE goes by. The bounds on the timestamps
# themselves follow from that, because a bucket begins less than an hour before each of its rows; they are there for the
# indexes. date_trunc keeps the offset that is in force at the moment itself, so the two hours of the same name when
# daylight saving ends are two buckets. It takes its time to look the zone up, so each half minute is counted first: no
# zone's hour has begun within one since 1970.
_INSERT: Final = """
WITH happened (campaign_id, half_minute, metric, times) AS (
    SELECT campaign_id, date_bin('30 seconds', created_at, 'epoch'), 'new_signups', count(*)
    FROM campaign_jobs.waitlist_users
    WHERE created_at >= %(begin)s::timestamptz AND created_at < %(end)s::timestamptz + interval '1 hour'
    GROUP BY 1, 2
    UNION ALL
    SELECT campaign_id, date_bin('30 seconds', verified_at, 'epoch'), 'email_verifications', count(*)
    FROM campaign_jobs.waitlist_users
    WHERE verified_at >= %(begin)s::timestamptz AND verified_at < %(end)s::timestamptz + interval '1 hour'
    GROUP BY 1, 2
    UNION ALL
    SELECT campaign_id, date_bin('30 seconds', created_at, 'epoch'), 'referrals', count(*)
    FROM campaign_jobs.referrals
    WHERE created_at >= %(begin)s::timestamptz AND created_at < %(end)s::timestamptz + interval '1 hour'
    GROUP BY 1, 2
    UNION ALL
    SELECT campaign_id, date_bin('30 seconds', accepted_at, 'epoch'), 'emails_sent', count(*)
    FROM campaign_jobs.email_messages
    WHERE accepted_at >= %(begin)s::timestamptz AND accepted_at < %(end)s::timestamptz + interval '1 hour'
    GROUP BY 1, 2
    UNION ALL
    SELECT campaign_id, date_bin('30 seconds', delivered_at, 'epoch'), 'rewards_delivered', count(*)
    FROM campaign_jobs.user_rewards
    WHERE delivered_at >= %(begin)s::timestamptz AND delivered_at < %(end)s::timestamptz + interval '1 hour'
    GROUP BY 1, 2
), placed AS (
    SELECT happened.campaign_id, happened.metric, happened.times,
           date_trunc('hour', happened.half_minute, campaign.timezone) AS bucket
    FROM happened
    JOIN campaign_jobs.campaigns AS campaign ON campaign.id = happened.campaign_id
), inserted AS (
    INSERT INTO campaign_jobs.campaign_metrics
        (campaign_id, bucket, new_signups, email_verifications, referrals, emails_sent, rewards_delivered)
    SELECT campaign_id, bucket,
           coalesce(sum(times) FILTER (WHERE metric = 'new_signups'), 0),
           coalesce(sum(times) FILTER (WHERE metric = 'email_verifications'), 0),
           coalesce(sum(times) FILTER (WHERE metric = 'referrals'), 0),
           coalesce(sum(times) FILTER (WHERE metric = 'emails_sent'), 0),
           coalesce(sum(times) FILTER (WHERE metric = 'rewards_delivered'), 0)
    FROM placed
    WHERE bucket >= %(begin)s::timestamptz AND bucket < %(end)s::timestamptz
    GROUP BY campaign_id, bucket
    RETURNING new_signups + email_verifications + referrals + emails_sent + rewards_delivered AS records
)
SELECT count(*), coalesce(sum(records), 0)::bigint FROM inserted
"""

_MOVE_WATERMARK: Final = """
INSERT INTO campaign_jobs.job_watermarks AS stored (job_type, watermark) VALUES ('analytics', now())
ON CONFLICT (job_type) DO UPDATE SET watermark = greatest(stored.watermark, now()), updated_at = now()
RETURNING watermark
"""

# In the order of METRICS.
_OLDEST: Final = """
SELECT (SELECT min(created_at) FROM campaign_jobs.waitlist_users),
       (SELECT min(verified_at) FROM campaign_jobs.waitlist_users),
       (SELECT min(created_at) FROM campaign_jobs.referrals),
       (SELECT min(accepted_at) FROM campaign_jobs.email_messages),
       (SELECT min(delivered_at) FROM campaign_jobs.user_rewards)
"""

# Of mails, those that must not be sent again are kept for longer, so the oldest row does not say since when all are.
# The lock keeps retention from deleting what is being counted.
_MAILS_GONE: Final = """
SELECT CASE WHEN kept_since > %s THEN kept_since END FROM campaign_jobs.retention WHERE table_name = 'email_messages'
FOR SHARE
"""

# The last bucket of the range that holds a count whose rows are gone, for each metric.
_COUNTED_BUT_GONE: Final = """
SELECT max(bucket) FILTER (WHERE new_signups > 0 AND bucket <= %(new_signups)s::timestamptz - interval '1 hour'),
       max(bucket) FILTER (WHERE email_verifications > 0
                           AND bucket <= %(email_verifications)s::timestamptz - interval '1 hour'),
       max(bucket) FILTER (WHERE referrals > 0 AND bucket <= %(referrals)s::timestamptz - interval '1 hour'),
       max(bucket) FILTER (WHERE emails_sent > 0 AND bucket <= %(emails_sent)s::timestamptz - interval '1 hour'),
       max(bucket) FILTER (WHERE rewards_delivered > 0
                           AND bucket <= %(rewards_delivered)s::timestamptz - interval '1 hour')
FROM campaign_jobs.campaign_metrics
WHERE bucket >= %(begin)s::timestamptz AND bucket < %(end)s::timestamptz
"""


@dataclass(frozen=True)
class AnalyticsReport:
    """What one run did."""

    overlapped: bool = False
    """Another run held the lock, so this one left and changed nothing."""
    backfilled: bool = False
    begin: datetime | None = None
    """The buckets that begin at this moment or later were counted; None for all."""
    buckets: int = 0
    """Rows of campaign_metrics written."""
    records: int = 0
    """What was counted, over all metrics."""
    watermark: datetime | None = None


def counts(report: AnalyticsReport) -> dict[str, float]:
    """The report as metrics."""
    return {
        "overlapped": float(report.overlapped),
        "backfilled": float(report.backfilled),
        "buckets": float(report.buckets),
        "records": float(report.records),
    }


def as_json(report: AnalyticsReport) -> dict[str, Any]:
    """The report for logs and for whoever invoked the function."""
    return {
        name: value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(report).items()
    }


class AnalyticsJob:
    """Counts what happened since the last run, or in the range of a backfill."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def run(self, event: Mapping[str, Any]) -> AnalyticsReport:
        """Count; `event` is the scheduled event, or `{"backfill": {"from": …, "to": …}}`.

        A run that meets another one, a backfill included, does not wait: it leaves and reports `overlapped`. A backfill
        counts the buckets that begin in its range and leaves the watermark alone.

        Raises InvalidBackfill and DatabaseUnavailable.
        """
        backfill = backfill_of(event)
        # READ COMMITTED, so that each statement has a snapshot of its own: those after the lock see all that the run
        # before committed.
        with self._database.transaction() as connection:
            row = connection.execute(_LOCK).fetchone()
            if row is None or not row[0]:
                return AnalyticsReport(overlapped=True, backfilled=backfill is not None)
            if backfill is not None:
                _refuse_what_is_not_kept(connection, backfill)
                buckets, records = _count(connection, backfill.begin, backfill.end)
                return AnalyticsReport(
                    backfilled=True,
                    begin=backfill.begin,
                    buckets=buckets,
                    records=records,
                    watermark=_watermark(connection),
                )
            watermark = _watermark(connection)
            # A bucket earlier, because the one in which the trailing hours begin has begun before them.
            begin = watermark - TRAILING - BUCKET if watermark is not None else None
            # Before counting: what commits meanwhile lies behind the new watermark by less than the trailing hours.
            row = connection.execute(_MOVE_WATERMARK).fetchone()
            buckets, records = _count(connection, begin, None)
            return AnalyticsReport(
                begin=begin, buckets=buckets, records=records, watermark=row[0] if row else None
            )


def _watermark(connection: Connection) -> datetime | None:
    row = connection.execute(_WATERMARK).fetchone()
    return row[0] if row else None


def _count(connection: Connection, begin: datetime | None, end: datetime | None) -> tuple[int, int]:
    bounds = {"begin": begin or "-infinity", "end": end or "infinity"}
    connection.execute(_DELETE, bounds)
    row = connection.execute(_INSERT, bounds).fetchone()
    assert row is not None
    return row[0], row[1]


def _refuse_what_is_not_kept(connection: Connection, backfill: Backfill) -> None:
    """Raise InvalidBackfill where counting again would put zeros in the place of rows that retention has deleted.

    Each source has a retention of its own, so a metric whose counts reach further back than its rows counts too.
    """
    row = connection.execute(_MAILS_GONE, (backfill.begin,)).fetchone()
    if row is not None and row[0] is not None:
        raise InvalidBackfill(
            f"backfill.from is {backfill.begin.isoformat()}; allowed is a time from {row[0].isoformat()} on, "
            "because mails of before are kept no longer"
        )
    row = connection.execute(_OLDEST).fetchone()
    oldest = dict(zip(METRICS, row or (), strict=True))
    first = min((moment for moment in oldest.values() if moment is not None), default=None)
    if first is None or backfill.begin < first:
        kept = (
            f"a time from {first.isoformat()} on, the oldest row that is kept"
            if first
            else "none: no row is kept"
        )
        raise InvalidBackfill(f"backfill.from is {backfill.begin.isoformat()}; allowed is {kept}")
    row = connection.execute(
        _COUNTED_BUT_GONE,
        {
            **{metric: moment or "infinity" for metric, moment in oldest.items()},
            "begin": backfill.begin,
            "end": backfill.end,
        },
    ).fetchone()
    gone = {metric: bucket for metric, bucket in zip(METRICS, row or (), strict=True) if bucket is not None}
    if gone:
        metric, bucket = max(gone.items(), key=lambda entry: entry[1])
        raise InvalidBackfill(
            f"backfill.from is {backfill.begin.isoformat()}; allowed is a time after {bucket.isoformat()}, "
            f"because the rows that {metric} was counted from are kept no longer"
        )
