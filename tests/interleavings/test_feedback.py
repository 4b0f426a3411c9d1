"""Races of the email job with what SES reports of its mails."""

import uuid

from campaign_jobs.database.connection import Connection
from campaign_jobs.email.feedback import Feedback
from campaign_jobs.email.ses import Mail, SendResult, Unknown
from campaign_jobs.email.tags import message_tag
from campaign_jobs.worker.outcomes import Done
from tests.integration.email_campaign import MailCampaign
from tests.integration.reward_campaign import deadline
from tests.interleavings.mailing import SteppedSender, email_job
from tests.interleavings.stepping import Race
from tests.ses_events import ses_event, sqs_event

NONE_FAILED: dict[str, list[object]] = {"batchItemFailures": []}


class SilentSender(SteppedSender):
    """Takes every mail, but its answer never comes."""

    def send(self, mail: Mail) -> SendResult:
        self.side.reaches("SES is asked")
        self.sent.append(mail)
        return Unknown("no answer from SES: ReadTimeoutError")


def test_an_event_of_ses_before_our_own_record_is_applied_and_nothing_is_sent_again(
    race: Race, connection: Connection
) -> None:
    sent: list[Mail] = []
    job, feedback = email_job(race.first, sent), Feedback(race.second.database)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        delivery = campaign.asks("welcome", campaign.add_user())
        report = sqs_event(ses_event("delivered", message_tag(delivery.event.id)))
        sent.clear()
        (outcome,), answer = schedule.run(
            lambda: job.process([delivery], deadline()), lambda: feedback.handle(report)
        )
        assert (outcome, answer) == (Done(), NONE_FAILED)
        # Before the claim there is no row that the event could be about: SES reports of nothing that was not sent.
        is_possible = schedule.is_before(race.first, "SES is asked", race.second, "BEGIN")
        if is_possible:
            assert campaign.mail(delivery, "status, delivery_status") == ("accepted", "delivered")
        assert campaign.statuses() == {"accepted": 1}
        assert job.process([delivery], deadline()) == [Done()]
        assert len(sent) == 1


def test_a_mail_given_up_without_an_answer_counts_as_accepted_once_an_event_proves_it(
    race: Race, connection: Connection
) -> None:
    sent: list[Mail] = []
    job = email_job(race.first, sent, SilentSender(race.first, sent))
    feedback = Feedback(race.second.database)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        user_reward = campaign.earn(campaign.add_reward("email"), campaign.add_user())
        user = campaign.row(user_reward, "user_id")[0]
        delivery = campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
        job.process([delivery], deadline())
        report = sqs_event(ses_event("sent", message_tag(delivery.event.id)))
        schedule.run(lambda: job.give_up([(delivery, "worn out")]), lambda: feedback.handle(report))
        assert campaign.mail(delivery, "status, reason, claim_token") == ("accepted", None, None)
        assert campaign.row(user_reward) == ("delivered",)


def test_an_event_that_proves_a_mail_before_it_is_claimed_again_keeps_it_from_going_twice(
    race: Race, connection: Connection
) -> None:
    sent: list[Mail] = []
    job, feedback = email_job(race.first, sent), Feedback(race.second.database)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        user = campaign.add_user()
        # Somebody sent it and crashed, and the claim has run out.
        delivery = campaign.asks("welcome", user)
        connection.execute(
            "INSERT INTO campaign_jobs.email_messages"
            " (event_id, type, campaign_id, user_id, once_key, status, claim_token, claimed_until)"
            " VALUES (%s, 'welcome', %s, %s, %s, 'claimed', %s, now() - interval '1 second')",
            (delivery.event.id, campaign.id, user, f"welcome:{user}", uuid.uuid4()),
        )
        report = sqs_event(ses_event("sent", message_tag(delivery.event.id)))
        sent.clear()
        (outcome,), answer = schedule.run(
            lambda: job.process([delivery], deadline()), lambda: feedback.handle(report)
        )
        assert answer == NONE_FAILED
        if not isinstance(outcome, Done):
            (outcome,) = job.process([delivery], deadline())
        assert outcome == Done()
        assert campaign.mail(delivery, "status, claim_token") == ("accepted", None)
        # What is reported after the claim came too late to stop it.
        if schedule.is_before(race.second, "COMMIT", race.first, "WITH concerned"):
            assert sent == []
        assert len(sent) <= 1
