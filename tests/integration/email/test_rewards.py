"""What becomes of a reward that is told by mail."""

from typing import Any

import pytest

from campaign_jobs.email import store
from campaign_jobs.email.job import EmailJob
from campaign_jobs.worker.outcomes import Done, Skipped
from tests.integration.email.jobs import CHANGED, is_later, process
from tests.integration.email_campaign import MailCampaign, RecordingSender


@pytest.mark.parametrize("blocked", [False, True])
def test_a_held_reward_goes_back_to_earned_and_the_mail_is_skipped(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, blocked: bool
) -> None:
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    case = campaign.open_case(user_reward)
    if blocked:
        campaign.change_user(user, status="blocked")
    asked = campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
    assert process(job, asked) == [Skipped("a fraud case holds the reward")]
    assert campaign.row(user_reward, "status, held_at IS NOT NULL") == ("earned", True)
    campaign.dismiss(case)
    campaign.change_user(user, status="pending")
    again = campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
    assert process(job, again) == [Done()]
    assert campaign.row(user_reward) == ("delivered",)
    assert len(sender.accepted) == 1


@pytest.mark.parametrize("dead", [True, False])
def test_a_reward_whose_mail_is_skipped_or_dead_is_failed_with_the_reason(
    job: EmailJob, campaign: MailCampaign, dead: bool
) -> None:
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    asked = campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
    if dead:
        job.give_up([(asked, "SES refused the mail")])
        reason = "SES refused the mail"
    else:
        campaign.change_user(user, status="removed")
        process(job, asked)
        reason = "the user is removed"
    assert campaign.row(user_reward, "status, last_error") == ("failed", reason)


@pytest.mark.parametrize("when", ["the rate is looked up", "it is claimed"])
def test_a_hold_that_begins_before_the_claim_is_committed_stops_the_mail(
    job: EmailJob,
    campaign: MailCampaign,
    sender: RecordingSender,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    asked = campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
    other = campaign.asks("welcome", user)
    claim = store.claim

    def look_up() -> float:
        campaign.open_case(user_reward)
        return sender.rate

    def hold_and_claim(*arguments: Any, **named: Any) -> set[str]:
        campaign.open_case(user_reward)
        return claim(*arguments, **named)

    if when == "it is claimed":
        monkeypatch.setattr(store, "claim", hold_and_claim)
        outcomes = process(job, asked, other)
        assert is_later(outcomes[0], CHANGED, 10)
        assert campaign.mail(asked) == ("released", CHANGED)
        assert outcomes[1] == Done()
        asked_again = process(job, asked)
    else:
        monkeypatch.setattr(sender, "max_send_rate", look_up)
        asked_again = process(job, asked)
    assert asked_again == [Skipped("a fraud case holds the reward")]
    assert ("reward_earned", campaign.address(user)) not in sender.sent


def test_a_mail_about_a_webhooks_reward_does_not_deliver_it(job: EmailJob, campaign: MailCampaign) -> None:
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("manual"), user)
    assert process(job, campaign.asks("reward_earned", user, user_reward_id=str(user_reward))) == [Done()]
    assert campaign.row(user_reward) == ("earned",)
