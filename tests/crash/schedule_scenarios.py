"""The scheduled jobs at their boundaries."""

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.fraud.job import FraudJob
from tests.crash.scenario import Rest, Scenario
from tests.integration.email_campaign import MailCampaign
from tests.integration.fraud_campaign import Campaign as WatchedCampaign

TICK: Final = json.loads((Path(__file__).parent.parent / "events/scheduled.json").read_text(encoding="utf-8"))
# Some weeks ago, so that it is kept.
NOON: Final = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=20)


def _counted(connection: Connection) -> list[Any]:
    campaign = MailCampaign(connection)
    user = campaign.add_user()
    campaign.change_user(user, verified_at=NOON + timedelta(minutes=30), created_at=NOON)
    # A count of an hour that is empty by now.
    connection.execute(
        "INSERT INTO campaign_jobs.campaign_metrics (campaign_id, bucket, new_signups) VALUES (%s, %s, 7)",
        (campaign.id, NOON + timedelta(hours=1)),
    )
    return [TICK]


def _counts(rest: Rest) -> None:
    assert rest.rows(
        "SELECT extract(hour FROM bucket AT TIME ZONE 'UTC'), new_signups, email_verifications"
        " FROM campaign_jobs.campaign_metrics"
    ) == [(12, 1, 1)]


def _backfilled(connection: Connection) -> list[Any]:
    _counted(connection)
    return [{"backfill": {"from": NOON.isoformat(), "to": (NOON + timedelta(hours=3)).isoformat()}}]


_OLD_ROWS: Final = (
    """
    INSERT INTO campaign_jobs.email_messages (event_id, type, campaign_id, user_id, once_key, status, ses_message_id,
        asked_at, created_at, updated_at, accepted_at)
    SELECT type || %(number)s, type, %(campaign)s, %(user)s, CASE type WHEN 'welcome' THEN %(user)s::text END,
        'accepted', 'seeded', moment, moment, moment, moment
    FROM (SELECT now() - %(age)s) AS at (moment) CROSS JOIN (VALUES ('verification'), ('welcome')) AS kinds (type)
    """,
    """
    INSERT INTO campaign_jobs.email_events (tag, ses_message_id, delivery_status, occurred_at, recorded_at)
    SELECT tag, 'seeded', 'delivered', accepted_at, accepted_at FROM campaign_jobs.email_messages
    WHERE user_id = %(user)s AND once_key IS NOT NULL
    """,
    """
    INSERT INTO campaign_jobs.outbox (event_id, partition_key, event, published_at)
    VALUES (%(number)s, 'key', '{}', now() - %(age)s)
    """,
    """
    INSERT INTO campaign_jobs.webhook_attempts (user_reward_id, endpoint_id, event_id, attempted_at, duration_ms)
    VALUES (%(user_reward)s, %(endpoint)s, 'event', now() - %(age)s, 5)
    """,
    """
    INSERT INTO campaign_jobs.fraud_cases
        (campaign_id, user_id, status, holding, risk_score, evidence, rules_version, updated_at)
    VALUES (%(campaign)s, %(user)s, 'retracted', true, 50, '[]', '1', now() - %(age)s)
    """,
    """
    INSERT INTO campaign_jobs.campaign_metrics (campaign_id, bucket, new_signups)
    VALUES (%(campaign)s, now() - %(age)s, 1)
    """,
)


def _grown_old(connection: Connection) -> list[Any]:
    """Three old rows of each table that grows, of which two go at a time, and a mail that must not go twice."""
    events = _counted(connection)
    campaign = MailCampaign(connection)
    endpoint = campaign.add_endpoint("https://receiver/rewards")
    hooked = campaign.add_reward("webhook", endpoint)
    for number in range(3):
        user = campaign.add_user()
        rows = {
            "user": user,
            "campaign": campaign.id,
            "number": str(number),
            "endpoint": endpoint,
            "user_reward": campaign.earn(hooked, user),
            "age": timedelta(days=5_000 + number),
        }
        for statement in _OLD_ROWS:
            connection.execute(statement.encode(), rows)
    # Analytics has counted all of it.
    connection.execute(
        "INSERT INTO campaign_jobs.job_watermarks (job_type, watermark) VALUES ('analytics', now())"
    )
    return events


def _nothing_old(rest: Rest) -> None:
    assert rest.rows("SELECT event_id FROM campaign_jobs.email_messages ORDER BY 1") == [
        (f"welcome{number}",) for number in range(3)
    ]
    for table in ("email_events", "outbox", "webhook_attempts", "fraud_cases"):
        assert rest.rows(f"SELECT * FROM campaign_jobs.{table}") == [], table
    assert rest.rows(
        "SELECT table_name FROM campaign_jobs.retention WHERE kept_since > '2000-01-01' ORDER BY 1"
    ) == [
        ("email_events",),
        ("email_messages",),
    ]


def _suspicious(connection: Connection, policy: str) -> WatchedCampaign:
    """Twelve people with one device, each referred by the one before, and one blocked for something that is gone."""
    campaign = WatchedCampaign(connection, policy={"policy": policy})
    users = [campaign.user(ip="203.0.113.7", device="a device") for _ in range(12)]
    for referrer, referred in pairwise(users):
        campaign.refer(referrer, referred, timedelta(minutes=1))
    innocent = campaign.user()
    campaign.reward(innocent)
    connection.execute(
        "INSERT INTO campaign_jobs.fraud_cases"
        " (campaign_id, user_id, holding, blocking, blocked_from, risk_score, evidence, rules_version)"
        " VALUES (%s, %s, true, true, 'verified', 90, '[]', '1')",
        (campaign.id, innocent),
    )
    campaign.change(innocent, status="blocked")
    return campaign


def _first_run(connection: Connection) -> list[Any]:
    _suspicious(connection, "block")
    return [TICK]


def _later_run(connection: Connection) -> list[Any]:
    """Others come after the first run, and what an open case says changes."""
    campaign = _suspicious(connection, "hold")
    database = Database(connection.info.dsn)
    FraudJob(database).run({})
    database.close()
    referrer = campaign.user(device="a device")
    campaign.refer(referrer, campaign.user(device="a device", email="someone@mailinator.com"))
    return [TICK]


def _cases(rest: Rest) -> None:
    ((opened, retracted),) = rest.rows(
        "SELECT count(*) FILTER (WHERE status = 'open'), count(*) FILTER (WHERE status = 'retracted')"
        " FROM campaign_jobs.fraud_cases"
    )
    assert opened >= 10
    assert retracted == 1
    assert rest.rows("SELECT count(*) FROM campaign_jobs.job_watermarks") == [(1,)]


def _blocks(rest: Rest) -> None:
    _cases(rest)
    ((blocked,),) = rest.rows("SELECT count(*) FROM campaign_jobs.waitlist_users WHERE status = 'blocked'")
    assert blocked >= 10


SCENARIOS = [
    Scenario(name="analytics: a run", function="analytics", source="schedule", seed=_counted, expect=_counts),
    Scenario(
        name="analytics: a backfill",
        function="analytics",
        source="schedule",
        seed=_backfilled,
        expect=_counts,
    ),
    Scenario(
        name="analytics: a run that deletes what is old",
        function="analytics",
        source="schedule",
        seed=_grown_old,
        expect=_nothing_old,
        constants={"campaign_jobs.retention:ROWS_AT_ONCE": 2},
    ),
    Scenario(
        name="fraud: a run that blocks",
        function="fraud",
        source="schedule",
        seed=_first_run,
        expect=_blocks,
    ),
    Scenario(
        name="fraud: a run over what changed",
        function="fraud",
        source="schedule",
        seed=_later_run,
        expect=_cases,
    ),
]
