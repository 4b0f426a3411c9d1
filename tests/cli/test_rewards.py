"""What people have earned is listed, marked as delivered, and asked for again."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from campaign_jobs.database.connection import Connection
from campaign_jobs.events import parse
from campaign_jobs_cli import rewards
from tests.cli.conftest import Command
from tests.integration.reward_campaign import Campaign


@pytest.fixture
def campaign(connection: Connection) -> Campaign:
    return Campaign(connection)


def fail(campaign: Campaign, *user_rewards: UUID) -> None:
    campaign.connection.execute(
        "UPDATE campaign_jobs.user_rewards SET status = 'failed', last_error = 'the endpoint answered 500'"
        " WHERE id = ANY(%s)",
        (list(user_rewards),),
    )


def asked_for(campaign: Campaign) -> list[str]:
    events = campaign.emitted()
    for event in events:
        parse(event, recorded_at=None)  # type: ignore[arg-type]  # it has a timestamp
    return sorted(event["data"]["user_reward_id"] for event in events)


def test_what_is_not_delivered_is_listed(command: Command, campaign: Campaign) -> None:
    earned, failed = campaign.earn(campaign.add_reward("manual")), campaign.earn(campaign.add_reward("email"))
    fail(campaign, failed)

    def listed(*options: str) -> set[str]:
        return {
            row["user_reward_id"] for row in command("rewards", "list", *options, "--output", "json").json
        }

    assert listed() == {str(earned), str(failed)}
    assert listed("--status", "failed") == {str(failed)}
    assert listed("--method", "manual") == {str(earned)}
    assert listed("--status", "delivered") == set()
    assert command("rewards", "list", "--status", "lost").code == 2


def test_a_method_that_is_none(command: Command, campaign: Campaign) -> None:
    printed = command("rewards", "list", "--method", "post")
    assert printed.code == 2 and "allowed are email, webhook, manual" in printed.err


def test_one_that_was_handed_over_is_marked(command: Command, campaign: Campaign) -> None:
    user_reward = campaign.earn(campaign.add_reward("manual"))
    asked = command("rewards", "deliver", user_reward)
    assert asked.code == 3 and "marked as delivered" in asked.out
    assert campaign.row(user_reward) == ("earned",)
    printed = command("rewards", "deliver", user_reward, "--yes", "--output", "json")
    assert printed.json == {"marked_as_delivered": 1, "asked_for_again": 0}
    assert campaign.row(user_reward, "status, attempts, delivered_at IS NOT NULL") == ("delivered", 1, True)
    assert campaign.emitted() == []
    again = command("rewards", "deliver", user_reward, "--yes")
    assert again.code == 2 and "the user reward is delivered" in again.out


@pytest.mark.parametrize("method", ["email", "webhook"])
@pytest.mark.parametrize("failed", [False, True])
def test_others_are_asked_for_again_by_a_new_event(
    command: Command, campaign: Campaign, method: str, failed: bool
) -> None:
    endpoint = campaign.add_endpoint("https://example.com") if method == "webhook" else None
    user_reward = campaign.earn(campaign.add_reward(method, endpoint))
    if failed:
        fail(campaign, user_reward)
    before = campaign.row(user_reward, "status, attempts")
    printed = command("rewards", "deliver", user_reward, "--yes", "--output", "json")
    assert printed.json == {"marked_as_delivered": 0, "asked_for_again": 1}
    assert asked_for(campaign) == [str(user_reward)]
    assert campaign.row(user_reward, "status, attempts") == before, "the job alone changes it"


REVOKED = "UPDATE campaign_jobs.user_rewards SET status = 'revoked'"
EXPIRED = "UPDATE campaign_jobs.user_rewards SET expires_at = now()"
REMOVED = "UPDATE campaign_jobs.waitlist_users SET status = 'removed'"
DISABLED = "UPDATE campaign_jobs.webhook_endpoints SET status = 'disabled'"
CLAIMED = (
    "UPDATE campaign_jobs.user_rewards SET status = 'delivering', claim_token = gen_random_uuid(),"
    " claimed_until = now() + interval '1 minute'"
)


@pytest.mark.parametrize(
    ("method", "change", "why"),
    [
        ("manual", REVOKED, "the user reward is revoked"),
        ("webhook", REVOKED, "the user reward is revoked"),
        ("manual", EXPIRED, "the user reward expired"),
        ("email", EXPIRED, "the user reward expired"),
        ("manual", REMOVED, "the user is removed"),
        ("webhook", REMOVED, "the user is removed"),
        ("webhook", DISABLED, "its endpoint is disabled"),
        ("webhook", CLAIMED, "it is being delivered at this moment"),
    ],
)
def test_what_must_not_be_delivered_is_refused_with_the_reason(
    command: Command, campaign: Campaign, method: str, change: str, why: str
) -> None:
    endpoint = campaign.add_endpoint("https://example.com") if method == "webhook" else None
    user_reward = campaign.earn(campaign.add_reward(method, endpoint))
    campaign.connection.execute(change.encode())
    before = campaign.row(user_reward, "status, attempts, delivered_at")
    printed = command("rewards", "deliver", user_reward, "--yes")
    assert printed.code == 2 and why in printed.out
    assert campaign.row(user_reward, "status, attempts, delivered_at") == before
    assert campaign.emitted() == []


@pytest.mark.parametrize("method", ["manual", "email"])
def test_a_hold_refuses_it_and_all_that_was_named_with_it(
    command: Command, campaign: Campaign, method: str
) -> None:
    user_reward, fine = (
        campaign.earn(campaign.add_reward(method)),
        campaign.earn(campaign.add_reward("manual")),
    )
    campaign.open_case(user_reward)
    printed = command("rewards", "deliver", user_reward, fine, "--yes")
    assert printed.code == 2 and "a fraud case holds it" in printed.out
    assert campaign.row(user_reward) == campaign.row(fine) == ("earned",)
    assert campaign.emitted() == []


def test_a_user_reward_that_is_not_there(command: Command, campaign: Campaign) -> None:
    assert command("rewards", "deliver", uuid4(), "--yes").code == 2
    assert command("rewards", "deliver", "oops", "--yes").code == 2


def test_failed_ones_are_asked_for_again_by_campaign_reward_or_endpoint(
    command: Command, campaign: Campaign, connection: Connection
) -> None:
    endpoint, other_endpoint = (campaign.add_endpoint(f"https://{name}.example.com") for name in "ab")
    first, second = campaign.add_reward("webhook", endpoint), campaign.add_reward("webhook", other_endpoint)
    one, two, three = campaign.earn(first), campaign.earn(first), campaign.earn(second)
    elsewhere = Campaign(connection)
    four = elsewhere.earn(elsewhere.add_reward("email"))
    fail(campaign, one, two, three, four)
    campaign.earn(first)  # still on its way

    def plan(*options: Any) -> int:
        printed = command("rewards", "retry", *options)
        assert printed.code == 3, printed.err
        return int(printed.out.split()[-1])

    assert plan("--endpoint", other_endpoint) == 1
    assert plan("--reward", first) == 2
    assert plan("--campaign", elsewhere.id) == 1
    assert command("rewards", "retry").code == 2, "everything is meant only where somebody says so"
    assert campaign.emitted() == []
    printed = command("rewards", "retry", "--reward", first, "--yes", "--output", "json")
    assert printed.json == {"asked_for_again": 2}
    assert asked_for(campaign) == sorted([str(one), str(two)])
    assert command("rewards", "retry", "--all", "--yes", "--output", "json").json == {"asked_for_again": 2}
    assert len(asked_for(campaign)) == 4, "those that were asked for already are left alone"
    assert command("rewards", "retry", "--all", "--yes", "--output", "json").json == {"asked_for_again": 0}
    campaign.publish_all()
    assert command("rewards", "retry", "--all", "--yes", "--output", "json").json == {"asked_for_again": 4}


def test_a_retry_leaves_alone_what_cannot_go(command: Command, campaign: Campaign) -> None:
    held, manual, fine = (
        campaign.earn(campaign.add_reward("email")),
        campaign.earn(campaign.add_reward("manual")),
        campaign.earn(campaign.add_reward("email")),
    )
    fail(campaign, held, manual, fine)
    campaign.open_case(held)
    printed = command("rewards", "retry", "--all", "--yes")
    assert asked_for(campaign) == [str(fine)]
    assert "a fraud case holds it" in printed.out and "left to an operator" in printed.out


def test_more_than_a_page(command: Command, campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "AT_ONCE", 2)
    reward = campaign.add_reward("email")
    user_rewards = [campaign.earn(reward) for _ in range(5)]
    fail(campaign, *user_rewards)
    assert command("rewards", "retry", "--all").out.split()[-1] == "5", "nobody is counted twice"
    assert command("rewards", "retry", "--all", "--yes", "--output", "json").json == {"asked_for_again": 5}
    assert asked_for(campaign) == sorted(map(str, user_rewards))
