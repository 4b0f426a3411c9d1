"""What is old enough is deleted, what is needed stays, and an event that nothing recognizes any more is too old."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import IsolationLevel

from campaign_jobs import retention
from campaign_jobs.analytics.backfill import InvalidBackfill
from campaign_jobs.analytics.job import AnalyticsJob
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email import decisions
from campaign_jobs.email.feedback import Feedback
from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.tags import message_tag
from campaign_jobs.events import EmailEvent, parse
from campaign_jobs.retention import TABLES, Retention
from campaign_jobs.settings import RetentionSettings
from campaign_jobs.worker.delivery import Delivery
from campaign_jobs.worker.outcomes import Done, Skipped
from tests.integration.email_campaign import (
    DEFAULT_SENDER,
    UNSUBSCRIBE_LINKS,
    MailCampaign,
    RecordingSender,
    claim_elsewhere,
    delivery_of,
)
from tests.integration.reward_campaign import deadline
from tests.ses_events import BEGIN, ses_event, sqs_event

TOO_OLD = Skipped(decisions.TOO_OLD)
KEPT = {
    "EMAIL_MESSAGE_RETENTION_DAYS": "100",
    "EMAIL_EVENT_RETENTION_DAYS": "100",
    "OUTBOX_RETENTION_DAYS": "100",
    "WEBHOOK_ATTEMPT_RETENTION_DAYS": "100",
    "FRAUD_CASE_RETENTION_DAYS": "100",
    "CAMPAIGN_METRIC_RETENTION_DAYS": "100",
}
OLD, YOUNG = timedelta(days=101), timedelta(days=99)
ENOUGH = timedelta(seconds=1_000)


@pytest.fixture
def campaign(connection: Connection) -> MailCampaign:
    # Nothing that analytics has not counted is deleted.
    connection.execute(
        "INSERT INTO campaign_jobs.job_watermarks (job_type, watermark) VALUES ('analytics', now())"
    )
    return MailCampaign(connection)


@pytest.fixture
def kept(database: Database) -> Retention:
    return Retention(database, RetentionSettings.load(KEPT))


@pytest.fixture
def sender() -> RecordingSender:
    return RecordingSender()


@pytest.fixture
def job(database: Database, sender: RecordingSender) -> EmailJob:
    return EmailJob(
        database, sender, pool_size=5, default_sender=DEFAULT_SENDER, unsubscribe_links=UNSUBSCRIBE_LINKS
    )


def asked(
    campaign: MailCampaign, type_: str, user: UUID, age: timedelta, **data: Any
) -> Delivery[EmailEvent]:
    """An event that was asked for so long ago."""
    timestamp = (datetime.now(UTC) - age).isoformat()
    return delivery_of({**campaign.event(type_, user, **data), "timestamp": timestamp})


def age_mails(connection: Connection, age: timedelta) -> None:
    """All that the email job has written happened so much earlier."""
    connection.execute(
        "UPDATE campaign_jobs.email_messages SET created_at = created_at - %(age)s, updated_at = updated_at - %(age)s,"
        " accepted_at = accepted_at - %(age)s, claimed_until = claimed_until - %(age)s",
        {"age": age},
    )


def deleted(kept: Retention) -> dict[str, int]:
    """How many rows of each table go until nothing more does."""
    report = kept.run(deadline(1_000))
    assert report.finished
    again = kept.run(deadline(1_000))
    assert again.finished
    assert sum(again.deleted.values()) == 0
    return {table: number for table, number in report.deleted.items() if number}


def since_then(age: timedelta) -> float:
    """A moment so long ago, as `ses_event` takes it."""
    return (datetime.now(UTC) - age - BEGIN).total_seconds()


def mails(connection: Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT event_id FROM campaign_jobs.email_messages")}


# Mails.


def test_an_old_mail_goes_and_its_event_is_too_old_from_then_on(
    campaign: MailCampaign, connection: Connection, kept: Retention, job: EmailJob, sender: RecordingSender
) -> None:
    user = campaign.add_user()
    old, young = (asked(campaign, "verification", user, age) for age in (OLD, YOUNG))
    assert job.process([old, young], deadline()) == [Done(), Done()]
    age_mails(connection, YOUNG)
    assert deleted(kept) == {}
    connection.execute(
        "UPDATE campaign_jobs.email_messages SET created_at = created_at - interval '2 days',"
        " updated_at = updated_at - interval '2 days' WHERE event_id = %s",
        (old.event.id,),
    )
    assert deleted(kept) == {"email_messages": 1}
    assert mails(connection) == {young.event.id}

    assert job.process([old, young], deadline()) == [TOO_OLD, Done()]
    assert len(sender.accepted) == 2
    assert mails(connection) == {young.event.id}
    # Nor does it get a row by being given up, which a redrive would take for one that may be sent.
    assert job.give_up([(old, "worn out")]) == []
    assert mails(connection) == {young.event.id}
    # Others that are as old as that and have no row were never had, but nobody can tell.
    assert job.process([asked(campaign, "verification", user, YOUNG)], deadline()) == [Done()]
    assert job.process([asked(campaign, "verification", user, OLD)], deadline()) == [TOO_OLD]


def test_before_anything_is_deleted_nothing_is_too_old(
    campaign: MailCampaign, kept: Retention, job: EmailJob
) -> None:
    assert deleted(kept) == {}
    ancient = asked(campaign, "verification", campaign.add_user(), timedelta(days=5_000))
    assert job.process([ancient], deadline()) == [Done()]


@pytest.mark.parametrize("timestamp", [None, "0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z"])
def test_a_mail_whose_event_says_no_time_stays(
    campaign: MailCampaign, connection: Connection, kept: Retention, job: EmailJob, timestamp: str | None
) -> None:
    user = campaign.add_user()
    undated = delivery_of({**campaign.event("verification", user), "timestamp": timestamp})
    assert undated.event.asked_at is None
    dated = asked(campaign, "verification", user, OLD)
    assert job.process([undated, dated], deadline()) == [Done(), Done()]
    age_mails(connection, OLD)
    assert deleted(kept) == {"email_messages": 1}
    assert mails(connection) == {undated.event.id}
    assert job.process([undated], deadline()) == [Done()]
    # A new one is no less welcome for saying no time.
    new = delivery_of({**campaign.event("verification", user), "timestamp": timestamp})
    assert job.process([new], deadline()) == [Done()]


def test_a_mail_whose_event_is_dated_ahead_stays_until_then(
    campaign: MailCampaign, connection: Connection, kept: Retention, job: EmailJob
) -> None:
    ahead = asked(campaign, "verification", campaign.add_user(), -timedelta(days=3))
    assert job.process([ahead], deadline()) == [Done()]
    age_mails(connection, OLD)
    assert deleted(kept) == {}
    connection.execute("UPDATE campaign_jobs.email_messages SET asked_at = asked_at - %s", (OLD * 2,))
    assert deleted(kept) == {"email_messages": 1}


def test_a_mail_that_may_go_only_once_stays(
    campaign: MailCampaign, connection: Connection, kept: Retention, job: EmailJob, sender: RecordingSender
) -> None:
    user = campaign.add_user()
    first = [
        asked(campaign, "welcome", user, OLD),
        asked(campaign, "milestone", user, OLD, milestone=3),
    ]
    second = [
        asked(campaign, "welcome", user, OLD),
        asked(campaign, "milestone", user, OLD, milestone=3),
    ]
    assert job.process(first, deadline()) == [Done(), Done()]
    sent_before = Skipped("it has been sent for another event")
    assert job.process(second, deadline()) == [sent_before, sent_before]
    age_mails(connection, OLD)
    # Of an event that was skipped, nothing needs to stay.
    assert deleted(kept) == {"email_messages": 2}
    assert mails(connection) == {delivery.event.id for delivery in first}
    new = asked(campaign, "welcome", user, timedelta())
    assert job.process([*first, *second, new], deadline()) == [Done(), Done(), TOO_OLD, TOO_OLD, sent_before]
    assert len(sender.accepted) == 2


def test_the_position_that_was_told_last_stays(
    campaign: MailCampaign, connection: Connection, kept: Retention, job: EmailJob
) -> None:
    campaign.set(position_email_cooldown="1 year", position_email_min_delta=5)
    user = campaign.add_user(original_position=900)
    told = []
    for days, position in ((900, 300), (450, 200)):
        campaign.rank(user, position)
        told.append(asked(campaign, "position_update", user, timedelta(days=days)))
        assert job.process(told[-1:], deadline()) == [Done()]
        age_mails(connection, timedelta(days=450))
    assert deleted(kept) == {"email_messages": 1}
    assert mails(connection) == {told[1].event.id}
    campaign.rank(user, 198)
    assert job.process([asked(campaign, "position_update", user, timedelta())], deadline()) == [
        Skipped("the position is not better by the campaign's minimum than the one last told")
    ]
    campaign.rank(user, 195)
    last = asked(campaign, "position_update", user, timedelta())
    assert job.process([last], deadline()) == [Done()]
    # Now there is a later one.
    assert deleted(kept) == {"email_messages": 1}
    assert told[1].event.id not in mails(connection)


def test_a_parked_mail_waits_however_long(
    campaign: MailCampaign, connection: Connection, kept: Retention, job: EmailJob, sender: RecordingSender
) -> None:
    campaign.set(status="paused")
    parked = asked(campaign, "welcome", campaign.add_user(), OLD)
    assert job.process([parked], deadline()) == [Skipped("parked: the campaign is paused")]
    age_mails(connection, OLD)
    connection.execute("UPDATE campaign_jobs.retention SET kept_since = now()")
    assert deleted(kept) == {}
    campaign.set(status="active")
    assert job.process([parked], deadline()) == [Done()]
    assert len(sender.accepted) == 1


@pytest.mark.parametrize("status", ["failed", "claimed"])
def test_a_mail_that_an_event_of_ses_may_prove_stays(
    campaign: MailCampaign, connection: Connection, kept: Retention, job: EmailJob, status: str
) -> None:
    delivery, forgotten = (
        asked(campaign, "verification", campaign.add_user(), OLD) for _ in ("proven", "forgotten")
    )
    for each in (delivery, forgotten):
        claim_elsewhere(connection, each, None)
    connection.execute("UPDATE campaign_jobs.email_messages SET asked_at = now() - %s", (OLD,))
    if status == "failed":
        connection.execute(
            "UPDATE campaign_jobs.email_messages SET status = 'failed', reason = 'no answer', claim_token = NULL,"
            " claimed_until = NULL"
        )
    connection.execute(
        "INSERT INTO campaign_jobs.email_events (tag, ses_message_id, delivery_status, occurred_at, recorded_at)"
        " VALUES (%s, 'message', 'sent', now() - %s, now() - %s)",
        (message_tag(delivery.event.id), OLD, OLD),
    )
    age_mails(connection, OLD)
    assert deleted(kept) == {"email_messages": 1}
    assert mails(connection) == {delivery.event.id}
    assert job.process([delivery], deadline()) == [Done()]
    assert campaign.mail(delivery, "status, ses_message_id") == ("accepted", "message")


def test_a_mail_that_changed_lately_stays(
    campaign: MailCampaign, connection: Connection, kept: Retention, job: EmailJob
) -> None:
    """A dead letter that was redriven, say."""
    delivery = asked(campaign, "verification", campaign.add_user(), OLD)
    job.give_up([(delivery, "worn out")])
    age_mails(connection, OLD)
    job.give_up([(delivery, "worn out again")])
    assert deleted(kept) == {}
    assert job.process([delivery], deadline()) == [Done()]


def test_what_analytics_has_not_counted_stays(
    campaign: MailCampaign, connection: Connection, kept: Retention, job: EmailJob
) -> None:
    delivery = asked(campaign, "verification", campaign.add_user(), OLD * 2)
    assert job.process([delivery], deadline()) == [Done()]
    age_mails(connection, OLD)
    connection.execute("UPDATE campaign_jobs.job_watermarks SET watermark = now() - %s", (OLD,))
    assert deleted(kept) == {}
    connection.execute("DELETE FROM campaign_jobs.job_watermarks")
    assert deleted(kept) == {}
    connection.execute(
        "INSERT INTO campaign_jobs.job_watermarks (job_type, watermark) VALUES ('analytics', now() - %s)",
        (OLD - timedelta(hours=27),),
    )
    assert deleted(kept) == {"email_messages": 1}


def test_a_backfill_of_what_is_kept_in_part_is_refused(
    database: Database, campaign: MailCampaign, connection: Connection, kept: Retention, job: EmailJob
) -> None:
    user = campaign.add_user(created_at=datetime.now(UTC) - OLD * 2)
    once, other = asked(campaign, "welcome", user, OLD), asked(campaign, "verification", user, OLD)
    assert job.process([once, other], deadline()) == [Done(), Done()]
    age_mails(connection, OLD)
    connection.execute("DELETE FROM campaign_jobs.job_watermarks")
    analytics = AnalyticsJob(database)
    assert analytics.run({}).records == 3
    counted = "SELECT sum(emails_sent) FROM campaign_jobs.campaign_metrics"
    # From before the counted hour, so that nothing but what was deleted stands in the way.
    begin, end = ((datetime.now(UTC) - age).isoformat() for age in (OLD + timedelta(days=1), YOUNG))
    backfill = {"backfill": {"from": begin, "to": end}}
    assert analytics.run(backfill).records == 2
    assert deleted(kept) == {"email_messages": 1, "campaign_metrics": 2}
    with pytest.raises(InvalidBackfill, match="because mails of before are kept no longer"):
        analytics.run(backfill)
    analytics.run({})
    assert connection.execute(counted).fetchone() == (None,)


# The other tables.


def outbox_row(campaign: MailCampaign, age: timedelta, *, state: str = "published") -> str:
    event_id = str(uuid.uuid4())
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.outbox (event_id, partition_key, event, created_at, published_at, refused)"
        " VALUES (%(id)s, 'key', '{}', now() - %(age)s, CASE WHEN %(state)s = 'published' THEN now() - %(age)s END,"
        " CASE WHEN %(state)s = 'refused' THEN 'too large' END)",
        {"id": event_id, "age": age, "state": state},
    )
    return event_id


def attempt(campaign: MailCampaign, age: timedelta) -> None:
    endpoint = campaign.add_endpoint("https://example.com/hook")
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.webhook_attempts (user_reward_id, endpoint_id, event_id, attempted_at, duration_ms)"
        " VALUES (%s, %s, 'event', now() - %s, 5)",
        (campaign.earn(campaign.add_reward("webhook", endpoint)), endpoint, age),
    )


def case(campaign: MailCampaign, age: timedelta, *, status: str = "dismissed") -> None:
    decided = status in ("confirmed", "dismissed")
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.fraud_cases (campaign_id, user_id, status, holding, risk_score, evidence,"
        " rules_version, updated_at, decided_at, decision_reason)"
        " VALUES (%(campaign)s, %(user)s, %(status)s, true, 90, '[]', '1', now() - %(age)s,"
        " CASE WHEN %(decided)s THEN now() - %(age)s END, CASE WHEN %(decided)s THEN 'seen' END)",
        {
            "campaign": campaign.id,
            "user": campaign.add_user(),
            "status": status,
            "age": age,
            "decided": decided,
        },
    )


def metric(campaign: MailCampaign, age: timedelta) -> None:
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.campaign_metrics (campaign_id, bucket, new_signups) VALUES (%s, now() - %s, 1)",
        (campaign.id, age),
    )


def ses_report(campaign: MailCampaign, age: timedelta) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.email_messages"
        " (event_id, type, campaign_id, user_id, once_key, status, ses_message_id, accepted_at)"
        " VALUES (%(id)s, 'welcome', %(campaign)s, %(user)s, %(id)s, 'accepted', 'message', now())",
        {"id": delivery.event.id, "campaign": campaign.id, "user": delivery.event.data.user_id},
    )
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.email_events (tag, ses_message_id, delivery_status, occurred_at, recorded_at)"
        " VALUES (%(tag)s, 'message', 'delivered', now() - %(age)s, now() - %(age)s)",
        {"tag": message_tag(delivery.event.id), "age": age},
    )


@pytest.mark.parametrize(
    ("table", "write"),
    [
        ("outbox", outbox_row),
        ("outbox", lambda campaign, age: outbox_row(campaign, age, state="refused")),
        ("webhook_attempts", attempt),
        ("fraud_cases", case),
        ("fraud_cases", lambda campaign, age: case(campaign, age, status="retracted")),
        ("campaign_metrics", metric),
        ("email_events", ses_report),
    ],
    ids=["published", "refused", "attempts", "dismissed", "retracted", "metrics", "events of SES"],
)
def test_each_table_keeps_what_is_young(
    campaign: MailCampaign,
    connection: Connection,
    kept: Retention,
    table: str,
    write: Callable[[MailCampaign, timedelta], object],
) -> None:
    for age in (OLD, YOUNG):
        write(campaign, age)
    assert deleted(kept) == {table: 1}
    assert connection.execute(f"SELECT count(*) FROM campaign_jobs.{table}".encode()).fetchone() == (1,)


@pytest.mark.parametrize("status", ["open", "confirmed"])
def test_a_case_that_holds_stays(campaign: MailCampaign, kept: Retention, status: str) -> None:
    case(campaign, OLD, status=status)
    assert deleted(kept) == {}


def test_a_case_whose_block_is_still_to_be_taken_back_stays(
    campaign: MailCampaign, connection: Connection, kept: Retention
) -> None:
    case(campaign, OLD)
    connection.execute("UPDATE campaign_jobs.fraud_cases SET blocked_from = 'verified'")
    assert deleted(kept) == {}


def test_what_waits_in_the_outbox_stays(campaign: MailCampaign, kept: Retention) -> None:
    outbox_row(campaign, OLD, state="waiting")
    assert deleted(kept) == {}


def test_an_event_of_ses_that_comes_again_after_its_row_is_gone_suppresses_nobody(
    database: Database, campaign: MailCampaign, connection: Connection, kept: Retention, job: EmailJob
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    assert job.process([delivery], deadline()) == [Done()]
    feedback = Feedback(database)
    complaint = ses_event("complaint", message_tag(delivery.event.id), seconds=since_then(OLD))
    feedback.handle(sqs_event(complaint))
    connection.execute("DELETE FROM campaign_jobs.email_suppressions")
    connection.execute("UPDATE campaign_jobs.email_events SET recorded_at = recorded_at - %s", (OLD,))
    assert deleted(kept) == {"email_events": 1}
    feedback.handle(sqs_event(complaint))
    assert connection.execute("SELECT count(*) FROM campaign_jobs.email_suppressions").fetchone() == (0,)
    assert connection.execute("SELECT count(*) FROM campaign_jobs.email_events").fetchone() == (0,)
    feedback.handle(
        sqs_event(ses_event("complaint", message_tag(delivery.event.id), seconds=since_then(timedelta())))
    )
    assert connection.execute("SELECT count(*) FROM campaign_jobs.email_suppressions").fetchone() == (1,)


# Runs.


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


class SlowDatabase(Database):
    """Each transaction takes a second by this clock."""

    clock: Clock

    @contextmanager
    def transaction(self, isolation: IsolationLevel | None = None) -> Iterator[Connection]:
        self.clock.now += 1
        with super().transaction(isolation) as connection:
            yield connection


def test_a_run_ends_in_time_and_the_next_one_goes_on(
    campaign: MailCampaign, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr("campaign_jobs.worker.delivery.time", clock := Clock())
    for hours in range(5):
        outbox_row(campaign, OLD)
        metric(campaign, OLD + timedelta(hours=hours))
    slow = SlowDatabase(database_url)
    slow.clock = clock
    kept = Retention(slow, RetentionSettings.load(KEPT))
    # Room for a batch of each table, and for one more of two; then the invocation or the run is over.
    room = len(TABLES) + 2
    assert not kept.run(deadline(retention.UNTIL_DEADLINE_SECONDS)).finished
    report = kept.run(deadline(retention.UNTIL_DEADLINE_SECONDS + room - 0.5))
    assert not report.finished
    assert (report.deleted["outbox"], report.deleted["campaign_metrics"]) == (4, 4)
    monkeypatch.setattr(retention, "LONGEST_SECONDS", 3)
    assert not kept.run(deadline(1_000)).finished
    monkeypatch.undo()
    assert deleted(kept) == {"campaign_metrics": 1}
    slow.close()


def test_a_look_at_mails_goes_on_after_those_that_stay(
    campaign: MailCampaign,
    connection: Connection,
    kept: Retention,
    job: EmailJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many stay before it, what may go is found."""
    monkeypatch.setattr(retention, "ROWS_AT_ONCE", 2)
    for _ in range(5):
        user = campaign.add_user(original_position=100 + campaign.people)
        campaign.rank(user, 5)
        assert job.process([asked(campaign, "position_update", user, OLD)], deadline()) == [Done()]
    last = asked(campaign, "verification", user, OLD)
    assert job.process([last], deadline()) == [Done()]
    age_mails(connection, OLD)
    found = [kept_batch(kept) for _ in range(4)]
    assert found == [0, 0, 1, 0]
    assert last.event.id not in mails(connection)
    assert len(mails(connection)) == 5


def kept_batch(kept: Retention) -> int:
    """One batch of mails alone, as a run that has no time for more."""
    (item,) = (item for item in TABLES if item.table == "email_messages")
    return kept._delete_batch(item).deleted


def test_what_somebody_has_locked_is_left_for_the_next_run(
    campaign: MailCampaign, connection: Connection, database_url: str, kept: Retention, job: EmailJob
) -> None:
    delivery = asked(campaign, "verification", campaign.add_user(), OLD)
    assert job.process([delivery], deadline()) == [Done()]
    age_mails(connection, OLD)
    outbox_row(campaign, OLD)
    with psycopg.connect(database_url) as other:
        other.execute("SELECT FROM campaign_jobs.email_messages FOR KEY SHARE")
        other.execute("SELECT FROM campaign_jobs.outbox FOR KEY SHARE")
        assert deleted(kept) == {}
    with psycopg.connect(database_url) as other:
        # A backfill that counts.
        other.execute("SELECT FROM campaign_jobs.retention WHERE table_name = 'email_messages' FOR SHARE")
        assert deleted(kept) == {"outbox": 1}
    assert deleted(kept) == {"email_messages": 1}


def test_the_event_s_own_time_survives_a_replay_and_a_queue() -> None:
    event = {
        "id": "1",
        "type": "job.email.welcome",
        "data": {"campaign_id": str(uuid.uuid4()), "user_id": str(uuid.uuid4())},
    }
    now = datetime.now(UTC)
    assert parse(event, recorded_at=now).asked_at is None
    assert parse({**event, "timestamp": None}, recorded_at=now).asked_at is None
    dated = parse({**event, "timestamp": "2026-03-01T12:00:00+02:00"}, recorded_at=now)
    assert dated.asked_at == datetime(2026, 3, 1, 10, tzinfo=UTC)
