"""An erased person is nowhere to be found any more, and what was counted is counted as before."""

import json
import uuid
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest

from campaign_jobs import outbox
from campaign_jobs.analytics.job import AnalyticsJob
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email.feedback import Feedback
from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.store import release_parked
from campaign_jobs.email.tags import message_tag
from campaign_jobs.erasing import Erasure, UnknownUser, erase
from campaign_jobs.events import (
    EmailEvent,
    EmailJobPayload,
    Payload,
    PositionRecalcJobPayload,
    RewardDeliveryJobPayload,
    as_json,
    new_event,
)
from campaign_jobs.fraud import cases
from campaign_jobs.fraud.job import FraudJob
from campaign_jobs.position.run import recalculate
from campaign_jobs.reward.job import RewardJob
from campaign_jobs.reward.webhooks.client import HttpsWebhookClient
from campaign_jobs.worker.delivery import Delivery
from campaign_jobs.worker.outcomes import Done, Outcome, Skipped
from tests.integration import reward_campaign
from tests.integration.email_campaign import DEFAULT_SENDER, UNSUBSCRIBE_LINKS, MailCampaign, RecordingSender
from tests.integration.fraud_campaign import Campaign as WatchedCampaign
from tests.integration.fraud_campaign import case_of, open_cases, signals
from tests.integration.reward_campaign import deadline
from tests.ses_events import ses_event, sqs_event

ADDRESS = "Grace.Confidential@mailinator.com"
PERSONAL = {
    "email": ADDRESS,
    "first_name": "Confidential",
    "referral_code": "confidential-code",
    "verification_token": "confidential-token",
    "ip": "203.0.113.77",
    "user_agent": "curl/8.0 confidential",
    "device_fingerprint": "confidential-device",
    "marketing_consent_at": "2026-03-01T12:00:00Z",
}
TRACES = ("confidential", "203.0.113.77", "mailinator")
REMOVED = Skipped("the user is removed")

TABLES = """
SELECT relname FROM pg_class WHERE relnamespace = 'campaign_jobs'::regnamespace AND relkind = 'r' ORDER BY relname
"""


@pytest.fixture
def campaign(connection: Connection) -> MailCampaign:
    return MailCampaign(connection)


@pytest.fixture
def sender() -> RecordingSender:
    return RecordingSender()


@pytest.fixture
def job(database: Database, sender: RecordingSender) -> EmailJob:
    return EmailJob(
        database, sender, pool_size=5, default_sender=DEFAULT_SENDER, unsubscribe_links=UNSUBSCRIBE_LINKS
    )


def rows(connection: Connection) -> list[str]:
    """Every row of every table."""
    found = []
    for (table,) in connection.execute(TABLES.encode()).fetchall():
        query = f"SELECT to_jsonb(row)::text FROM campaign_jobs.{table} AS row"
        found += [f"{table} {row[0]}" for row in connection.execute(query.encode()).fetchall()]
    return sorted(found)


def traces(connection: Connection) -> list[str]:
    return [row for row in rows(connection) if any(trace in row.lower() for trace in TRACES)]


def process(job: EmailJob, *deliveries: Delivery[EmailEvent]) -> Sequence[Outcome]:
    return job.process(deliveries, deadline())


@pytest.fixture
def person(database: Database, campaign: MailCampaign, connection: Connection, job: EmailJob) -> UUID:
    """Somebody of whom there is something everywhere."""
    person = campaign.add_user()
    campaign.change_user(person, **PERSONAL)
    assert process(job, campaign.asks("verification", person)) == [Done()]
    campaign.change_user(person, verified_at="2026-03-01T12:00:00Z")
    campaign.change_user(person, status="verified")
    welcome = campaign.asks("welcome", person, template_data={"name": "Confidential"})
    assert process(job, welcome) == [Done()]
    campaign.set(status="paused")
    parked = campaign.asks("milestone", person, milestone=3, template_data={"name": "Confidential"})
    assert isinstance(process(job, parked)[0], Skipped)
    Feedback(database).handle(
        sqs_event(ses_event("complaint", message_tag(welcome.event.id), to=ADDRESS.upper()))
    )
    # A case that was dismissed, and one that is open by new evidence.
    FraudJob(database).run({})
    with database.transaction() as own:
        cases.dismiss(own, case_of(connection, person), reason="Confidential called us")
    campaign.change_user(person, user_agent="python-requests/2.0 confidential")
    FraudJob(database).run({})
    assert len(open_cases(connection)) == 1
    waiting, published = (
        campaign.asks("verification", person, template_data={"name": "Confidential"}).event for _ in range(2)
    )
    outbox.enqueue(connection, [published])
    campaign.publish_all()
    outbox.enqueue(connection, [waiting])
    reward = campaign.earn(campaign.add_reward("manual"), person)
    connection.execute(
        "UPDATE campaign_jobs.user_rewards SET data = %s WHERE id = %s",
        (json.dumps({"ship_to": "Confidential Street 1"}), reward),
    )
    return person


def test_everything_goes_and_a_dry_run_says_what(
    database: Database, connection: Connection, person: UUID
) -> None:
    before = rows(connection)
    found = {row.split(" ")[0] for row in traces(connection)}
    assert found == {
        "email_messages",
        "email_suppressions",
        "fraud_cases",
        "fraud_dismissals",
        "fraud_signals",
        "outbox",
        "user_rewards",
        "waitlist_users",
    }
    would = erase(database, person, dry_run=True)
    assert rows(connection) == before
    assert erase(database, person) == would
    assert would == Erasure(
        user=1,
        cases=2,
        signals=2,
        dismissals=2,
        parked_mails=1,
        outbox_events=2,
        rewards=1,
        suppressions=1,
    )
    assert traces(connection) == []
    # The parked one was written in full, and what waits is still an event.
    assert connection.execute(
        "SELECT status, deleted_at IS NOT NULL, email FROM campaign_jobs.waitlist_users WHERE id = %s",
        (person,),
    ).fetchone() == ("removed", True, f"{person}@erased.invalid")

    after = rows(connection)
    assert erase(database, person).is_nothing
    assert rows(connection) == after
    # Nor does a fraud run bring something back.
    FraudJob(database).run({})
    assert traces(connection) == []
    assert signals(connection) == []


@pytest.mark.parametrize("key", ["the person", "the person in capitals", "the campaign"])
def test_whatever_a_service_has_put_into_its_events_goes(
    database: Database, campaign: MailCampaign, connection: Connection, key: str
) -> None:
    person, other = campaign.add_user(), campaign.add_user()
    keys = {"the person": str(person), "the person in capitals": str(person).upper()}
    for user in (person, other):
        event = campaign.event("welcome", user, template_data={"name": "Confidential"}, email=ADDRESS)
        connection.execute(
            "INSERT INTO campaign_jobs.outbox (event_id, partition_key, event) VALUES (%s, %s, %s)",
            (
                event["id"],
                keys.get(key, str(campaign.id)) if user == person else str(user),
                json.dumps({**event, "trace": {"who": "Confidential"}}),
            ),
        )
    assert erase(database, person).outbox_events == 1
    (left,) = traces(connection)
    assert left.startswith("outbox") and str(other) in left
    assert erase(database, person).is_nothing


@pytest.mark.parametrize(
    "payload",
    [
        EmailJobPayload(
            type="milestone", campaign_id=UUID(int=1), user_id=UUID(int=2), milestone=3, priority=1
        ),
        PositionRecalcJobPayload(campaign_id=UUID(int=1), points_per_referral=5),
        RewardDeliveryJobPayload(user_reward_id=UUID(int=3)),
    ],
    ids=["mail", "recalculation", "reward"],
)
def test_an_event_asks_for_the_same_job_as_before(
    database: Database, campaign: MailCampaign, connection: Connection, payload: Payload
) -> None:
    person, event = campaign.add_user(), new_event(payload)
    connection.execute(
        "INSERT INTO campaign_jobs.outbox (event_id, partition_key, event) VALUES (%s, %s, %s)",
        (event.id, person, json.dumps({**as_json(event), "who": "Confidential"})),
    )
    assert erase(database, person).outbox_events == 1
    row = connection.execute("SELECT event FROM campaign_jobs.outbox").fetchone()
    assert row == (as_json(event),)


@pytest.mark.parametrize("event", [{}, {"data": None}, {"data": ["Confidential"]}, {"name": "Confidential"}])
def test_what_is_no_event_is_emptied_as_well(
    database: Database, campaign: MailCampaign, connection: Connection, event: dict[str, Any]
) -> None:
    person = campaign.add_user()
    connection.execute(
        "INSERT INTO campaign_jobs.outbox (event_id, partition_key, event) VALUES ('an event', %s, %s)",
        (person, json.dumps(event)),
    )
    erase(database, person)
    assert traces(connection) == []
    assert erase(database, person).is_nothing


def test_somebody_who_is_not_there_is_an_error(database: Database) -> None:
    unknown = uuid.uuid4()
    with pytest.raises(UnknownUser, match=f"there is no user {unknown}"):
        erase(database, unknown)


def test_others_stay_as_they_are(database: Database, campaign: MailCampaign, connection: Connection) -> None:
    others = [campaign.add_user(first_name="Confidential") for _ in range(2)]
    before = rows(connection)
    erase(database, campaign.add_user())
    kept = [row for row in rows(connection) if any(str(other) in row for other in others)]
    assert kept == [row for row in before if any(str(other) in row for other in others)]
    assert len(kept) == 2


# What was counted.


def test_counts_and_the_others_credit_stay(
    database: Database, connection: Connection, job: EmailJob, person: UUID, campaign: MailCampaign
) -> None:
    referrer, referred = campaign.add_user(), campaign.add_user()
    for one, other in ((referrer, person), (person, referred)):
        connection.execute(
            "INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id, status, verified_at)"
            " VALUES (%s, %s, %s, %s, 'verified', now())",
            (uuid.uuid4(), campaign.id, one, other),
        )
    metrics = (
        "SELECT sum(new_signups), sum(email_verifications), sum(referrals), sum(emails_sent)"
        " FROM campaign_jobs.campaign_metrics"
    )
    AnalyticsJob(database).run({})
    counted = connection.execute(metrics).fetchone()
    assert counted == (3, 1, 2, 2)
    erase(database, person)
    connection.execute("DELETE FROM campaign_jobs.job_watermarks WHERE job_type = 'analytics'")
    AnalyticsJob(database).run({})
    assert connection.execute(metrics).fetchone() == counted

    # The request that the erasure has left is enough.
    assert recalculate(database, campaign.id) is not None
    ranked = connection.execute(
        "SELECT user_id, position, verified_referrals FROM campaign_jobs.user_positions ORDER BY position"
    ).fetchall()
    assert ranked == [(referrer, 1, 1), (referred, 2, 0)]


def test_who_was_confirmed_to_cheat_gives_no_credit_afterwards(
    database: Database, connection: Connection, person: UUID, campaign: MailCampaign
) -> None:
    referrer = campaign.add_user()
    connection.execute(
        "INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id, status, verified_at)"
        " VALUES (%s, %s, %s, %s, 'verified', now())",
        (uuid.uuid4(), campaign.id, referrer, person),
    )
    with database.transaction() as own:
        cases.confirm(own, case_of(connection, person), reason="Confidential admitted it")
    erase(database, person)
    assert traces(connection) == []
    assert connection.execute("SELECT user_id FROM campaign_jobs.held_users").fetchall() == [(person,)]
    recalculate(database, campaign.id)
    assert connection.execute(
        "SELECT user_id, verified_referrals FROM campaign_jobs.user_positions"
    ).fetchall() == [(referrer, 0)]


@pytest.mark.parametrize("erased", range(4))
def test_after_an_erasure_a_run_over_what_changed_finds_what_a_full_one_does(
    database: Database, connection: Connection, erased: int
) -> None:
    """Four share an address, a device and a mailbox, each the one referred by the one before: one fewer is too few."""
    campaign = WatchedCampaign(connection, policy={"preset": "normal"})
    users = [
        campaign.user(ip="203.0.113.7", device="a device", email=f"one+{number}@example.org")
        for number in range(4)
    ]
    for referrer, referred in pairwise(users):
        campaign.refer(referrer, referred)
    FraudJob(database).run({})
    before = signals(connection)
    with connection.transaction():
        # Long ago, so that the next run looks at none of them but for the erasure.
        connection.execute("SET LOCAL session_replication_role = replica")
        for table in ("waitlist_users", "referrals"):
            connection.execute(
                f"UPDATE campaign_jobs.{table} SET touched_at = touched_at - interval '1 day'".encode()
            )
    erase(database, users[erased])
    assert not FraudJob(database).run({}).full
    incremental = signals(connection), open_cases(connection)
    assert incremental[0] != before
    assert users[erased] not in {signal[0] for signal in incremental[0]}
    connection.execute("DELETE FROM campaign_jobs.job_watermarks")
    assert FraudJob(database).run({}).full
    assert (signals(connection), open_cases(connection)) == incremental


# What is still on its way.


@pytest.mark.parametrize(
    "type_", ["verification", "welcome", "position_update", "milestone", "reward_earned"]
)
@pytest.mark.parametrize("attempts_spent", [0, 3], ids=["from Kafka", "from the retry queue"])
def test_mail_that_is_still_on_its_way_is_skipped(
    database: Database,
    campaign: MailCampaign,
    job: EmailJob,
    sender: RecordingSender,
    type_: str,
    attempts_spent: int,
) -> None:
    user = campaign.add_user(original_position=50)
    campaign.rank(user, 5)
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    data = {"reward_earned": {"user_reward_id": str(user_reward)}, "milestone": {"milestone": 3}}
    delivery = campaign.asks(type_, user, **data.get(type_, {}))._replace(attempts_spent=attempts_spent)
    if attempts_spent:
        job.give_up([(delivery, "worn out")])
    erase(database, user)
    assert process(job, delivery) == [REMOVED]
    assert sender.accepted == []
    assert campaign.mail(delivery) == ("skipped", "the user is removed")


def test_parked_mail_comes_back_and_is_skipped(
    database: Database, connection: Connection, job: EmailJob, person: UUID, campaign: MailCampaign
) -> None:
    erase(database, person)
    campaign.publish_all()
    campaign.set(status="active")
    assert release_parked(connection, limit=10) == 1
    (event,) = campaign.emitted()
    assert event["type"] == "job.email.milestone"
    assert "template_data" not in event["data"]
    assert process(job, campaign.asks("milestone", person, event["id"], milestone=3)) == [REMOVED]


def test_what_waits_in_the_outbox_is_skipped(
    database: Database, job: EmailJob, person: UUID, campaign: MailCampaign
) -> None:
    erase(database, person)
    (event,) = campaign.emitted()
    assert process(job, campaign.asks("verification", person, event["id"])) == [REMOVED]


@pytest.mark.parametrize("method", ["email", "webhook", "manual"])
def test_a_reward_that_is_still_on_its_way_is_skipped(
    database: Database, campaign: MailCampaign, method: str
) -> None:
    endpoint = campaign.add_endpoint("https://hooks.example.com") if method == "webhook" else None
    user_reward = campaign.earn(campaign.add_reward(method, endpoint))
    erase(database, campaign.row(user_reward, "user_id")[0])
    rewards = RewardJob(database, HttpsWebhookClient(), pool_size=1)
    assert rewards.process([reward_campaign.delivery_of(user_reward)], deadline()) == [REMOVED]
    assert campaign.row(user_reward, "status, data") == ("earned", {})


# Suppressed addresses.


def suppressed(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute("SELECT address, reason FROM campaign_jobs.email_suppressions").fetchall()


def test_who_complained_is_not_written_to_after_signing_up_again(
    database: Database,
    connection: Connection,
    job: EmailJob,
    sender: RecordingSender,
    person: UUID,
    campaign: MailCampaign,
) -> None:
    erase(database, person)
    ((hidden, reason),) = suppressed(connection)
    assert hidden.startswith("sha256:") and reason == "complaint"
    campaign.set(status="active")
    sender.accepted.clear()
    again = campaign.add_user(email=ADDRESS.upper())
    assert process(job, campaign.asks("verification", again)) == [
        Skipped("the address is suppressed: complaint")
    ]
    # And once more, suppressed anew meanwhile.
    connection.execute(
        "INSERT INTO campaign_jobs.email_suppressions (address, reason) VALUES (%s, 'bounce')",
        (ADDRESS.lower(),),
    )
    assert erase(database, again).suppressions == 1
    assert suppressed(connection) == [(hidden, "complaint")]


def test_what_ses_reports_afterwards_writes_no_address_down(
    database: Database, connection: Connection, campaign: MailCampaign, job: EmailJob
) -> None:
    user, other = campaign.add_user(email=ADDRESS), campaign.add_user()
    mails = [campaign.asks("welcome", each) for each in (user, other)]
    assert process(job, *mails) == [Done(), Done()]
    erase(database, user)
    Feedback(database).handle(
        sqs_event(
            ses_event("hard_bounce", message_tag(mails[0].event.id), to=ADDRESS),
            ses_event("hard_bounce", message_tag(mails[1].event.id), to=campaign.address(other)),
        )
    )
    assert traces(connection) == []
    addresses = {address for address, _ in suppressed(connection)}
    assert campaign.address(other) in addresses
    assert len(addresses) == 2
    again = campaign.add_user(email=ADDRESS)
    assert process(job, campaign.asks("verification", again)) == [
        Skipped("the address is suppressed: bounce")
    ]
