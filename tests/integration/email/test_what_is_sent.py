"""What the email job sends, what it does not, and why."""

import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from campaign_jobs.database.connection import Database
from campaign_jobs.email import store
from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.ses import Mail
from campaign_jobs.worker.outcomes import Done, Outcome, Skipped
from tests.integration.email.jobs import CHANGED, OTHERS_CLAIM, POOL_SIZE, is_later, job_of, process
from tests.integration.email_campaign import DEFAULT_SENDER, MailCampaign, RecordingSender

# What is sent.


def test_each_type_is_sent_with_what_it_needs_and_written_down(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    user = campaign.add_user(first_name="Jörg", original_position=812)
    campaign.rank(user, 795)
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    deliveries = [
        campaign.asks("verification", user),
        campaign.asks("welcome", user, template_data={"plan": "pro"}),
        campaign.asks("position_update", user),
        campaign.asks("reward_earned", user, user_reward_id=str(user_reward)),
        campaign.asks("milestone", user, milestone=10),
    ]
    assert process(job, *deliveries) == [Done()] * 5
    mails = {mail.tags["type"]: mail for mail in sender.accepted}
    assert len(mails) == len(sender.accepted) == 5
    for mail in mails.values():
        assert mail.recipient == campaign.address(user)
        assert (mail.sender_name, mail.sender, mail.foreign_sender) == ("Launch", DEFAULT_SENDER, False)
        assert mail.tags["campaign"] == str(campaign.id)
        assert "Jörg" in mail.content.html
        assert "Jörg" in mail.content.text
    assert f"https://launch.example.com/verify?token=token-{user}" in mails["verification"].content.text
    assert "795" in mails["position_update"].content.text
    assert "17 places" in mails["position_update"].content.text
    assert "LAUNCH-1" in mails["reward_earned"].content.text
    assert "10" in mails["milestone"].content.text
    for delivery in deliveries:
        row = campaign.mail(
            delivery, "status, reason, claim_token, ses_message_id IS NOT NULL, accepted_at IS NOT NULL"
        )
        assert row == ("accepted", None, None, True, True)
    assert campaign.mail(deliveries[2], "position") == (795,)
    assert campaign.row(user_reward) == ("delivered",)
    # Delivered again, nothing happens.
    assert process(job, *deliveries) == [Done()] * 5
    assert len(sender.accepted) == 5


def test_a_campaign_sends_under_its_own_name(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    campaign.set(from_name="Team Ü", from_email="team@other.example.org", reply_to="help@other.example.org")
    assert process(job, campaign.asks("verification", campaign.add_user())) == [Done()]
    (mail,) = sender.accepted
    assert (mail.sender_name, mail.sender, mail.reply_to) == (
        "Team Ü",
        "team@other.example.org",
        "help@other.example.org",
    )
    assert mail.foreign_sender


def test_a_name_cannot_add_a_header(job: EmailJob, campaign: MailCampaign, sender: RecordingSender) -> None:
    campaign.set(name="Launch\r\nBcc: everybody@example.org\x85\u2028x")
    assert process(job, campaign.asks("verification", campaign.add_user())) == [Done()]
    assert sender.accepted[0].sender_name == "Launch Bcc: everybody@example.org x"
    assert sender.accepted[0].content.subject.isprintable()


def test_at_most_a_pool_full_is_on_its_way(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    together = threading.Barrier(POOL_SIZE)

    def meet(mail: Mail) -> None:
        together.wait(20)

    sender.answer = meet
    deliveries = [campaign.asks("verification", campaign.add_user()) for _ in range(2 * POOL_SIZE)]
    assert process(job, *deliveries) == [Done()] * 20
    assert sender.most_at_once == POOL_SIZE


# What is not sent.


def block(campaign: MailCampaign, user: uuid.UUID) -> None:
    campaign.change_user(user, status="blocked")


def remove(campaign: MailCampaign, user: uuid.UUID) -> None:
    campaign.change_user(user, status="removed")


def suppress(campaign: MailCampaign, user: uuid.UUID) -> None:
    campaign.change_user(user, email="Mixed.Case@Example.org")
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.email_suppressions (address, reason) VALUES ('mixed.case@example.org', 'bounce')"
    )


def unsubscribe(campaign: MailCampaign, user: uuid.UUID) -> None:
    campaign.connection.execute("INSERT INTO campaign_jobs.email_unsubscribes (user_id) VALUES (%s)", (user,))


def verify(campaign: MailCampaign, user: uuid.UUID) -> None:
    campaign.connection.execute(
        "UPDATE campaign_jobs.waitlist_users SET status = 'verified', verified_at = now() WHERE id = %s",
        (user,),
    )


def end(campaign: MailCampaign, user: uuid.UUID) -> None:
    campaign.set(status="ended")


@pytest.mark.parametrize(
    ("change", "type_", "reason"),
    [
        (verify, "verification", "the user is verified already"),
        (remove, "verification", "the user is removed"),
        (block, "welcome", "the user is blocked"),
        (suppress, "verification", "the address is suppressed: bounce"),
        (unsubscribe, "welcome", "the user has unsubscribed"),
        (end, "welcome", "the campaign has ended"),
        (lambda *_: None, "position_update", "the user has no position"),
    ],
)
def test_a_skip_is_an_outcome_with_its_reason_and_stays(
    job: EmailJob,
    campaign: MailCampaign,
    sender: RecordingSender,
    change: Callable[[MailCampaign, uuid.UUID], None],
    type_: str,
    reason: str,
) -> None:
    user = campaign.add_user()
    change(campaign, user)
    delivery = campaign.asks(type_, user)
    assert process(job, delivery) == [Skipped(reason)]
    assert campaign.mail(delivery) == ("skipped", reason)
    campaign.set(status="active")
    campaign.change_user(user, status="pending")
    campaign.connection.execute("DELETE FROM campaign_jobs.email_unsubscribes")
    campaign.rank(user, 1)
    campaign.change_user(user, original_position=5000)
    # Days later the same event is still that skip, while a new one goes: a skip uses up no once-key.
    assert process(job, delivery) == [Skipped("skipped before")]
    if change not in (suppress, verify):
        assert process(job, campaign.asks(type_, user)) == [Done()]
    else:
        assert not sender.accepted


def test_what_an_ended_campaign_still_sends(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    campaign.set(status="ended")
    assert process(
        job,
        campaign.asks("verification", user),
        campaign.asks("reward_earned", user, user_reward_id=str(user_reward)),
        campaign.asks("milestone", user, milestone=1),
    ) == [Done(), Done(), Skipped("the campaign has ended")]
    assert {mail.tags["type"] for mail in sender.accepted} == {"verification", "reward_earned"}


def test_a_position_is_told_when_it_is_better_by_the_minimum_and_not_too_often(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    campaign.set(position_email_min_delta=3, position_email_cooldown=timedelta(hours=12))
    user = campaign.add_user(original_position=100)

    def told(position: int) -> Outcome:
        campaign.rank(user, position)
        (outcome,) = process(job, campaign.asks("position_update", user))
        return outcome

    too_little = Skipped("the position is not better by the campaign's minimum than the one last told")
    assert told(98) == too_little
    assert told(97) == Done()
    assert told(50) == Skipped("the last position update is too recent")
    campaign.connection.execute(
        "UPDATE campaign_jobs.email_messages SET accepted_at = accepted_at - interval '12 hours'"
        " WHERE status = 'accepted'"
    )
    assert told(95) == too_little
    assert told(94) == Done()
    assert len(sender.accepted) == 2


def test_only_one_of_two_position_updates_in_a_batch_goes(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    user = campaign.add_user(original_position=100)
    campaign.rank(user, 5)
    first, second = campaign.asks("position_update", user), campaign.asks("position_update", user)
    outcomes = process(job, first, second)
    assert outcomes[0] == Done()
    assert is_later(outcomes[1], OTHERS_CLAIM, 10)
    assert len(sender.accepted) == 1
    assert isinstance(process(job, second)[0], Skipped)


@pytest.mark.parametrize("moves_on", [False, True])
def test_a_position_update_that_was_decided_before_another_went_is_given_back(
    database: Database,
    campaign: MailCampaign,
    sender: RecordingSender,
    monkeypatch: pytest.MonkeyPatch,
    moves_on: bool,
) -> None:
    campaign.set(position_email_cooldown=timedelta() if moves_on else timedelta(hours=24))
    user = campaign.add_user(original_position=100)
    campaign.rank(user, 5)
    late, quick = campaign.asks("position_update", user), campaign.asks("position_update", user)
    claim = store.claim

    def overtaken(*arguments: Any, **named: Any) -> set[str]:
        monkeypatch.setattr(store, "claim", claim)
        with_its_own = Database(database._conninfo())
        assert process(job_of(with_its_own, sender), quick) == [Done()]
        with_its_own.close()
        if moves_on:
            # It may go again, but not with the position that it was written with.
            campaign.rank(user, 1)
        return claim(*arguments, **named)

    monkeypatch.setattr(store, "claim", overtaken)
    (outcome,) = process(job_of(database, sender), late)
    assert is_later(outcome, CHANGED, 10)
    assert len(sender.accepted) == 1
    assert campaign.mail(late) == ("released", CHANGED)
