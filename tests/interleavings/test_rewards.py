"""Races of reward deliveries with each other, with holds and decisions on cases, and with services."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import pytest

from campaign_jobs.database.connection import Connection
from campaign_jobs.email.ses import Mail
from campaign_jobs.events import EmailEvent, RewardEvent, parse
from campaign_jobs.fraud.cases import confirm, dismiss, release_unheld
from campaign_jobs.reward.job import RewardJob
from campaign_jobs.reward.settlement import release_parked
from campaign_jobs.reward.webhooks.client import Answer
from campaign_jobs.worker.outcomes import Done, Later, Outcome, Skipped
from tests.integration.email_campaign import MailCampaign
from tests.integration.email_campaign import delivery_of as mail_delivery_of
from tests.integration.reward_campaign import Campaign, deadline, delivery_of
from tests.interleavings.mailing import came_before_the_claim, email_job
from tests.interleavings.mailing import settled as settled_mails
from tests.interleavings.services import in_transaction, writes
from tests.interleavings.stepping import Race, Side

CLAIMS = "WITH free AS ( SELECT id FROM campaign_jobs.user_rewards WHERE id = ANY(%(ids)s)"
OPENS_CASE = """
INSERT INTO campaign_jobs.fraud_cases (campaign_id, user_id, status, holding, risk_score, evidence, rules_version)
SELECT campaign_id, user_id, 'open', true, 90, '[]', '1' FROM campaign_jobs.user_rewards WHERE id = %s
"""


@dataclass
class SteppedWebhooks:
    """Answers 200 to every webhook; the request and the answer are boundaries of the side that posts."""

    side: Side
    posted: list[str]
    total_seconds: float = 15.0

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:  # noqa: ARG002 - a WebhookClient's
        self.side.reaches("the endpoint is asked")
        self.posted.append(headers["webhook-id"])
        self.side.reaches("the endpoint answers")
        return Answer(200, None, None, timedelta())


def reward_job(side: Side, posted: list[str]) -> RewardJob:
    """A job that adds what it posts to `posted`; one webhook at a time."""
    return RewardJob(side.database, SteppedWebhooks(side, posted), pool_size=1)


def settled(job: RewardJob, user_reward: UUID, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes after all that was postponed has come again."""
    return [
        job.process([delivery_of(user_reward)], deadline())[0] if isinstance(outcome, Later) else outcome
        for outcome in outcomes
    ]


def handle_emitted(
    campaign: Campaign, job: RewardJob, sent: list[Mail] | None = None, side: Side | None = None
) -> None:
    """Hand all that waits in the outbox to the jobs, until nothing does."""
    while events := campaign.emitted():
        campaign.publish_all()
        for event in events:
            parsed = parse(event, recorded_at=delivery_of(campaign.id).first_received_at)
            if isinstance(parsed, RewardEvent):
                job.process([delivery_of(parsed.data.user_reward_id, event_id=parsed.id)], deadline())
            else:
                assert isinstance(parsed, EmailEvent) and sent is not None and side is not None
                email_job(side, sent).process([mail_delivery_of(event)], deadline())


@pytest.mark.parametrize("same_event", [True, False])
def test_two_deliveries_of_one_reward_post_once(race: Race, connection: Connection, same_event: bool) -> None:
    posted: list[str] = []
    first, second = reward_job(race.first, posted), reward_job(race.second, posted)
    for schedule in race.schedules(all_pairs=same_event):
        campaign = Campaign(connection)
        user_reward = campaign.earn(
            campaign.add_reward("webhook", campaign.add_endpoint("https://hooks.example.com"))
        )
        deliveries = [
            delivery_of(user_reward, event_id="e1" if same_event or n == 0 else "e2") for n in (0, 1)
        ]
        posted.clear()
        results = schedule.run(
            lambda: first.process(deliveries[:1], deadline()),
            lambda: second.process(deliveries[1:], deadline()),
        )
        outcomes = settled(first, user_reward, [outcome for (outcome,) in results])
        assert sorted(outcomes, key=str) == [Done(), Skipped("the user reward is delivered")]
        assert len(posted) == 1
        assert campaign.row(user_reward, "status, attempts, claim_token") == ("delivered", 1, None)


@pytest.mark.parametrize("another_died", [False, True])
def test_two_deliveries_of_one_reward_by_email_write_one_mail(
    race: Race, connection: Connection, another_died: bool
) -> None:
    first, second = reward_job(race.first, []), reward_job(race.second, [])
    for schedule in race.schedules(all_pairs=False):
        campaign = Campaign(connection)
        user_reward = campaign.earn(campaign.add_reward("email"))
        if another_died:
            connection.execute(
                "UPDATE campaign_jobs.user_rewards SET status = 'delivering',"
                " mail_asked_at = now() - interval '2 days' WHERE id = %s",
                (user_reward,),
            )
        results = schedule.run(
            lambda: first.process([delivery_of(user_reward)], deadline()),
            lambda: second.process([delivery_of(user_reward)], deadline()),
        )
        outcomes = settled(first, user_reward, [outcome for (outcome,) in results])
        assert sorted(outcomes, key=str) == [Done(), Skipped("its mail is on its way")]
        assert len(campaign.emitted()) == 1
        campaign.publish_all()


def test_a_hold_stops_a_webhook_until_its_claim_and_never_its_recording(
    race: Race, connection: Connection
) -> None:
    posted: list[str] = []
    job = reward_job(race.first, posted)
    for schedule in race.schedules():
        campaign = Campaign(connection)
        user_reward = campaign.earn(
            campaign.add_reward("webhook", campaign.add_endpoint("https://hooks.example.com"))
        )
        posted.clear()
        (outcome,), _ = schedule.run(
            lambda: job.process([delivery_of(user_reward)], deadline()),
            writes(race.second, (OPENS_CASE, (user_reward,))),
        )
        held = schedule.is_before(race.second, "COMMIT", race.first, CLAIMS)
        (outcome,) = settled(job, user_reward, [outcome])
        assert outcome == (Skipped("held by a fraud case") if held else Done())
        assert len(posted) == (0 if held else 1)
        row = campaign.row(user_reward, "status, held_at IS NOT NULL, claim_token")
        assert row == (("earned", True, None) if held else ("delivered", False, None))


def test_a_hold_stops_a_reward_s_mail_until_it_is_decided_and_never_its_recording(
    race: Race, connection: Connection
) -> None:
    sent: list[Mail] = []
    job = email_job(race.first, sent)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        user_reward = campaign.earn(campaign.add_reward("email"), campaign.add_user())
        user = campaign.row(user_reward, "user_id")[0]
        delivery = campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
        connection.execute(
            "UPDATE campaign_jobs.user_rewards SET status = 'delivering' WHERE id = %s", (user_reward,)
        )
        sent.clear()
        (outcome,), _ = schedule.run(
            lambda: job.process([delivery], deadline()), writes(race.second, (OPENS_CASE, (user_reward,)))
        )
        held = came_before_the_claim(schedule, race.second, race.first)
        settled_mails(job, [delivery], [outcome])
        assert len(sent) == (0 if held else 1)
        row = campaign.row(user_reward, "status, held_at IS NOT NULL")
        assert row == (("earned", True) if held else ("delivered", False))


@pytest.mark.parametrize("method", ["webhook", "email"])
def test_a_dismissal_during_a_delivery_delivers_once_in_the_end(
    race: Race, connection: Connection, method: str
) -> None:
    posted: list[str] = []
    sent: list[Mail] = []
    job = reward_job(race.first, posted)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        endpoint = campaign.add_endpoint("https://hooks.example.com") if method == "webhook" else None
        user_reward = campaign.earn(campaign.add_reward(method, endpoint), campaign.add_user())
        case = campaign.open_case(user_reward)
        posted.clear()
        sent.clear()
        (outcome,), _ = schedule.run(
            lambda: job.process([delivery_of(user_reward)], deadline()),
            in_transaction(race.second, lambda stepped: dismiss(stepped, case, reason="a household")),
        )
        settled(job, user_reward, [outcome])
        handle_emitted(campaign, job, sent, race.first)
        assert len(posted) + len(sent) == 1
        assert campaign.row(user_reward, "status, held_at") == ("delivered", None)


def test_a_dismissal_during_the_mail_of_a_held_reward_delivers_once_in_the_end(
    race: Race, connection: Connection
) -> None:
    sent: list[Mail] = []
    mails = email_job(race.first, sent)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        user_reward = campaign.earn(campaign.add_reward("email"), campaign.add_user())
        reward_job(race.first, []).process([delivery_of(user_reward)], deadline())
        (event,) = campaign.emitted()
        campaign.publish_all()
        case = campaign.open_case(user_reward)
        sent.clear()
        schedule.run(
            lambda: mails.process([mail_delivery_of(event)], deadline()),
            in_transaction(race.second, lambda stepped: dismiss(stepped, case, reason="a household")),
        )
        handle_emitted(campaign, reward_job(race.first, []), sent, race.first)
        assert len(sent) == 1
        assert campaign.row(user_reward, "status, held_at") == ("delivered", None)


@pytest.mark.parametrize("method", ["webhook", "email"])
def test_what_a_confirmed_case_holds_is_revoked_and_never_delivered(
    race: Race, connection: Connection, method: str
) -> None:
    posted: list[str] = []
    job = reward_job(race.first, posted)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        endpoint = campaign.add_endpoint("https://hooks.example.com") if method == "webhook" else None
        user_reward = campaign.earn(campaign.add_reward(method, endpoint), campaign.add_user())
        case = campaign.open_case(user_reward)
        posted.clear()
        (outcome,), _ = schedule.run(
            lambda: job.process([delivery_of(user_reward)], deadline()),
            in_transaction(race.second, lambda stepped: confirm(stepped, case, reason="a farm")),
        )
        settled(job, user_reward, [outcome])
        assert campaign.emitted() == []
        assert posted == []
        assert campaign.row(user_reward, "status") == ("revoked",)


def test_a_case_that_only_flags_confirmed_during_a_delivery(race: Race, connection: Connection) -> None:
    posted: list[str] = []
    job = reward_job(race.first, posted)
    for schedule in race.schedules():
        campaign = Campaign(connection)
        user_reward = campaign.earn(
            campaign.add_reward("webhook", campaign.add_endpoint("https://hooks.example.com"))
        )
        case = campaign.open_case(user_reward, holding=False)
        posted.clear()
        (outcome,), _ = schedule.run(
            lambda: job.process([delivery_of(user_reward)], deadline()),
            in_transaction(race.second, lambda stepped: confirm(stepped, case, reason="a farm")),
        )
        settled(job, user_reward, [outcome])
        held = schedule.is_before(race.second, "COMMIT", race.first, CLAIMS)
        assert len(posted) == (0 if held else 1)
        assert campaign.row(user_reward) == ("revoked" if held else "delivered",)


def test_a_reward_revoked_while_its_mail_is_sent_stays_revoked(race: Race, connection: Connection) -> None:
    sent: list[Mail] = []
    job = email_job(race.first, sent)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        user_reward = campaign.earn(campaign.add_reward("email"), campaign.add_user())
        user = campaign.row(user_reward, "user_id")[0]
        delivery = campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
        sent.clear()
        revoke = "UPDATE campaign_jobs.user_rewards SET status = 'revoked' WHERE id = %s"
        (outcome,), _ = schedule.run(
            lambda: job.process([delivery], deadline()), writes(race.second, (revoke, (user_reward,)))
        )
        came_first = came_before_the_claim(schedule, race.second, race.first)
        (outcome,) = settled_mails(job, [delivery], [outcome])
        assert outcome == (Skipped("the reward is revoked") if came_first else Done())
        assert len(sent) == (0 if came_first else 1)
        assert campaign.row(user_reward) == ("revoked",)


def test_a_reward_revoked_while_its_webhook_is_posted_stays_revoked(
    race: Race, connection: Connection
) -> None:
    posted: list[str] = []
    job = reward_job(race.first, posted)
    for schedule in race.schedules():
        campaign = Campaign(connection)
        user_reward = campaign.earn(
            campaign.add_reward("webhook", campaign.add_endpoint("https://hooks.example.com"))
        )
        posted.clear()
        revoke = "UPDATE campaign_jobs.user_rewards SET status = 'revoked' WHERE id = %s"
        (outcome,), _ = schedule.run(
            lambda: job.process([delivery_of(user_reward)], deadline()),
            writes(race.second, (revoke, (user_reward,))),
        )
        (outcome,) = settled(job, user_reward, [outcome])
        row = campaign.row(user_reward, "status, delivered_at IS NOT NULL, claim_token")
        assert row == ("revoked", bool(posted), None)
        assert outcome == (Done() if posted else Skipped("the user reward is revoked"))


def test_giving_a_delivery_up_and_making_it_agree_on_what_became_of_it(
    race: Race, connection: Connection
) -> None:
    posted: list[str] = []
    first, second = reward_job(race.first, posted), reward_job(race.second, posted)
    for schedule in race.schedules():
        campaign = Campaign(connection)
        user_reward = campaign.earn(
            campaign.add_reward("webhook", campaign.add_endpoint("https://hooks.example.com"))
        )
        posted.clear()
        schedule.run(
            lambda: first.process([delivery_of(user_reward)], deadline()),
            lambda: second.give_up([(delivery_of(user_reward), "worn out")]),
        )
        assert campaign.row(user_reward, "status, claim_token") == ("delivered" if posted else "failed", None)


def test_an_endpoint_enabled_while_a_delivery_is_parked_gets_it_once(
    race: Race, connection: Connection
) -> None:
    posted: list[str] = []
    job = reward_job(race.first, posted)
    for schedule in race.schedules():
        campaign = Campaign(connection)
        endpoint = campaign.add_endpoint("https://hooks.example.com")
        user_reward = campaign.earn(campaign.add_reward("webhook", endpoint))
        connection.execute(
            "UPDATE campaign_jobs.webhook_endpoints SET status = 'disabled', disabled_at = now(),"
            " disabled_reason = 'it answered 410 Gone' WHERE id = %s",
            (endpoint,),
        )
        posted.clear()

        def enable_and_relay() -> None:
            enable = "UPDATE campaign_jobs.webhook_endpoints SET status = 'enabled' WHERE id = %s"
            writes(race.second, (enable, (endpoint,)))()
            in_transaction(race.second, release_parked)()

        (outcome,), _ = schedule.run(
            lambda: job.process([delivery_of(user_reward)], deadline()), enable_and_relay
        )
        settled(job, user_reward, [outcome])
        with connection.transaction():
            release_parked(connection)
        handle_emitted(campaign, job)
        assert len(posted) == 1
        assert campaign.row(user_reward, "status, parked_at") == ("delivered", None)


def test_a_dismissal_and_relay_emit_a_held_delivery_once(race: Race, connection: Connection) -> None:
    for schedule in race.schedules():
        campaign = Campaign(connection)
        user_reward = campaign.earn(campaign.add_reward("email"))
        case = campaign.open_case(user_reward)
        reward_job(race.first, []).process([delivery_of(user_reward)], deadline())
        assert campaign.row(user_reward, "held_at IS NOT NULL") == (True,)
        schedule.run(
            in_transaction(race.first, lambda stepped: dismiss(stepped, case, reason="a household")),
            in_transaction(race.second, release_unheld),
        )
        with connection.transaction():
            release_unheld(connection)
        assert len(campaign.emitted()) == 1
        campaign.publish_all()
