"""Rows that are missing, do not fit or are bad, and how many statements a batch takes."""

import uuid
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from campaign_jobs.email.job import EmailJob
from campaign_jobs.events import EmailEvent
from campaign_jobs.worker.delivery import Delivery
from campaign_jobs.worker.outcomes import Done, Rejected, Retry, Skipped
from tests.integration.email.jobs import is_later, process
from tests.integration.email_campaign import MailCampaign, RecordingSender, delivery_of

# Rows that are missing or do not fit.


@pytest.mark.parametrize("missing", ["user", "campaign", "user reward"])
def test_a_row_that_is_not_there_yet_is_waited_for(
    job: EmailJob, campaign: MailCampaign, missing: str
) -> None:
    user = campaign.add_user()
    event = campaign.event("reward_earned", user, user_reward_id=str(uuid.uuid4()))
    if missing == "user":
        event["data"]["user_id"] = str(uuid.uuid4())
    if missing == "campaign":
        event["data"]["campaign_id"] = str(uuid.uuid4())
    assert is_later(process(job, delivery_of(event))[0], f"the {missing} is not there yet", 30)
    assert is_later(
        process(job, delivery_of(event, age=timedelta(minutes=9)))[0], f"the {missing} is not there yet", 60
    )
    late = delivery_of(event, age=timedelta(minutes=10))
    rejected = Rejected(f"the {missing} is not there, after waiting 10 min")
    assert process(job, late) == [rejected]
    # There is nothing to write it down for, and that does no harm.
    job.give_up([(late, rejected.reason)])
    assert campaign.mail(late) is None


def test_an_event_that_contradicts_the_database_changes_nobody_elses_reward(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    victim, other = campaign.add_user(), campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), victim)
    confused = campaign.asks("reward_earned", other, user_reward_id=str(user_reward))
    reason = "the user reward belongs to another user"
    assert process(job, confused) == [Rejected(reason)]
    job.give_up([(confused, reason)])
    assert campaign.row(user_reward) == ("earned",)
    elsewhere = MailCampaign(campaign.connection).asks("welcome", victim)
    assert process(job, elsewhere) == [Rejected("the user belongs to another campaign")]
    job.give_up([(elsewhere, "the user belongs to another campaign")])
    assert not sender.accepted


@pytest.mark.parametrize("other", ["another type", "another milestone", "another user"])
def test_an_id_that_was_used_for_another_mail_is_refused_and_changes_nothing_of_that(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, other: str
) -> None:
    user = campaign.add_user()
    campaign.set(status="paused")
    first = campaign.asks("milestone", user, milestone=5)
    assert process(job, first) == [Skipped("parked: the campaign is paused")]
    campaign.set(status="active")
    # The first one's once-key is taken, which nobody who reuses its id must wait for.
    assert process(job, campaign.asks("milestone", user, milestone=5)) == [Done()]
    if other == "another type":
        reused = campaign.asks("verification", user, first.event.id)
    elif other == "another milestone":
        reused = campaign.asks("milestone", user, first.event.id, milestone=6)
    else:
        reused = campaign.asks("milestone", campaign.add_user(), first.event.id, milestone=5)
    reason = "the event's id was used before, for another mail"
    assert process(job, reused) == [Rejected(reason)]
    job.give_up([(reused, reason)])
    assert campaign.mail(first) == ("parked", "the campaign is paused")
    assert len(sender.accepted) == 1


# Batches.


@pytest.mark.parametrize("status", ["claimed", "skipped", "accepted"])
def test_one_bad_row_does_not_fail_its_batch(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, status: str
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(8)]
    if status == "skipped":
        campaign.set(status="ended")
    bad = deliveries[5]
    campaign.connection.execute(
        psycopg.sql.SQL(
            "ALTER TABLE campaign_jobs.email_messages ADD CHECK (event_id <> {} OR status <> {})"
        ).format(bad.event.id, status)
    )
    outcomes = process(job, *deliveries)
    refused = outcomes.pop(5)
    assert outcomes == [Skipped("the campaign has ended") if status == "skipped" else Done()] * 7
    assert campaign.statuses()[{"claimed": "accepted"}.get(status, status)] == 7
    assert "email_messages_check" in getattr(refused, "reason", "")
    if status == "accepted":
        # It went out, so that trying again would only send it again.
        assert isinstance(refused, Rejected)
        assert set(sender.sent.values()) == {1}
        job.give_up([(bad, refused.reason)])
        assert campaign.mail(bad) == ("failed", refused.reason)
    else:
        assert isinstance(refused, Retry)


def test_the_number_of_statements_does_not_grow_with_the_batch(
    job: EmailJob, campaign: MailCampaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = campaign.add_reward("email")
    statements: list[Any] = []
    execute = psycopg.Cursor.execute

    def counted(self: Any, query: Any, *arguments: Any, **named: Any) -> Any:
        statements.append(query)
        return execute(self, query, *arguments, **named)

    def batch_of(size: int) -> list[Delivery[EmailEvent]]:
        deliveries = []
        for number in range(size):
            user = campaign.add_user()
            match number % 5:
                case 0:
                    deliveries.append(campaign.asks("verification", user))
                case 1:
                    campaign.change_user(user, original_position=100_000 + campaign.people)
                    campaign.rank(user, campaign.people)
                    deliveries.append(campaign.asks("position_update", user))
                case 2:
                    user_reward = campaign.earn(reward, user)
                    deliveries.append(campaign.asks("reward_earned", user, user_reward_id=str(user_reward)))
                case 3:
                    campaign.change_user(user, status="removed")
                    deliveries.append(campaign.asks("welcome", user))
                case 4:
                    deliveries.append(campaign.asks("milestone", uuid.uuid4(), milestone=3))
        return deliveries

    # From an empty bucket a grant may take more than one statement.
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.send_tokens (name, rate, tokens, looked_up_at)"
        " VALUES ('ses', 1000000, 1000000, now())"
    )
    counts = []
    for size in (10, 200):
        deliveries = batch_of(size)
        with monkeypatch.context() as counting:
            counting.setattr(psycopg.Cursor, "execute", counted)
            statements.clear()
            outcomes = process(job, *deliveries)
            counts.append(len(statements))
        assert outcomes.count(Done()) == size * 3 / 5
    # 6 mails went in a pool-full of each lane, 120 in eight and four: a grant and a record for each, and a settlement
    # where there may be rewards.
    assert counts[1] - counts[0] == 7 * 3 + 3 * 2
    assert counts[0] <= 15
