"""The hourly metrics: the right hours of the right zones, and the same numbers however the runs fall."""

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaign_jobs.analytics.backfill import InvalidBackfill
from campaign_jobs.analytics.job import (
    _INSERT,
    METRICS,
    TRAILING,
    AnalyticsJob,
    AnalyticsReport,
    as_json,
    counts,
)
from campaign_jobs.database.connection import Connection, Database

HOUR = timedelta(hours=1)
ZONES = ("UTC", "Asia/Kolkata", "America/New_York")


@dataclass
class Campaign:
    """A campaign whose services write rows at given moments."""

    connection: Connection
    zone: str = "UTC"
    id: UUID = field(default_factory=uuid.uuid4)
    people: int = 0

    def __post_init__(self) -> None:
        self.connection.execute(
            "INSERT INTO campaign_jobs.campaigns (id, name, timezone) VALUES (%s, 'Launch', %s)",
            (self.id, self.zone),
        )

    def sign_up(self, moment: datetime, verified_at: datetime | None = None) -> UUID:
        user = uuid.uuid4()
        self.people += 1
        self.connection.execute(
            "INSERT INTO campaign_jobs.waitlist_users"
            " (id, campaign_id, email, original_position, created_at, verified_at)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            (user, self.id, f"{user}@example.org", self.people, moment, verified_at),
        )
        return user

    def record(self, metric: str, moment: datetime) -> None:
        """One thing that counts for `metric`, by a person who came too long ago to count themselves."""
        if metric == "new_signups":
            self.sign_up(moment)
            return
        long_ago = datetime(2020, 1, 1, tzinfo=UTC)
        user = self.sign_up(long_ago, moment if metric == "email_verifications" else None)
        if metric == "referrals":
            self.connection.execute(
                "INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id, created_at)"
                " VALUES (%s, %s, %s, %s, %s)",
                (uuid.uuid4(), self.id, self.sign_up(long_ago), user, moment),
            )
        elif metric == "emails_sent":
            self.connection.execute(
                "INSERT INTO campaign_jobs.email_messages"
                " (event_id, type, campaign_id, user_id, status, ses_message_id, accepted_at)"
                " VALUES (%s, 'welcome', %s, %s, 'accepted', 'message', %s)",
                (str(uuid.uuid4()), self.id, user, moment),
            )
        elif metric == "rewards_delivered":
            reward = uuid.uuid4()
            self.connection.execute(
                "INSERT INTO campaign_jobs.rewards (id, campaign_id, name, type, trigger_type, delivery_method)"
                " VALUES (%s, %s, 'Badge', 'custom', 'manual', 'manual')",
                (reward, self.id),
            )
            self.connection.execute(
                "INSERT INTO campaign_jobs.user_rewards (id, campaign_id, user_id, reward_id, status, delivered_at)"
                " VALUES (%s, %s, %s, %s, 'redeemed', %s)",
                (uuid.uuid4(), self.id, user, reward, moment),
            )

    def metrics(self) -> dict[datetime, dict[str, int]]:
        """What is stored by bucket, without zeros and without the time long ago."""
        rows = self.connection.execute(
            f"SELECT bucket, {', '.join(METRICS)} FROM campaign_jobs.campaign_metrics"  # type: ignore[arg-type]
            " WHERE campaign_id = %s AND bucket > '2020-01-03'",
            (self.id,),
        ).fetchall()
        return {
            row[0].astimezone(UTC): {
                name: count for name, count in zip(METRICS, row[1:], strict=True) if count
            }
            for row in rows
        }


def signups(campaign: Campaign) -> dict[datetime, int]:
    return {bucket: counts["new_signups"] for bucket, counts in campaign.metrics().items()}


def set_watermark(connection: Connection, moment: datetime) -> None:
    connection.execute("UPDATE campaign_jobs.job_watermarks SET watermark = %s", (moment,))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_counts_its_timestamp(database: Database, connection: Connection, metric: str) -> None:
    campaign, other = Campaign(connection), Campaign(connection)
    for minute in (0, 59):
        campaign.record(metric, utc("2026-05-04T10:00") + timedelta(minutes=minute))
    other.record(metric, utc("2026-05-04T11:00"))
    AnalyticsJob(database).run({})
    assert campaign.metrics() == {utc("2026-05-04T10:00"): {metric: 2}}
    assert other.metrics() == {utc("2026-05-04T11:00"): {metric: 1}}


def test_hours_are_those_of_the_campaigns_zone(database: Database, connection: Connection) -> None:
    kolkata = Campaign(connection, "Asia/Kolkata")
    for text in ("2026-05-04T10:29:59", "2026-05-04T10:30:00", "2026-05-04T11:29:59"):
        kolkata.sign_up(utc(text))
    AnalyticsJob(database).run({})
    assert signups(kolkata) == {utc("2026-05-04T09:30"): 1, utc("2026-05-04T10:30"): 2}


def test_daylight_saving_neither_merges_nor_loses_an_hour(database: Database, connection: Connection) -> None:
    new_york = Campaign(connection, "America/New_York")
    # On 1 November 2026 the hour from 1:00 to 2:00 comes twice there; on 8 March the one from 2:00 to 3:00 never.
    twice = [
        utc("2026-11-01T04:30"),
        utc("2026-11-01T05:30"),
        utc("2026-11-01T06:30"),
        utc("2026-11-01T07:30"),
    ]
    skipped = [utc("2026-03-08T06:30"), utc("2026-03-08T07:30")]
    for moment in (*twice, *skipped):
        new_york.sign_up(moment)
    AnalyticsJob(database).run({})
    assert signups(new_york) == {moment - timedelta(minutes=30): 1 for moment in (*twice, *skipped)}


def test_late_rows_and_emptied_buckets_within_the_trailing_hours(
    database: Database, connection: Connection
) -> None:
    campaign = Campaign(connection)
    now = datetime.now(UTC)
    gone = campaign.sign_up(now - 5 * HOUR)
    job = AnalyticsJob(database)
    job.run({})
    assert sum(signups(campaign).values()) == 1
    connection.execute("DELETE FROM campaign_jobs.waitlist_users WHERE id = %s", (gone,))
    late = now - TRAILING + HOUR
    campaign.sign_up(late)
    report = job.run({})
    assert signups(campaign) == {late.replace(minute=0, second=0, microsecond=0): 1}
    assert (report.buckets, report.records) == (1, 1)


def test_what_lies_before_the_trailing_hours_is_left_as_it_was(
    database: Database, connection: Connection
) -> None:
    campaign = Campaign(connection)
    long_gone = datetime.now(UTC) - TRAILING - 2 * HOUR
    job = AnalyticsJob(database)
    job.run({})
    campaign.sign_up(long_gone)
    report = job.run({})
    assert (report.buckets, campaign.metrics()) == (0, {})
    assert report.begin is not None and report.begin > long_gone
    backfill = {"from": (long_gone - HOUR).isoformat(), "to": (long_gone + HOUR).isoformat()}
    campaign.sign_up(long_gone - 2 * HOUR)
    assert job.run({"backfill": backfill}).records == 1


def test_a_doubled_tick_changes_nothing(database: Database, connection: Connection) -> None:
    campaign = Campaign(connection, "Asia/Kolkata")
    for metric in METRICS:
        campaign.record(metric, datetime.now(UTC) - 3 * HOUR)
    job = AnalyticsJob(database)
    first = job.run({})
    before = campaign.metrics()
    second = job.run({})
    assert campaign.metrics() == before
    assert first.watermark is not None and second.watermark is not None and first.watermark < second.watermark


happenings = st.lists(
    st.tuples(st.sampled_from(METRICS), st.integers(0, 2), st.integers(0, 60 * 30)), max_size=6
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(0, 40), happenings, st.booleans()), min_size=1, max_size=4))
def test_any_interval_late_rows_and_missed_runs_give_what_one_count_of_everything_gives(
    database: Database, connection: Connection, steps: list[tuple[int, list[tuple[str, int, int]], bool]]
) -> None:
    connection.execute("DELETE FROM campaign_jobs.job_watermarks")
    campaigns = [Campaign(connection, zone) for zone in ZONES]
    job = AnalyticsJob(database)
    expected = [Counter[tuple[datetime, str]]() for _ in campaigns]
    # The history ends now, at the last watermark that a run can set.
    watermark = datetime.now(UTC) - timedelta(hours=sum(hours for hours, _, _ in steps))
    job.run({})
    set_watermark(connection, watermark)
    for hours, happened, is_missed in steps:
        last = connection.execute("SELECT watermark FROM campaign_jobs.job_watermarks").fetchone()
        assert last is not None
        for metric, which, minutes in happened:
            # As late as may be: up to the trailing hours before the last run.
            moment = watermark - TRAILING + timedelta(minutes=minutes)
            campaigns[which].record(metric, moment)
            expected[which][bucket_of(moment, ZONES[which]), metric] += 1
        watermark += timedelta(hours=hours)
        if not is_missed:
            job.run({})
            set_watermark(connection, watermark)
    job.run({})
    assert [counted(campaign) for campaign in campaigns] == expected
    connection.execute("DELETE FROM campaign_jobs.job_watermarks")
    job.run({})
    assert [counted(campaign) for campaign in campaigns] == expected


def counted(campaign: Campaign) -> Counter[tuple[datetime, str]]:
    return Counter(
        {(bucket, name): count for bucket, row in campaign.metrics().items() for name, count in row.items()}
    )


def bucket_of(moment: datetime, zone: str) -> datetime:
    local = moment.astimezone(ZoneInfo(zone))
    return moment - timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)


def test_a_backfill_counts_its_buckets_and_leaves_the_watermark(
    database: Database, connection: Connection
) -> None:
    campaign = Campaign(connection)
    days = [utc("2026-05-04T00:00") + timedelta(days=day) for day in range(4)]
    for day in days:
        campaign.sign_up(day)
    job = AnalyticsJob(database)
    watermark = job.run({}).watermark
    connection.execute("UPDATE campaign_jobs.campaign_metrics SET new_signups = 9")
    report = job.run({"backfill": {"from": "2026-05-05T00:00:00Z", "to": "2026-05-07T02:00:00+02:00"}})
    assert report == AnalyticsReport(
        backfilled=True, begin=days[1], buckets=2, records=2, watermark=watermark
    )
    assert signups(campaign) == dict(zip(days, (9, 1, 1, 9), strict=True))


@pytest.mark.parametrize(
    ("backfill", "message"),
    [
        ("yesterday", "backfill must be an object"),
        ({"from": "2026-05-05T00:00:00Z"}, "backfill.to is missing"),
        ({"from": 5, "to": "2026-05-05T00:00:00Z"}, "backfill.from is 5"),
        (
            {"from": "2026-05-05T00:00:00", "to": "2026-05-06T00:00:00Z"},
            "backfill.from is '2026-05-05T00:00:00'; allowed",
        ),
        (
            {"from": "2026-05-05T00:00:00Z", "to": "2026-05-05T00:00:00Z"},
            "allowed is a time after backfill.from",
        ),
        (
            {"from": "2026-05-05T00:00:00Z", "to": "2026-05-06T00:00:00Z", "zone": "UTC"},
            "backfill.zone is not known",
        ),
        (
            {"from": "2026-05-03T23:00:00Z", "to": "2026-05-06T00:00:00Z"},
            "from 2026-05-04T00:00:00\\+00:00 on",
        ),
    ],
)
def test_a_backfill_that_cannot_be_done_says_what_is_allowed(
    database: Database, connection: Connection, backfill: Any, message: str
) -> None:
    campaign = Campaign(connection)
    campaign.sign_up(utc("2026-05-04T00:00"))
    AnalyticsJob(database).run({})
    before = campaign.metrics()
    with pytest.raises(InvalidBackfill, match=message):
        AnalyticsJob(database).run({"backfill": backfill})
    assert campaign.metrics() == before


def test_a_backfill_does_not_wipe_counts_whose_rows_are_kept_no_longer(
    database: Database, connection: Connection
) -> None:
    campaign = Campaign(connection)
    campaign.sign_up(utc("2026-05-01T00:00"))
    for day in (4, 5, 6):
        campaign.record("emails_sent", utc(f"2026-05-0{day}T00:00"))
    job = AnalyticsJob(database)
    job.run({})
    connection.execute("DELETE FROM campaign_jobs.email_messages WHERE accepted_at < '2026-05-06'")
    before = campaign.metrics()
    with pytest.raises(InvalidBackfill, match=r"a time after 2026-05-05T00:00:00.* emails_sent"):
        job.run({"backfill": {"from": "2026-05-02T00:00:00Z", "to": "2026-05-07T00:00:00Z"}})
    assert campaign.metrics() == before
    assert job.run({"backfill": {"from": "2026-05-05T01:00:00Z", "to": "2026-05-07T00:00:00Z"}}).records == 1


@contextmanager
def another_run(database_url: str) -> Iterator[None]:
    with psycopg.connect(database_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('campaign_jobs.analytics', 0))")
        yield


def test_who_meets_another_run_leaves_and_says_so(
    database: Database, database_url: str, connection: Connection
) -> None:
    campaign = Campaign(connection)
    campaign.sign_up(datetime.now(UTC))
    job = AnalyticsJob(database)
    backfill = {"backfill": {"from": "2020-01-01T00:00:00Z", "to": "2026-05-07T00:00:00Z"}}
    with another_run(database_url):
        assert job.run({}) == AnalyticsReport(overlapped=True)
        assert job.run(backfill) == AnalyticsReport(overlapped=True, backfilled=True)
    assert campaign.metrics() == {}
    assert job.run({}).records == 1


def test_a_run_reads_its_hours_through_the_indexes(connection: Connection) -> None:
    campaign = Campaign(connection)
    connection.execute(
        "INSERT INTO campaign_jobs.waitlist_users"
        " (id, campaign_id, email, original_position, status, created_at, verified_at)"
        " SELECT md5(n::text)::uuid, %(campaign)s, n || '@example.org', n, 'verified', moment, moment"
        " FROM generate_series(1, 10000) AS n, LATERAL (SELECT now() - n * interval '5 minutes') AS at (moment)",
        {"campaign": campaign.id},
    )
    connection.execute(
        "INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id, created_at)"
        " SELECT gen_random_uuid(), campaign_id, md5('1')::uuid, id, created_at FROM campaign_jobs.waitlist_users"
        " WHERE id <> md5('1')::uuid"
    )
    connection.execute(
        "INSERT INTO campaign_jobs.email_messages"
        " (event_id, type, campaign_id, user_id, status, ses_message_id, accepted_at)"
        " SELECT id::text, 'welcome', campaign_id, id, 'accepted', 'message', created_at"
        " FROM campaign_jobs.waitlist_users"
    )
    connection.execute(
        "INSERT INTO campaign_jobs.rewards (id, campaign_id, name, type, trigger_type, delivery_method)"
        " VALUES (%(campaign)s, %(campaign)s, 'Badge', 'custom', 'manual', 'manual')",
        {"campaign": campaign.id},
    )
    connection.execute(
        "INSERT INTO campaign_jobs.user_rewards (id, campaign_id, user_id, reward_id, status, delivered_at)"
        " SELECT id, campaign_id, id, campaign_id, 'delivered', created_at FROM campaign_jobs.waitlist_users"
    )
    connection.execute("ANALYZE")
    bounds = {"begin": datetime.now(UTC) - TRAILING - HOUR, "end": "infinity"}
    plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {_INSERT}".encode(), bounds))
    assert "Seq Scan on campaigns" in plan, "one row"
    for index in (
        "waitlist_users_created",
        "waitlist_users_verified",
        "referrals_created",
        "email_messages_accepted",
        "user_rewards_delivered",
    ):
        assert f"using {index}" in plan or f"on {index}" in plan, plan


def test_a_report_can_be_logged_and_answered(database: Database, connection: Connection) -> None:
    Campaign(connection).sign_up(utc("2026-05-04T10:00"))
    job = AnalyticsJob(database)
    job.run({})
    report = job.run({"backfill": {"from": "2026-05-04T15:30:00+05:30", "to": "2026-05-04T11:00:00Z"}})
    answer = json.loads(json.dumps(as_json(report)))
    assert answer["begin"] == "2026-05-04T10:00:00+00:00"
    assert counts(report) == {"overlapped": 0, "backfilled": 1, "buckets": 1, "records": 1}


def test_a_backfill_counts_whole_buckets_where_hours_begin_at_half_past(
    database: Database, connection: Connection
) -> None:
    kolkata = Campaign(connection, "Asia/Kolkata")
    moments = [utc("2026-05-04T10:00"), utc("2026-05-04T11:20"), utc("2026-05-04T11:40")]
    for metric in METRICS:
        for moment in moments:
            kolkata.record(metric, moment)
    job = AnalyticsJob(database)
    job.run({})
    before = kolkata.metrics()
    connection.execute("DELETE FROM campaign_jobs.campaign_metrics WHERE bucket = '2026-05-04T10:30Z'")
    # Of the three buckets, at 9:30, 10:30 and 11:30, only the second begins in the range, and it ends after it.
    report = job.run({"backfill": {"from": "2026-05-04T10:00:00Z", "to": "2026-05-04T11:00:00Z"}})
    assert (report.buckets, report.records) == (1, len(METRICS))
    assert kolkata.metrics() == before
