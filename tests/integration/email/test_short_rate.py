"""What the email job does where the account's rate leaves no room."""

import threading
from datetime import timedelta

import psycopg
import pytest

from campaign_jobs.database.connection import Database
from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.sending import POOLFUL_SECONDS
from campaign_jobs.email.ses import Failed, Mail, Refused, SendResult
from campaign_jobs.errors import RateExhausted, RateUnknown, SendingStopped
from campaign_jobs.worker.outcomes import Done, Later, Rejected, Retry
from tests.integration.email.jobs import job_of, process
from tests.integration.email_campaign import MailCampaign, RecordingSender


def test_what_the_rate_leaves_no_room_for_fails_the_batch_and_spends_nothing(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    sender.rate = 4
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(30)]
    with pytest.raises(RateExhausted):
        process(job, *deliveries, seconds=POOLFUL_SECONDS + 3)
    sent = len(sender.accepted)
    assert 1 <= sent < 30
    assert campaign.statuses() == {"accepted": sent, "released": 30 - sent}
    campaign.connection.execute("UPDATE campaign_jobs.send_tokens SET rate = 1000000")
    assert process(job, *deliveries) == [Done()] * 30
    assert set(sender.sent.values()) == {1}


SHORT_RATE_SECONDS = POOLFUL_SECONDS + 30
"""Of an invocation that has no time to wait for a token of `give_two_tokens`."""


def give_two_tokens(campaign: MailCampaign, tokens: int = 2) -> None:
    """And no more for fifty seconds."""
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.send_tokens (name, rate, tokens, looked_up_at) VALUES ('ses', 0.02, %(n)s, now())"
        " ON CONFLICT (name) DO UPDATE SET rate = 0.02, tokens = %(n)s, refilled_at = clock_timestamp()",
        {"n": tokens},
    )


def test_mails_that_ses_refuses_do_not_use_up_a_short_rate_for_ever(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(7)]
    # More than there are tokens for, and they come first.
    addresses = [campaign.address(delivery.event.data.user_id) for delivery in deliveries]
    refused = addresses[:4]
    asked: list[str] = []

    def refuse(mail: Mail) -> SendResult | None:
        asked.append(mail.recipient)
        return Refused("SES refused it") if mail.recipient in refused else None

    sender.answer = refuse
    # As long as there is mail that was never tried, Kafka keeps the batch.
    for _ in range(3):
        give_two_tokens(campaign)
        with pytest.raises(RateExhausted):
            process(job, *deliveries, seconds=SHORT_RATE_SECONDS)
    assert asked == [*refused, *addresses[4:6]]
    give_two_tokens(campaign)
    outcomes = process(job, *deliveries, seconds=SHORT_RATE_SECONDS)
    assert asked[6:] == [addresses[6], refused[0]]
    assert outcomes[4:] == [Done()] * 3
    # What was refused before and got no token this time is handed on: each alone, it ends there.
    assert outcomes[0] == Rejected("SES refused it")
    assert outcomes[1:4] == [Later("no time was left in this invocation", timedelta())] * 3
    assert campaign.statuses() == {"accepted": 3, "failed": 4}


def test_a_mail_that_failed_before_waits_for_the_rate_as_any_other_when_nothing_is_lost(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    sender.answer = lambda mail: Failed("SES failed: 500")
    assert process(job, delivery) == [Retry("SES failed: 500")]
    give_two_tokens(campaign, 0)
    with pytest.raises(RateExhausted):
        process(job, delivery, seconds=SHORT_RATE_SECONDS)
    assert campaign.statuses() == {"failed": 1}


def test_what_was_accepted_and_cannot_be_recorded_is_told_however_short_the_rate(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(8)]
    campaign.connection.execute(
        psycopg.sql.SQL(
            "ALTER TABLE campaign_jobs.email_messages ADD CHECK (event_id <> {} OR status <> 'accepted')"
        ).format(deliveries[0].event.id)
    )
    give_two_tokens(campaign)
    outcomes = process(job, *deliveries, seconds=SHORT_RATE_SECONDS)
    # Kept by Kafka, it would be sent again when its claim has run out.
    assert isinstance(outcomes[0], Rejected)
    assert set(sender.sent.values()) == {1}
    assert Later("no time was left in this invocation", timedelta()) in outcomes


def test_a_bucket_that_somebody_keeps_locked_stops_the_batch_and_leaves_no_claim(
    database_url: str, campaign: MailCampaign, sender: RecordingSender
) -> None:
    # Such a function's statements wait half a second for a lock.
    impatient = Database(database_url, timeout_seconds=12)
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(25)]
    with psycopg.connect(database_url) as holder:
        holding = threading.Lock()

        def lock_the_bucket(_: Mail) -> None:
            with holding:
                holder.execute("SELECT FROM campaign_jobs.send_tokens FOR UPDATE")

        sender.answer = lock_the_bucket
        with pytest.raises(SendingStopped, match="its row is locked"):
            process(job_of(impatient, sender), *deliveries)
        assert campaign.statuses() == {"accepted": 10, "released": 15}
        # The next one is stopped before it claims anything.
        with pytest.raises(SendingStopped, match="its row is locked"):
            process(job_of(impatient, sender), *deliveries)
        assert campaign.statuses() == {"accepted": 10, "released": 15}
        holder.rollback()
    sender.answer = lambda mail: None
    assert process(job_of(impatient, sender), *deliveries) == [Done()] * 25
    assert set(sender.sent.values()) == {1}
    impatient.close()


def test_in_a_mixed_batch_bulk_mail_comes_last(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [
        campaign.asks(type_, campaign.add_user(), **data)
        for type_, data in (("milestone", {"milestone": 5}), ("verification", {}))
        for _ in range(12)
    ]
    assert process(job, *deliveries) == [Done()] * 24
    assert [mail.tags["type"] for mail in sender.accepted] == ["verification"] * 12 + ["milestone"] * 12


@pytest.mark.parametrize("why", ["paused", "no rate", "never told"])
def test_an_account_that_may_not_send_claims_nothing(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    def refuse() -> float:
        raise RateUnknown("SES refused GetAccount") if why == "never told" else SendingStopped(why)

    delivery = campaign.asks("welcome", campaign.add_user())
    if why != "never told":
        # A rate that was learned before does not hide that the account may not send now.
        campaign.connection.execute("INSERT INTO campaign_jobs.send_tokens (name, rate) VALUES ('ses', 1000)")
    with monkeypatch.context() as patch:
        patch.setattr(sender, "max_send_rate", refuse)
        for _ in range(2):
            with pytest.raises(SendingStopped):
                process(job, delivery)
    assert campaign.statuses() == {}
    # As soon as it may, the next one goes.
    assert process(job, delivery) == [Done()]
