"""The function `feedback` at its boundaries."""

from typing import Any

from campaign_jobs.database.connection import Connection
from campaign_jobs.email.tags import message_tag
from tests.crash.scenario import Rest, Scenario
from tests.integration.email_campaign import MailCampaign
from tests.ses_events import ses_event, sqs_event


def _reports(connection: Connection) -> list[Any]:
    """Two mails were recorded, a third, about a reward, went out without anybody recording it."""
    campaign = MailCampaign(connection)
    users = [campaign.add_user() for _ in range(3)]
    user_reward = campaign.earn(campaign.add_reward("email"), users[2])
    connection.execute("UPDATE campaign_jobs.user_rewards SET status = 'delivering'")
    for number in range(2):
        connection.execute(
            "INSERT INTO campaign_jobs.email_messages"
            " (event_id, type, campaign_id, user_id, status, ses_message_id, accepted_at)"
            " VALUES (%s, 'verification', %s, %s, 'accepted', 'seeded', now())",
            (f"event-{number}", campaign.id, users[number]),
        )
    connection.execute(
        "INSERT INTO campaign_jobs.email_messages"
        " (event_id, type, campaign_id, user_id, user_reward_id, once_key, status, claim_token, claimed_until)"
        " VALUES ('event-2', 'reward_earned', %s, %s, %s, 'reward', 'claimed', gen_random_uuid(), '2026-01-01')",
        (campaign.id, users[2], user_reward),
    )
    return [
        sqs_event(
            ses_event("delivered", message_tag("event-0")),
            ses_event("hard_bounce", message_tag("event-1")),
            ses_event("sent", message_tag("event-2")),
            ses_event("sent", message_tag("nobody's")),
        )
    ]


def _recorded(rest: Rest) -> None:
    assert rest.rows(
        "SELECT event_id, status, delivery_status FROM campaign_jobs.email_messages ORDER BY event_id"
    ) == [
        ("event-0", "accepted", "delivered"),
        ("event-1", "accepted", "bounced"),
        ("event-2", "accepted", "sent"),
    ]
    assert rest.rows("SELECT status FROM campaign_jobs.user_rewards") == [("delivered",)]
    assert rest.rows("SELECT reason FROM campaign_jobs.email_suppressions") == [("bounce",)]
    assert rest.rows("SELECT count(*) FROM campaign_jobs.email_events") == [(3,)]


SCENARIOS = [
    Scenario(
        name="feedback: what SES reports",
        function="feedback",
        source="own queue",
        seed=_reports,
        expect=_recorded,
    )
]
