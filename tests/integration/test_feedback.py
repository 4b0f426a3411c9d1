"""What SES's events do: statuses, suppressions, and mails that count as accepted because an event proves it."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email.feedback import Feedback
from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.ses import Mail, SendResult, Unknown
from campaign_jobs.email.ses_events import DELIVERY_STATUSES
from campaign_jobs.email.tags import message_tag
from campaign_jobs.errors import DatabaseUnavailable
from campaign_jobs.worker.outcomes import Done, Later, Outcome, Retry, Skipped
from tests.integration.email_campaign import (
    DEFAULT_SENDER,
    UNSUBSCRIBE_LINKS,
    MailCampaign,
    RecordingSender,
    claim_elsewhere,
)
from tests.integration.reward_campaign import deadline
from tests.ses_events import BEGIN, ses_event, sqs_event


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


@pytest.fixture
def feedback(database: Database) -> Feedback:
    return Feedback(database)


def process(job: EmailJob, *deliveries: Any) -> list[Outcome]:
    return list(job.process(deliveries, deadline(100)))


def hear(feedback: Feedback, *events: Any) -> list[str]:
    """Hand over a batch, and return the messages that must come again."""
    answer = feedback.handle(sqs_event(*events))
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def tag_of(delivery: Any) -> str:
    return message_tag(delivery.event.id)


def count(connection: Connection, table: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM campaign_jobs.{table}").fetchone()
    assert row is not None
    return int(row[0])


def suppressions(connection: Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT address, reason FROM campaign_jobs.email_suppressions").fetchall())


def no_answer(sender: RecordingSender) -> Callable[[Mail], SendResult | None]:
    """SES takes the mail, but its answer never comes."""

    def answer(mail: Mail) -> SendResult | None:
        sender.accepted.append(mail)
        return Unknown("no answer from SES: ReadTimeoutError")

    return answer


# Tags.


def test_mail_and_row_carry_the_same_tag(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    sent = campaign.asks("welcome", campaign.add_user(), "Größe 9 \U0001f389")
    skipped = campaign.asks("welcome", campaign.add_user(status="removed"))
    process(job, sent, skipped)
    assert [mail.tags["message"] for mail in sender.accepted] == [tag_of(sent)]
    for delivery in (sent, skipped):
        assert campaign.mail(delivery, "tag") == (tag_of(delivery),)


# Statuses.


def test_the_status_follows_the_events(
    job: EmailJob, feedback: Feedback, campaign: MailCampaign, connection: Connection
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    process(job, delivery)
    assert campaign.mail(delivery, "delivery_status, delivery_status_at") == (None, None)
    for second, (name, status) in enumerate(
        [("sent", "sent"), ("delayed", "delayed"), ("delivered", "delivered"), ("sent", "delivered")]
    ):
        assert hear(feedback, ses_event(name, tag_of(delivery), seconds=second)) == []
        assert campaign.mail(delivery, "delivery_status, status") == (status, "accepted")
    assert campaign.mail(delivery, "delivery_status_at") == (BEGIN + timedelta(seconds=2),)
    assert count(connection, "email_events") == 4


def test_an_event_that_comes_again_is_recorded_once(
    job: EmailJob, feedback: Feedback, campaign: MailCampaign, connection: Connection
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    process(job, delivery)
    event = ses_event("delivered", tag_of(delivery))
    # SES published it again, so that EventBridge gave it another id; and SQS delivered it twice.
    again = {**event, "id": "87654321-0000-0000-0000-000000000000"}
    assert hear(feedback, event, again, event) == hear(feedback, again) == []
    assert count(connection, "email_events") == 1


EVENTS = st.tuples(
    st.sampled_from(
        [
            "sent",
            "delivered",
            "delayed",
            "hard_bounce",
            "soft_bounce",
            "complaint",
            "rejected",
            "rendering_failed",
        ]
    ),
    st.sampled_from(["first", "second"]),
    st.integers(0, 3),
)
STATUS_OF = {"hard_bounce": "bounced", "soft_bounce": "soft_bounced", "complaint": "complained"}


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_and_repetition_of_events_ends_the_same(
    data: st.DataObject,
    job: EmailJob,
    feedback: Feedback,
    campaign: MailCampaign,
    connection: Connection,
) -> None:
    """Also those of two mails under one tag, and across batches."""
    delivery = campaign.asks("verification", campaign.add_user())
    process(job, delivery)
    happened = data.draw(st.lists(EVENTS, min_size=1, max_size=8, unique=True))
    repeated = data.draw(st.lists(st.sampled_from(happened), max_size=4))
    told = data.draw(st.permutations([*happened, *repeated]))
    cut = data.draw(st.integers(0, len(told)))
    for batch in (told[:cut], told[cut:]):
        events = [
            ses_event(name, tag_of(delivery), ses_message_id=mail, seconds=second)
            for name, mail, second in batch
        ]
        assert hear(feedback, *events) == []
    statuses = [(STATUS_OF.get(name, name), second) for name, _, second in happened]
    furthest = max((status for status, _ in statuses), key=DELIVERY_STATUSES.index)  # type: ignore[arg-type]
    first = min(second for status, second in statuses if status == furthest)
    assert campaign.mail(delivery, "delivery_status, delivery_status_at") == (
        furthest,
        BEGIN + timedelta(seconds=first),
    )
    recorded = connection.execute(
        "SELECT count(*) FROM campaign_jobs.email_events WHERE tag = %s", (tag_of(delivery),)
    ).fetchone()
    assert recorded == (len(happened),)


# Suppression.


def test_a_bounce_suppresses_and_the_next_mail_is_skipped(
    job: EmailJob, feedback: Feedback, campaign: MailCampaign, connection: Connection
) -> None:
    user = campaign.add_user(email="Mixed.Case@Example.org")
    first = campaign.asks("verification", user)
    process(job, first)
    hear(feedback, ses_event("hard_bounce", tag_of(first), to="Mixed.Case@Example.org"))
    assert suppressions(connection) == {"mixed.case@example.org": "bounce"}
    assert process(job, campaign.asks("verification", user)) == [Skipped("the address is suppressed: bounce")]


@pytest.mark.parametrize("name", ["soft_bounce", "automatic_answer", "delayed", "rejected", "not_spam"])
def test_what_may_pass_suppresses_nobody(
    name: str, job: EmailJob, feedback: Feedback, campaign: MailCampaign, connection: Connection
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    process(job, delivery)
    hear(feedback, ses_event(name, tag_of(delivery)))
    assert suppressions(connection) == {}


@pytest.mark.parametrize("order", [("hard_bounce", "complaint"), ("complaint", "hard_bounce")])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_complaint_outranks_a_bounce_and_a_person_both(
    order: tuple[str, str],
    at_once: bool,
    job: EmailJob,
    feedback: Feedback,
    campaign: MailCampaign,
    connection: Connection,
) -> None:
    connection.execute(
        "INSERT INTO campaign_jobs.email_suppressions VALUES ('by.hand@example.org', 'manual')"
    )
    delivery = campaign.asks("welcome", campaign.add_user())
    process(job, delivery)
    events = [
        ses_event(name, tag_of(delivery), to=address)
        for name in order
        for address in ("other@example.org", "by.hand@example.org")
    ]
    # Told apart by their mails, as two of the same kind at the same moment are one event.
    for number, event in enumerate(events):
        event["detail"]["mail"]["messageId"] = f"ses-{number}"
    for batch in [events] if at_once else [[event] for event in events]:
        hear(feedback, *batch)
    assert suppressions(connection) == {"other@example.org": "complaint", "by.hand@example.org": "manual"}


def test_a_repeated_event_does_not_bring_a_lifted_suppression_back(
    job: EmailJob, feedback: Feedback, campaign: MailCampaign, connection: Connection
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    process(job, delivery)
    event = ses_event("hard_bounce", tag_of(delivery))
    hear(feedback, event)
    connection.execute("DELETE FROM campaign_jobs.email_suppressions")
    hear(feedback, event)
    assert suppressions(connection) == {}


# What is not ours, what cannot be read, and what is not there.


def test_tags_of_others_are_ignored(feedback: Feedback, connection: Connection) -> None:
    assert (
        hear(feedback, *(ses_event("hard_bounce", tag) for tag in ("0" * 32, "newsletter", "f" * 32))) == []
    )
    assert count(connection, "email_events") == 0
    assert suppressions(connection) == {}


def test_an_unreadable_message_comes_again_and_its_neighbors_are_done(
    job: EmailJob, feedback: Feedback, campaign: MailCampaign, connection: Connection
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(2)]
    process(job, *deliveries)
    first, last = (ses_event("delivered", tag_of(delivery)) for delivery in deliveries)
    assert hear(feedback, first, "not an event", last) == ["m1"]
    assert count(connection, "email_events") == 2


def test_an_event_that_the_database_refuses_comes_again_and_its_neighbors_are_done(
    job: EmailJob, feedback: Feedback, campaign: MailCampaign, connection: Connection
) -> None:
    connection.execute("ALTER TABLE campaign_jobs.email_events ADD CHECK (ses_message_id <> 'refused')")
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(7)]
    process(job, *deliveries)
    events = [
        ses_event("delivered", tag_of(delivery), ses_message_id="refused" if number == 3 else "ses")
        for number, delivery in enumerate(deliveries)
    ]
    assert hear(feedback, *events) == ["m3"]
    assert count(connection, "email_events") == 6


def test_without_the_database_the_whole_batch_comes_again() -> None:
    with pytest.raises(DatabaseUnavailable):
        Feedback(Database("postgresql://127.0.0.1:1/nobody")).handle(sqs_event(ses_event("sent", "0" * 32)))


def test_the_number_of_statements_does_not_grow_with_the_batch(
    job: EmailJob,
    feedback: Feedback,
    campaign: MailCampaign,
    sender: RecordingSender,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reward = campaign.add_reward("email")
    sender.answer = no_answer(sender)
    statements: list[Any] = []
    execute = psycopg.Cursor.execute

    def counted(self: Any, query: Any, *arguments: Any, **named: Any) -> Any:
        statements.append(query)
        return execute(self, query, *arguments, **named)

    counts = []
    for size in (5, 100):
        deliveries = []
        for _ in range(size):
            user = campaign.add_user()
            user_reward = campaign.earn(reward, user)
            deliveries.append(campaign.asks("reward_earned", user, user_reward_id=str(user_reward)))
        process(job, *deliveries)
        campaign.let_claims_expire()
        events = [
            ses_event("hard_bounce", tag_of(delivery), to=f"{number}@example.org")
            for number, delivery in enumerate(deliveries)
        ]
        with monkeypatch.context() as counting:
            counting.setattr(psycopg.Cursor, "execute", counted)
            statements.clear()
            assert hear(feedback, *events) == []
            counts.append(len(statements))
    assert campaign.statuses() == {"accepted": 105}
    assert counts[0] == counts[1] <= 6


# Before our own record, or instead of it.


def test_an_event_before_our_own_record(
    job: EmailJob, feedback: Feedback, campaign: MailCampaign, sender: RecordingSender
) -> None:
    """SES tells of a mail while its answer is on the way to us: our record stands, and what was told remains."""
    delivery = campaign.asks("welcome", campaign.add_user())
    other_connection = Database(campaign.connection.info.dsn)

    def answer(mail: Mail) -> SendResult | None:
        early = ses_event("delivered", mail.tags["message"], to=mail.recipient, ses_message_id="told")
        assert hear(Feedback(other_connection), early) == []
        assert campaign.mail(delivery, "status") == ("claimed",)
        return None

    sender.answer = answer
    assert process(job, delivery) == [Done()]
    other_connection.close()
    assert campaign.mail(delivery, "status, delivery_status") == ("accepted", "delivered")
    assert campaign.mail(delivery, "ses_message_id") != ("told",)


@pytest.mark.parametrize("when", ["during the claim", "after the claim"])
def test_no_answer_but_an_event_is_accepted_and_not_sent_again(
    when: str, job: EmailJob, feedback: Feedback, campaign: MailCampaign, sender: RecordingSender
) -> None:
    reward = campaign.earn(campaign.add_reward("email"), user := campaign.add_user())
    delivery = campaign.asks("reward_earned", user, user_reward_id=str(reward))
    sender.answer = no_answer(sender)
    (outcome,) = process(job, delivery)
    # It comes again once the claim has expired, and not before.
    assert isinstance(outcome, Retry)
    (claimed_until, now) = campaign.mail(delivery, "claimed_until, clock_timestamp()") or ()
    assert outcome.after is not None
    assert outcome.after >= claimed_until - now
    told = ses_event("sent", tag_of(delivery), to=campaign.address(user), ses_message_id="ses-7")
    if when == "during the claim":
        hear(feedback, told)
        # Whoever sent it may still record it.
        assert campaign.mail(delivery, "status, delivery_status") == ("claimed", "sent")
        assert isinstance(process(job, delivery)[0], Later)
        assert campaign.row(reward) == ("earned",)
        campaign.let_claims_expire()
    else:
        campaign.let_claims_expire()
        hear(feedback, told)
        assert campaign.mail(delivery) == ("accepted", None)
    assert process(job, delivery) == [Done()]
    assert campaign.mail(delivery, "status, ses_message_id, accepted_at IS NOT NULL") == (
        "accepted",
        "ses-7",
        True,
    )
    assert campaign.row(reward, "status, delivered_at IS NOT NULL") == ("delivered", True)
    # Its once-key is used up.
    again = campaign.asks("reward_earned", user, user_reward_id=str(reward))
    assert process(job, again) == [Skipped("it has been sent for another event")]
    assert len(sender.accepted) == 1


def test_an_event_that_came_during_the_claim_is_found_by_the_mail_itself(
    job: EmailJob, feedback: Feedback, campaign: MailCampaign, sender: RecordingSender
) -> None:
    """Also where no once-key leads to it."""
    delivery = campaign.asks("verification", campaign.add_user())
    sender.answer = no_answer(sender)
    process(job, delivery)
    hear(feedback, ses_event("sent", tag_of(delivery)))
    campaign.let_claims_expire()
    assert process(job, delivery) == [Done()]
    assert len(sender.accepted) == 1


def test_no_answer_and_no_event_is_sent_again_after_the_claim(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    sender.answer = no_answer(sender)
    assert isinstance(process(job, delivery)[0], Retry)
    sender.answer = lambda mail: None
    assert isinstance(process(job, delivery)[0], Later)
    assert len(sender.accepted) == 1
    campaign.let_claims_expire()
    assert process(job, delivery) == [Done()]
    assert len(sender.accepted) == 2


def test_events_of_the_first_mail_leave_the_record_of_the_second_alone(
    job: EmailJob, feedback: Feedback, campaign: MailCampaign, sender: RecordingSender
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    sender.answer = no_answer(sender)
    process(job, delivery)
    campaign.let_claims_expire()
    sender.answer = lambda mail: None
    assert process(job, delivery) == [Done()]
    recorded = campaign.mail(delivery, "status, ses_message_id, accepted_at, position")
    hear(feedback, ses_event("sent", tag_of(delivery), ses_message_id="first"))
    assert campaign.mail(delivery, "status, ses_message_id, accepted_at, position") == recorded
    assert campaign.mail(delivery, "delivery_status") == ("sent",)


@pytest.mark.parametrize("told_first", [True, False])
def test_a_mail_that_was_given_up_counts_once_an_event_proves_it(
    told_first: bool, job: EmailJob, feedback: Feedback, campaign: MailCampaign, sender: RecordingSender
) -> None:
    reward = campaign.earn(campaign.add_reward("email"), user := campaign.add_user())
    delivery = campaign.asks("reward_earned", user, user_reward_id=str(reward))
    sender.answer = no_answer(sender)
    process(job, delivery)
    told = ses_event("delivered", tag_of(delivery))
    if told_first:
        hear(feedback, told)
    job.give_up([(delivery, "no answer from SES")])
    if not told_first:
        assert campaign.mail(delivery, "status") == ("failed",)
        assert campaign.row(reward) == ("failed",)
        hear(feedback, told)
    assert campaign.mail(delivery) == ("accepted", None)
    assert campaign.row(reward) == ("delivered",)


def test_a_position_update_that_an_event_proves_has_told_its_position(
    job: EmailJob, feedback: Feedback, campaign: MailCampaign, sender: RecordingSender
) -> None:
    user = campaign.add_user(original_position=100)
    campaign.set(position_email_min_delta=5)
    campaign.rank(user, 50)
    sender.answer = no_answer(sender)
    first = campaign.asks("position_update", user)
    process(job, first)
    hear(feedback, ses_event("sent", tag_of(first)))
    campaign.let_claims_expire()
    sender.answer = lambda mail: None
    campaign.rank(user, 48)
    # Loaded for another event, the expired claim in its way is found to be a mail that went out.
    (outcome,) = process(job, campaign.asks("position_update", user))
    assert isinstance(outcome, Skipped)
    assert campaign.mail(first, "status, position") == ("accepted", 50)
    assert len(sender.accepted) == 1


def test_a_rivals_expired_claim_that_an_event_proves_uses_up_the_once_key(
    job: EmailJob, feedback: Feedback, campaign: MailCampaign, sender: RecordingSender
) -> None:
    user = campaign.add_user()
    first, second = campaign.asks("welcome", user), campaign.asks("welcome", user)
    sender.answer = no_answer(sender)
    process(job, first)
    hear(feedback, ses_event("sent", tag_of(first)))
    campaign.let_claims_expire()
    assert process(job, second) == [Skipped("it has been sent for another event")]
    assert campaign.mail(first) == ("accepted", None)
    assert len(sender.accepted) == 1


def test_an_event_does_not_use_up_a_once_key_that_another_mail_has(
    job: EmailJob, feedback: Feedback, campaign: MailCampaign, sender: RecordingSender, connection: Connection
) -> None:
    user = campaign.add_user()
    first, second = campaign.asks("welcome", user), campaign.asks("welcome", user)
    sender.answer = no_answer(sender)
    process(job, first)
    campaign.let_claims_expire()
    # Taken over by another event before the news of the first mail comes.
    sender.answer = lambda mail: None
    assert process(job, second) == [Done()]
    assert campaign.mail(first, "status") == ("released",)
    assert hear(feedback, ses_event("sent", tag_of(first))) == []
    assert campaign.mail(first, "status, delivery_status") == ("released", "sent")
    assert campaign.mail(second, "status") == ("accepted",)
    assert process(job, first) == [Skipped("it has been sent for another event")]


def test_a_live_claim_of_another_invocation_is_left_alone(
    feedback: Feedback, campaign: MailCampaign, connection: Connection
) -> None:
    delivery = campaign.asks("welcome", user := campaign.add_user())
    claim_elsewhere(connection, delivery, f"welcome:{user}")
    hear(feedback, ses_event("complaint", tag_of(delivery), to=campaign.address(user)))
    assert campaign.mail(delivery, "status, delivery_status") == ("claimed", "complained")
    assert suppressions(connection) == {campaign.address(user): "complaint"}


def test_a_parked_mail_that_had_gone_out_is_not_emitted_again(
    job: EmailJob, feedback: Feedback, campaign: MailCampaign, sender: RecordingSender
) -> None:
    delivery = campaign.asks("verification", campaign.add_user())
    sender.answer = no_answer(sender)
    process(job, delivery)
    campaign.let_claims_expire()
    campaign.set(status="paused")
    assert process(job, delivery) == [Skipped("parked: the campaign is paused")]
    hear(feedback, ses_event("delivered", tag_of(delivery)))
    assert campaign.mail(delivery, "status, parked_event") == ("accepted", None)


def test_no_address_is_kept_with_an_event(
    job: EmailJob, feedback: Feedback, campaign: MailCampaign, connection: Connection
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    process(job, delivery)
    hear(feedback, ses_event("hard_bounce", tag_of(delivery), to="secret.person@example.org"))
    rows = connection.execute("SELECT to_jsonb(email_events) FROM campaign_jobs.email_events").fetchall()
    assert "secret" not in json.dumps([row[0] for row in rows])
