"""What the email job makes of what SES answers."""

from datetime import timedelta

import psycopg
import pytest

from campaign_jobs.database.connection import Database
from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.sending import POOLFUL_SECONDS
from campaign_jobs.email.ses import Failed, Mail, Refused, Throttled, Unknown, Unreached
from campaign_jobs.errors import RateExhausted, SendingStopped
from campaign_jobs.worker.outcomes import Done, Rejected, Retry
from tests.integration.email.jobs import OTHERS_CLAIM, POOL_SIZE, is_later, job_of, process
from tests.integration.email_campaign import MailCampaign, RecordingSender, claim_elsewhere


def test_throttled_mail_goes_before_the_others_when_the_pause_is_over(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(25)]
    addresses = [campaign.address(delivery.event.data.user_id) for delivery in deliveries]
    throttles = iter([Throttled(), Throttled()])
    sender.answer = lambda mail: next(throttles, None) if mail.recipient in addresses[:2] else None
    assert process(job, *deliveries) == [Done()] * 25
    assert set(sender.sent.values()) == {1}
    order = [mail.recipient for mail in sender.accepted]
    assert set(order[:8]) == set(addresses[2:10])
    assert set(order[8:18]) == {*addresses[:2], *addresses[10:18]}


def test_throttles_without_end_spend_nothing(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(12)]
    asked: list[Mail] = []

    def too_much(mail: Mail) -> Throttled:
        asked.append(mail)
        return Throttled()

    sender.answer = too_much
    # After pauses of one and two seconds, one of four does not fit any more.
    with pytest.raises(RateExhausted):
        process(job, *deliveries, seconds=POOLFUL_SECONDS + 6)
    assert len(asked) == 3 * POOL_SIZE
    assert campaign.statuses() == {"released": 12}
    sender.answer = lambda mail: None
    assert process(job, *deliveries) == [Done()] * 12
    assert set(sender.sent.values()) == {1}


def test_a_stop_fails_the_batch_records_what_went_and_releases_the_rest(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(25)]
    last = campaign.address(deliveries[14].event.data.user_id)

    def stop(mail: Mail) -> None:
        if mail.recipient == last:
            raise SendingStopped("SES does not send for this account: SendingPausedException")

    sender.answer = stop
    with pytest.raises(SendingStopped):
        process(job, *deliveries)
    assert len(sender.accepted) == 19
    assert campaign.statuses() == {"accepted": 19, "released": 6}
    sender.answer = lambda mail: None
    assert process(job, *deliveries) == [Done()] * 25
    assert set(sender.sent.values()) == {1}


@pytest.mark.parametrize("size", [1, 12])
def test_where_ses_cannot_be_reached_the_batch_waits_and_spends_nothing(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, size: int
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(size)]
    sender.answer = lambda mail: Unreached("SES was not reached: ConnectTimeoutError")
    with pytest.raises(SendingStopped, match="SES is not reached"):
        process(job, *deliveries)
    assert campaign.statuses() == {"released": size}
    sender.answer = lambda mail: None
    assert process(job, *deliveries) == [Done()] * size
    assert set(sender.sent.values()) == {1}


def test_one_mail_that_does_not_reach_ses_where_others_do_is_retried(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(3)]
    address = campaign.address(deliveries[1].event.data.user_id)
    sender.answer = lambda mail: Unreached("not reached") if mail.recipient == address else None
    assert process(job, *deliveries) == [Done(), Retry("not reached"), Done()]


def test_mails_that_ses_fails_spend_their_attempts_though_all_fail(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    """They may be the cause themselves, and kept by Kafka they would keep their partition for ever."""
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(3)]
    sender.answer = lambda mail: Failed("SES failed: 500")
    assert process(job, *deliveries) == [Retry("SES failed: 500")] * 3


def test_an_answer_that_never_came_keeps_the_claim(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    sender.answer = lambda mail: Unknown("no answer from SES: ReadTimeoutError")
    (outcome,) = process(job, delivery)
    # It spends an attempt, since each time may be a mail too many.
    assert isinstance(outcome, Retry) and outcome.after is not None
    # It comes back when the claim has run out, not to find it live again.
    row = campaign.mail(delivery, "status, claimed_until")
    assert row is not None
    assert row[0] == "claimed"
    now = campaign._one("SELECT clock_timestamp()")
    assert now + outcome.after >= row[1]
    assert is_later(process(job, delivery)[0], OTHERS_CLAIM, 130)
    sender.answer = lambda mail: None
    campaign.let_claims_expire()
    assert process(job, delivery) == [Done()]


def test_a_mail_given_up_without_an_answer_leaves_no_claim_and_no_reward_on_its_way(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    delivery = campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
    theirs = campaign.asks("welcome", campaign.add_user())
    sender.answer = lambda mail: Unknown("no answer from SES: ReadTimeoutError")
    process(job, delivery)
    claim_elsewhere(campaign.connection, theirs, None)
    job.give_up([(delivery, "no answer, again and again"), (theirs, "not ours to give up")])
    assert campaign.mail(delivery) == ("failed", "no answer, again and again")
    assert campaign.row(user_reward) == ("failed",)
    assert campaign.mail(theirs, "status") == ("claimed",)


@pytest.mark.parametrize("locked", ["email_messages", "user_rewards"])
def test_what_somebody_keeps_locked_is_given_up_when_it_is_free(
    database_url: str, campaign: MailCampaign, sender: RecordingSender, locked: str
) -> None:
    # Such a function's statements wait half a second for a lock.
    impatient = Database(database_url, timeout_seconds=12)
    job = job_of(impatient, sender)
    reward, users = campaign.add_reward("email"), [campaign.add_user() for _ in range(3)]
    rewards = [campaign.earn(reward, user) for user in users]
    asked = [
        campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
        for user, user_reward in zip(users, rewards, strict=True)
    ]
    sender.answer = lambda mail: Failed("SES failed: 500")
    process(job, *asked)
    with psycopg.connect(database_url) as holder:
        column, value = ("event_id", asked[1].event.id) if locked == "email_messages" else ("id", rewards[1])
        holder.execute(f"SELECT FROM campaign_jobs.{locked} WHERE {column} = %s FOR UPDATE", (value,))
        ((refused, refusal),) = job.give_up([(delivery, "worn out") for delivery in asked])
    assert refused is asked[1]
    assert refusal.passing
    assert [campaign.row(user_reward) for user_reward in rewards] == [("failed",), ("earned",), ("failed",)]
    assert campaign.mail(refused) == ("failed", "SES failed: 500")
    assert not job.give_up([(refused, "worn out")])
    assert campaign.mail(refused) == ("failed", "worn out")
    assert campaign.row(rewards[1], "status, last_error") == ("failed", "worn out")
    impatient.close()


def test_a_failure_is_retried_and_a_refusal_given_up(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    failing, refused = (
        campaign.asks("welcome", campaign.add_user()),
        campaign.asks("welcome", campaign.add_user()),
    )
    address = campaign.address(failing.event.data.user_id)
    sender.answer = lambda mail: (
        Failed("SES failed: 500") if mail.recipient == address else Refused("SES refused it")
    )
    assert process(job, failing, refused) == [Retry("SES failed: 500"), Rejected("SES refused it")]
    job.give_up([(refused, "SES refused it")])
    assert campaign.mail(failing) == ("failed", "SES failed: 500")
    assert campaign.mail(refused) == ("failed", "SES refused it")
    # Redriven, it is tried again.
    sender.answer = lambda mail: None
    assert process(job, failing, refused) == [Done()] * 2


def test_a_sender_that_breaks_costs_its_neighbors_nothing(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(12)]
    address = campaign.address(deliveries[3].event.data.user_id)

    def breaking(mail: Mail) -> None:
        if mail.recipient == address:
            raise ZeroDivisionError(mail.recipient)

    sender.answer = breaking
    outcomes = process(job, *deliveries)
    assert outcomes.count(Done()) == 11
    assert isinstance(outcomes[3], Retry)
    assert outcomes[3].reason == "unexpected ZeroDivisionError"
    # Whether it went is unknown, so it keeps its claim, and comes back after it.
    assert outcomes[3].after is not None
    assert outcomes[3].after > timedelta(seconds=120)
    assert campaign.statuses() == {"accepted": 11, "claimed": 1}
