"""Races of an erasure with what is on its way about the person."""

import pytest

from campaign_jobs.database.connection import Connection
from campaign_jobs.email.feedback import Feedback
from campaign_jobs.email.ses import Mail
from campaign_jobs.email.tags import message_tag
from campaign_jobs.erasing import erase
from campaign_jobs.fraud.job import FraudJob
from campaign_jobs.worker.outcomes import Done, Skipped
from tests.integration.email_campaign import MailCampaign
from tests.integration.fraud_campaign import Campaign as WatchedCampaign
from tests.integration.fraud_campaign import signals
from tests.integration.reward_campaign import deadline
from tests.interleavings.mailing import came_before_the_claim, email_job, settled
from tests.interleavings.stepping import Race
from tests.ses_events import ses_event, sqs_event

ADDRESS = "confidential@example.org"


@pytest.mark.parametrize("type_", ["verification", "welcome"])
def test_a_mail_goes_if_and_only_if_it_was_claimed_before(
    race: Race, connection: Connection, type_: str
) -> None:
    sent: list[Mail] = []
    job = email_job(race.first, sent)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        user = campaign.add_user()
        campaign.change_user(user, email=ADDRESS)
        delivery = campaign.asks(type_, user)
        sent.clear()
        (outcome,), _ = schedule.run(
            lambda: job.process([delivery], deadline()), lambda: erase(race.second.database, user)
        )
        was_erased = came_before_the_claim(schedule, race.second, race.first)
        (outcome,) = settled(job, [delivery], [outcome])
        assert outcome == (Skipped("the user is removed") if was_erased else Done())
        assert [mail.recipient for mail in sent] == ([] if was_erased else [ADDRESS])
        assert campaign.statuses() == {"skipped" if was_erased else "accepted": 1}


def test_a_complaint_leaves_no_address_whichever_comes_first(race: Race, connection: Connection) -> None:
    sent: list[Mail] = []
    job, feedback = email_job(race.first, sent), Feedback(race.first.database)
    for schedule in race.schedules():
        connection.execute("DELETE FROM campaign_jobs.email_suppressions")
        campaign = MailCampaign(connection)
        user = campaign.add_user()
        campaign.change_user(user, email=ADDRESS)
        delivery = campaign.asks("verification", user)
        assert job.process([delivery], deadline()) == [Done()]
        complaint = sqs_event(ses_event("complaint", message_tag(delivery.event.id), to=ADDRESS))
        schedule.run(lambda: feedback.handle(complaint), lambda: erase(race.second.database, user))
        ((address, reason),) = connection.execute(
            "SELECT address, reason FROM campaign_jobs.email_suppressions"
        ).fetchall()
        assert address.startswith("sha256:")
        assert reason == "complaint"


def test_no_evidence_is_left_of_a_run_that_looked_meanwhile(race: Race, connection: Connection) -> None:
    """The run may have seen the person as they were; the next one sees that they have left."""
    job = FraudJob(race.first.database)
    for schedule in race.schedules(all_pairs=False):
        campaign = WatchedCampaign(connection)
        user, *_ = [campaign.user(ip="203.0.113.77", device="confidential") for _ in range(4)]
        schedule.run(lambda: job.run({}), lambda: erase(race.second.database, user))
        FraudJob(race.first.unstepped_database).run({})
        assert (
            connection.execute(
                "SELECT status, evidence FROM campaign_jobs.fraud_cases"
                " WHERE user_id = %s AND (status <> 'retracted' OR evidence <> '[]')",
                (user,),
            ).fetchall()
            == []
        )
        assert user not in {signal[0] for signal in signals(connection)}
        connection.execute(
            "UPDATE campaign_jobs.waitlist_users SET status = 'removed' WHERE campaign_id = %s",
            (campaign.id,),
        )
