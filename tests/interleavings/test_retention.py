"""Races of retention with what still needs the rows that it deletes."""

from datetime import UTC, datetime, timedelta

from campaign_jobs.analytics.backfill import InvalidBackfill
from campaign_jobs.analytics.job import AnalyticsJob
from campaign_jobs.database.connection import Connection
from campaign_jobs.email import decisions
from campaign_jobs.email.feedback import Feedback
from campaign_jobs.email.ses import Mail
from campaign_jobs.email.tags import message_tag
from campaign_jobs.retention import TABLES, Retention
from campaign_jobs.settings import RetentionSettings
from campaign_jobs.worker.outcomes import Done, Skipped
from tests.integration.email_campaign import MailCampaign, delivery_of
from tests.integration.reward_campaign import deadline
from tests.interleavings.mailing import email_job, settled
from tests.interleavings.stepping import Race, Side
from tests.ses_events import ses_event, sqs_event

TOO_OLD = Skipped(decisions.TOO_OLD)
OLD = timedelta(days=500)
COUNTED = "SELECT sum(emails_sent) FROM campaign_jobs.campaign_metrics WHERE campaign_id = %s"


def deletes(side: Side, table: str) -> None:
    """One batch of a table, in the side's transaction."""
    (item,) = (item for item in TABLES if item.table == table)
    Retention(side.database, RetentionSettings())._delete_batch(item)


def counted_by_analytics(connection: Connection) -> None:
    connection.execute(
        "INSERT INTO campaign_jobs.job_watermarks (job_type, watermark) VALUES ('analytics', now())"
        " ON CONFLICT (job_type) DO UPDATE SET watermark = now()"
    )


def nothing_deleted_yet(connection: Connection) -> None:
    connection.execute(
        "UPDATE campaign_jobs.retention SET kept_since = '-infinity', after_created_at = NULL, after_event_id = NULL"
    )


def long_ago(connection: Connection) -> None:
    """All mails were asked for and accepted then."""
    connection.execute(
        "UPDATE campaign_jobs.email_messages SET created_at = now() - %(age)s, updated_at = now() - %(age)s,"
        " asked_at = now() - %(age)s, accepted_at = now() - %(age)s",
        {"age": OLD},
    )


def test_a_replay_while_its_row_is_deleted_sends_nothing(race: Race, connection: Connection) -> None:
    sent: list[Mail] = []
    job = email_job(race.first, sent)
    counted_by_analytics(connection)
    for schedule in race.schedules():
        nothing_deleted_yet(connection)
        campaign = MailCampaign(connection)
        event = campaign.event("verification", campaign.add_user())
        delivery = delivery_of({**event, "timestamp": (datetime.now(UTC) - OLD).isoformat()})
        assert job.process([delivery], deadline()) == [Done()]
        long_ago(connection)
        sent.clear()
        (outcome,), _ = schedule.run(
            lambda: job.process([delivery], deadline()), lambda: deletes(race.second, "email_messages")
        )
        assert settled(job, [delivery], [outcome])[0] in (Done(), TOO_OLD)
        assert job.process([delivery], deadline()) == [TOO_OLD]
        assert sent == []
        assert campaign.statuses() == {}


def test_a_backfill_counts_all_mails_or_is_refused(race: Race, connection: Connection) -> None:
    sent: list[Mail] = []
    job, analytics = email_job(race.first, sent), AnalyticsJob(race.first.database)
    counted_by_analytics(connection)
    begin, end = datetime.now(UTC) - OLD - timedelta(hours=3), datetime.now(UTC) - OLD + timedelta(hours=3)
    backfill = {"backfill": {"from": begin.isoformat(), "to": end.isoformat()}}
    for schedule in race.schedules():
        nothing_deleted_yet(connection)
        campaign = MailCampaign(connection)
        users = [campaign.add_user() for _ in range(2)]
        campaign.change_user(users[0], created_at=begin - timedelta(hours=1))
        # One of the two stays, so that the oldest row does not tell.
        assert job.process(
            [campaign.asks("welcome", users[0]), campaign.asks("verification", users[1])], deadline()
        ) == [
            Done(),
            Done(),
        ]
        long_ago(connection)
        analytics.run(backfill)
        assert connection.execute(COUNTED, (campaign.id,)).fetchone() == (2,)

        def count_again() -> None:
            try:
                analytics.run(backfill)
            except InvalidBackfill:
                return

        schedule.run(count_again, lambda: deletes(race.second, "email_messages"))
        assert connection.execute(COUNTED, (campaign.id,)).fetchone() == (2,)
        connection.execute("DELETE FROM campaign_jobs.email_messages")


def test_an_event_of_ses_that_comes_again_while_its_row_is_deleted_suppresses_nobody(
    race: Race, connection: Connection
) -> None:
    sent: list[Mail] = []
    job, feedback = email_job(race.first, sent), Feedback(race.first.database)
    for schedule in race.schedules():
        nothing_deleted_yet(connection)
        campaign = MailCampaign(connection)
        delivery = campaign.asks("welcome", campaign.add_user())
        assert job.process([delivery], deadline()) == [Done()]
        complaint = sqs_event(
            ses_event("complaint", message_tag(delivery.event.id), seconds=-OLD.total_seconds())
        )
        feedback.handle(complaint)
        connection.execute("DELETE FROM campaign_jobs.email_suppressions")
        connection.execute("UPDATE campaign_jobs.email_events SET recorded_at = now() - %s", (OLD,))

        def delete() -> None:
            for _ in ("declared too old", "deleted"):
                deletes(race.second, "email_events")

        schedule.run(lambda: feedback.handle(complaint), delete)
        assert connection.execute("SELECT * FROM campaign_jobs.email_suppressions").fetchall() == []
        connection.execute("DELETE FROM campaign_jobs.email_events")
