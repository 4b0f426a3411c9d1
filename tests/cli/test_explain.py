"""Where a person stands and why, and what became of an event."""

import json
from uuid import UUID, uuid4

import pytest

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.position.run import recalculate
from tests.cli.conftest import Command
from tests.integration.email_campaign import MailCampaign
from tests.integration.position_campaign import Campaign as PositionCampaign
from tests.integration.reward_campaign import Campaign as RewardCampaign


@pytest.fixture
def campaign(connection: Connection) -> PositionCampaign:
    return PositionCampaign(connection, points=2)


def email_of(connection: Connection, user: UUID) -> str:
    row = connection.execute(
        "SELECT email FROM campaign_jobs.waitlist_users WHERE id = %s", (user,)
    ).fetchone()
    assert row is not None
    return str(row[0])


def test_a_position_is_explained_by_what_counts_and_what_does_not(
    command: Command, campaign: PositionCampaign, connection: Connection, database: Database
) -> None:
    *others, user = campaign.add_users(7)
    verified, converted, pending, invalid, held, _ = others
    for other, status in (
        (verified, "verified"),
        (converted, "converted"),
        (pending, "pending"),
        (invalid, "invalid"),
        (held, "verified"),
    ):
        campaign.refer(user, other, status)
    campaign.hold(held)
    recalculate(database, campaign.id)
    (person,) = command("explain", user, "--output", "json").json["people"]
    position = person["position"]
    assert (position["original_position"], position["referrals_counted"], position["score"]) == (7, 2, 3)
    assert position["formula"] == "7 − 2 × 2 = 3"
    assert position["state"] == "up to date"
    assert position["position"] == 3, "behind the users with 1 and 2; level with 3, but with more referrals"
    assert position["referrals_not_counted"] == {
        "the referred person is not verified yet": 1,
        "a service has made it invalid": 1,
        "a fraud case holds the referred person": 1,
    }
    why = {each["user_id"]: each["why_not"] for each in person["referrals"]}
    assert why[str(verified)] is None and why[str(converted)] is None
    assert why[str(held)] == "a fraud case holds the referred person"
    (other,) = command("explain", verified, "--output", "json").json["people"]
    assert [each["user_id"] for each in other["brought_by"]] == [str(user)]


def test_a_hold_of_the_referrer_takes_all_credit(
    command: Command, campaign: PositionCampaign, database: Database
) -> None:
    one, user = campaign.add_users(2)
    campaign.refer(user, one)
    recalculate(database, campaign.id)
    campaign.hold(user, status="confirmed")
    (person,) = command("explain", user, "--output", "json").json["people"]
    assert person["user"]["held"] is True
    assert person["position"]["referrals_not_counted"] == {"a fraud case holds the referrer": 1}
    assert person["position"]["state"] == "of the last run, with a score of 0: a recalculation waits"
    assert [case["status"] for case in person["fraud_cases"]] == ["confirmed"]


def test_one_page_for_a_person(
    command: Command, campaign: PositionCampaign, connection: Connection, database: Database
) -> None:
    one, user = campaign.add_users(2)
    campaign.refer(user, one)
    recalculate(database, campaign.id)
    printed = command("explain", email_of(connection, user))
    assert printed.code == 0
    for text in (
        "Position",
        "2 − 1 × 2 = 0",
        "Referrals",
        email_of(connection, one),
        "up to date",
        "In the outbox",
    ):
        assert text in printed.out, text


def test_all_campaigns_of_an_address_or_one(command: Command, connection: Connection) -> None:
    campaigns = [PositionCampaign(connection), PositionCampaign(connection)]
    users = [each.add_users(1)[0] for each in campaigns]
    connection.execute("UPDATE campaign_jobs.waitlist_users SET email = 'Ada@example.org'")
    both = command("explain", "ada@EXAMPLE.org", "--output", "json").json["people"]
    assert {person["user"]["user_id"] for person in both} == set(map(str, users))
    (one,) = command("explain", "ada@example.org", "--campaign", campaigns[1].id, "--output", "json").json[
        "people"
    ]
    assert one["user"]["user_id"] == str(users[1])


def test_somebody_who_has_left_is_found_too(
    command: Command, campaign: PositionCampaign, connection: Connection
) -> None:
    (user,) = campaign.add_users(1)
    connection.execute("UPDATE campaign_jobs.waitlist_users SET status = 'removed', deleted_at = now()")
    (person,) = command("explain", email_of(connection, user), "--output", "json").json["people"]
    assert person["position"]["state"] == "none: the user is removed"
    assert person["user"]["mail"] == "none: the user is removed"


def test_nobody_is_an_error_of_its_own(command: Command, campaign: PositionCampaign) -> None:
    printed = command("explain", "nobody@example.org", "--output", "json")
    assert (printed.code, printed.json) == (1, {"subject": "nobody@example.org", "people": []})


def test_what_may_be_mailed(command: Command, connection: Connection) -> None:
    campaign = MailCampaign(connection)
    user = campaign.add_user()

    def mail() -> str:
        (person,) = command("explain", user, "--output", "json").json["people"]
        return str(person["user"]["mail"])

    assert mail() == "all"
    connection.execute("INSERT INTO campaign_jobs.email_unsubscribes (user_id) VALUES (%s)", (user,))
    assert mail() == "only verification and rewards: the user has unsubscribed"
    campaign.set(status="paused")
    assert mail() == "waits: the campaign is paused"
    connection.execute(
        "INSERT INTO campaign_jobs.email_suppressions (address, reason) VALUES (%s, 'bounce')",
        (campaign.address(user),),
    )
    assert mail() == "none: the address is suppressed (bounce)"


def test_rewards_say_what_they_wait_for(command: Command, connection: Connection) -> None:
    campaign = RewardCampaign(connection)
    user = campaign.add_user()
    endpoint = campaign.add_endpoint("https://example.com")
    by_hand, webhook = (
        campaign.earn(campaign.add_reward("manual"), user),
        campaign.earn(campaign.add_reward("webhook", endpoint), user),
    )
    connection.execute(
        "UPDATE campaign_jobs.user_rewards SET parked_event_id = 'parked', parked_at = now() WHERE id = %s",
        (webhook,),
    )
    connection.execute(
        "UPDATE campaign_jobs.webhook_endpoints SET status = 'disabled', disabled_reason = 'it answered 410'"
    )
    (person,) = command("explain", webhook, "--output", "json").json["people"]
    waits = {each["user_reward_id"]: each["waits_for"] for each in person["rewards"]}
    assert waits == {
        str(by_hand): "an operator",
        str(webhook): "its endpoint: it answered 410",
    }
    event = command("explain", "parked", "--output", "json").json
    assert event["outcome"].startswith("parked:") and event["parked_reward"]["user_reward_id"] == str(webhook)


def test_a_mails_event(command: Command, connection: Connection) -> None:
    campaign = MailCampaign(connection)
    user = campaign.add_user()
    event_id = str(uuid4())
    connection.execute(
        "INSERT INTO campaign_jobs.email_messages (event_id, type, campaign_id, user_id, status, accepted_at,"
        " ses_message_id, delivery_status, delivery_status_at)"
        " VALUES (%s, 'welcome', %s, %s, 'accepted', now(), 'ses-1', 'delivered', now())",
        (event_id, campaign.id, user),
    )
    connection.execute(
        "INSERT INTO campaign_jobs.email_events (tag, ses_message_id, delivery_status, occurred_at)"
        " SELECT tag, 'ses-1', reported.status, now() + number * interval '1 second' FROM campaign_jobs.email_messages,"
        " unnest(ARRAY['sent', 'delivered']) WITH ORDINALITY AS reported (status, number)"
    )
    event = command("explain", event_id, "--output", "json").json
    assert event["known"] is True
    assert event["type"] == "job.email.welcome"
    assert event["outcome"] == "sent: SES has taken the mail; SES reports: delivered"
    assert [each["delivery_status"] for each in event["ses_events"]] == ["sent", "delivered"]
    assert "claim_token" not in event["mail"]
    assert any(f"explain {user}" in line for line in event["look_also"])
    page = command("explain", event_id).out
    assert "What SES reports" in page and campaign.address(user) in page


@pytest.mark.parametrize(
    ("columns", "values", "outcome"),
    [
        ("status, reason", "'skipped', 'the user has unsubscribed'", "skipped: the user has unsubscribed"),
        (
            "status, reason",
            "'failed', 'SES refused the mail'",
            "failed: SES refused the mail; it comes again, or is a dead letter",
        ),
        (
            "status, reason, parked_event",
            "'parked', 'the campaign is paused', '{}'",
            "parked: the campaign is paused; relay emits it again once the mail may go",
        ),
    ],
)
def test_outcomes_of_mails(
    command: Command, connection: Connection, columns: str, values: str, outcome: str
) -> None:
    campaign = MailCampaign(connection)
    user = campaign.add_user()
    connection.execute(
        f"INSERT INTO campaign_jobs.email_messages (event_id, type, campaign_id, user_id, {columns})"
        f" VALUES ('it', 'welcome', %s, %s, {values})",
        (campaign.id, user),
    )
    event = command("explain", "it", "--output", "json").json
    assert event["outcome"] == outcome
    has_to_look = any("explain it --dead-letters" in line for line in event["look_also"])
    assert has_to_look == outcome.startswith("failed")


def test_an_event_in_the_outbox_and_its_reward(command: Command, connection: Connection) -> None:
    campaign = RewardCampaign(connection)
    user_reward = campaign.earn(campaign.add_reward("manual"))
    event = {"id": "it", "type": "job.reward.deliver", "data": {"user_reward_id": str(user_reward)}}
    connection.execute(
        "INSERT INTO campaign_jobs.outbox (event_id, partition_key, event) VALUES ('it', %s, %s)",
        (str(user_reward), json.dumps(event)),
    )
    found = command("explain", "it", "--output", "json").json
    assert found["outcome"] == "it waits in the outbox; relay publishes it within seconds"
    assert found["user_reward"]["status"] == "earned"
    (person,) = command("explain", user_reward, "--output", "json").json["people"]
    assert [each["event_id"] for each in person["in_the_outbox"]] == ["it"]
    campaign.publish_all()
    found = command("explain", "it", "--output", "json").json
    assert found["outcome"] == "it was published; the user reward is earned now"


def test_an_event_whose_data_is_nonsense_is_still_explained(command: Command, connection: Connection) -> None:
    connection.execute(
        "INSERT INTO campaign_jobs.outbox (event_id, partition_key, event)"
        """ VALUES ('it', 'k', '{"type": "job.reward.deliver", "data": {"user_reward_id": "none"}}')"""
    )
    found = command("explain", "it", "--output", "json").json
    assert found["known"] is True and found["user_reward"] is None


def test_an_event_that_the_database_does_not_know(command: Command, connection: Connection) -> None:
    event_id = uuid4()
    printed = command("explain", event_id, "--output", "json")
    assert printed.code == 1
    assert printed.json["known"] is False
    looks = "\n".join(printed.json["look_also"])
    for other in (f"explain {event_id} --dead-letters", "events tail --from", f"event_id = {event_id}"):
        assert other in looks


def test_nobodys_name_moves_the_terminal(
    command: Command, campaign: PositionCampaign, connection: Connection
) -> None:
    (user,) = campaign.add_users(1)
    connection.execute(
        "UPDATE campaign_jobs.waitlist_users SET first_name = %s", ("\x1b]0;owned\x07[bold]\u202e\x9b31m",)
    )
    page, text = command("explain", user).out, command("explain", user, "--output", "json").out
    for printed in (page, text):
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(printed)
    assert "\\x1b]0;owned\\x07[bold]\\u202e\\x9b31m" in page
    name = json.loads(text)["people"][0]["user"]["first_name"]
    assert name == "\x1b]0;owned\x07[bold]\u202e\x9b31m", "what a program reads is what is there"
