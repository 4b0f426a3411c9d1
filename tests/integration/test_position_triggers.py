"""Whatever a position depends on asks for a recalculation in its own transaction, and nothing else does."""

import uuid

import pytest

from campaign_jobs.database.connection import Connection
from tests.integration.position_campaign import LAUNCH, Campaign

USER = "UPDATE campaign_jobs.waitlist_users SET {} WHERE campaign_id = %s"
REFERRAL = "UPDATE campaign_jobs.referrals SET {} WHERE campaign_id = %s"
CASE = "UPDATE campaign_jobs.fraud_cases SET {} WHERE campaign_id = %s"
CAMPAIGN = "UPDATE campaign_jobs.campaigns SET {} WHERE id = %s"

MATTERS = [
    USER.format("status = 'removed'"),
    USER.format("original_position = original_position + 100"),
    USER.format("created_at = created_at - interval '1 second'"),
    REFERRAL.format("status = 'invalid'"),
    "DELETE FROM campaign_jobs.referrals WHERE campaign_id = %s",
    REFERRAL.format(
        "referrer_id = (SELECT id FROM campaign_jobs.waitlist_users AS person"
        " WHERE person.campaign_id = referrals.campaign_id AND original_position = 3)"
    ),
    CASE.format("status = 'retracted'"),
    CASE.format("holding = false"),
    "DELETE FROM campaign_jobs.fraud_cases WHERE campaign_id = %s",
    CAMPAIGN.format("points_per_referral = 7"),
    CAMPAIGN.format("position_email_min_delta = 7"),
]
DOES_NOT_MATTER = [
    USER.format("status = 'verified', verified_at = now()"),
    USER.format("first_name = 'Ann', original_position = original_position"),
    REFERRAL.format("status = 'converted'"),
    CASE.format("risk_score = 99"),
    CASE.format("status = 'confirmed', decided_at = now(), decision_reason = 'a bot'"),
    CAMPAIGN.format("name = 'Relaunch', points_per_referral = points_per_referral"),
    CAMPAIGN.format("status = 'paused'"),
    # As a run does when it obeys a request.
    CAMPAIGN.format("points_per_referral = 7, points_requested_at = now(), points_request_id = 'request'"),
    USER.format("status = 'removed'") + " AND false",
]


@pytest.fixture
def campaign(connection: Connection) -> Campaign:
    campaign = Campaign(connection)
    users = campaign.add_users(3)
    campaign.refer(users[0], users[1])
    campaign.hold(users[2])
    connection.execute("DELETE FROM campaign_jobs.position_requests")
    return campaign


def waiting_after(campaign: Campaign, statement: str) -> int:
    """How many requests the statement leaves; it is rolled back."""
    with campaign.connection.transaction(force_rollback=True):
        campaign.connection.execute(statement.encode(), (campaign.id,))
        return campaign.waiting()


def test_a_change_that_matters_asks_once_for_its_campaign(campaign: Campaign) -> None:
    Campaign(campaign.connection).add_users(2)
    assert {statement: waiting_after(campaign, statement) for statement in MATTERS} == dict.fromkeys(
        MATTERS, 1
    )


def test_a_change_that_does_not_matter_asks_for_nothing(campaign: Campaign) -> None:
    requests = {statement: waiting_after(campaign, statement) for statement in DOES_NOT_MATTER}
    assert requests == dict.fromkeys(DOES_NOT_MATTER, 0)


def test_new_rows_ask_only_when_they_count(campaign: Campaign) -> None:
    users = [uuid.uuid4() for _ in range(3)]
    campaign.add_user_rows([(users[0], 10, "removed", LAUNCH)])
    assert campaign.waiting() == 0
    campaign.add_user_rows([(users[1], 11, "pending", LAUNCH), (users[2], 12, "pending", LAUNCH)])
    assert campaign.waiting() == 1
    campaign.refer(users[0], users[1], "pending")
    campaign.hold(users[1], holding=False)
    assert campaign.waiting() == 1
    campaign.refer(users[0], users[2], "converted")
    campaign.hold(users[2], status="confirmed")
    assert campaign.waiting() == 3


def test_a_request_is_there_if_and_only_if_its_cause_is(campaign: Campaign) -> None:
    with campaign.connection.transaction(force_rollback=True):
        campaign.add_user_rows([(uuid.uuid4(), 10, "pending", LAUNCH)])
        assert campaign.waiting() == 1
    assert campaign.waiting() == 0


def test_one_statement_over_several_campaigns_asks_once_for_each(connection: Connection) -> None:
    campaigns = [Campaign(connection), Campaign(connection), Campaign(connection)]
    for campaign in campaigns[:2]:
        campaign.add_users(50)
    connection.execute("DELETE FROM campaign_jobs.position_requests")
    connection.execute("UPDATE campaign_jobs.waitlist_users SET original_position = original_position + 100")
    assert [campaign.waiting() for campaign in campaigns] == [1, 1, 0]


def test_a_service_needs_no_right_on_the_requests(campaign: Campaign) -> None:
    campaign.connection.execute("CREATE ROLE waitlist_service")
    try:
        campaign.connection.execute("GRANT USAGE ON SCHEMA campaign_jobs TO waitlist_service")
        campaign.connection.execute("GRANT SELECT, UPDATE ON campaign_jobs.campaigns TO waitlist_service")
        campaign.connection.execute("SET ROLE waitlist_service")
        campaign.connection.execute(CAMPAIGN.format("points_per_referral = 7").encode(), (campaign.id,))
        campaign.connection.execute("RESET ROLE")
        assert campaign.waiting() == 1
    finally:
        campaign.connection.execute("RESET ROLE")
        campaign.connection.execute("DROP OWNED BY waitlist_service")
        campaign.connection.execute("DROP ROLE waitlist_service")
