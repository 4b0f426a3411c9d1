"""A year of data, of which retention leaves what it must: then everything comes again, and nothing happens."""

from typing import Any

import pytest

from campaign_jobs.analytics.job import AnalyticsJob
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.fraud.job import FraudJob
from campaign_jobs.retention import TABLES, Retention
from campaign_jobs.settings import RetentionSettings
from tests.integration.reward_campaign import deadline
from tests.integration.year import Year, shuffled

MONTHS = 13

LOOKS = {
    "positions": "SELECT * FROM campaign_jobs.user_positions ORDER BY user_id",
    "points": "SELECT id, points_per_referral, points_requested_at FROM campaign_jobs.campaigns ORDER BY id",
    "rewards": "SELECT * FROM campaign_jobs.user_rewards ORDER BY id",
    "attempts": "SELECT count(*) FROM campaign_jobs.webhook_attempts",
    "metrics": "SELECT * FROM campaign_jobs.campaign_metrics ORDER BY campaign_id, bucket",
    "parked": "SELECT event_id FROM campaign_jobs.email_messages WHERE status = 'parked' ORDER BY 1",
    "accepted": "SELECT event_id, accepted_at FROM campaign_jobs.email_messages WHERE status = 'accepted' ORDER BY 1",
    "reports": "SELECT * FROM campaign_jobs.email_events ORDER BY tag, ses_message_id, delivery_status, occurred_at",
    "suppressed": "SELECT * FROM campaign_jobs.email_suppressions",
    "cases": "SELECT user_id, status FROM campaign_jobs.fraud_cases ORDER BY user_id, status",
    "users": "SELECT id, status FROM campaign_jobs.waitlist_users ORDER BY id",
    "events": "SELECT count(*) FROM campaign_jobs.outbox",
}


def looks(connection: Connection, year: Year) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: connection.execute(query.encode()).fetchall() for name, query in LOOKS.items()
    }
    return {**found, "sent": year.sender.sent, "posted": dict(year.receiver.posts)}


@pytest.mark.timeout(300)
def test_replays_after_a_year_do_nothing(database: Database, connection: Connection) -> None:
    year = Year(database, connection)
    for _ in range(MONTHS):
        year.month()
        year.pass_a_month()
    assert year.queues.sent == []
    sent = year.sender.sent
    assert sent.total() > 18 * MONTHS
    assert {type_ for type_, _ in sent} == {
        "verification",
        "welcome",
        "position_update",
        "reward_earned",
        "milestone",
    }

    least = dict.fromkeys(RetentionSettings.environment_names(), "100")
    kept = Retention(database, RetentionSettings.load(least))
    before = looks(connection, year)
    deleted = kept.run(deadline(1_000))
    assert deleted.finished
    assert not any(kept.run(deadline(1_000)).deleted.values())
    assert [item.table for item in TABLES if not deleted.deleted[item.table]] == []
    after = looks(connection, year)
    for name in ("positions", "points", "rewards", "parked", "users", "sent", "posted"):
        assert after[name] == before[name], name
    # Nine months of verifications and told positions, but nothing that must go only once.
    gone = {row[0] for row in before["accepted"]} - {row[0] for row in after["accepted"]}
    assert {event["type"] for event in year.topic.archived() if event["id"] in gone} == {
        "job.email.verification",
        "job.email.position_update",
    }

    archive = year.topic.archived()
    for seed in range(2):
        year.deliver(shuffled(archive, seed))
        year.reports_again()
        year.to_rest()
        assert looks(connection, year) == after
    assert len(year.topic.archived()) == len(archive)
    assert year.queues.sent == []

    # Nor does a schedule make something of it, not even a full scan.
    connection.execute(
        "UPDATE campaign_jobs.job_watermarks SET rules_version = 'another' WHERE job_type = 'fraud'"
    )
    assert FraudJob(database).run({}).full
    AnalyticsJob(database).run({})
    assert not any(kept.run(deadline(1_000)).deleted.values())
    assert looks(connection, year) == after
