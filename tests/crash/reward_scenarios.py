"""The reward job at its boundaries."""

from collections import Counter
from typing import Any
from uuid import UUID

from campaign_jobs.database.connection import Connection
from tests.crash.scenario import Rest, Scenario, retried
from tests.integration.reward_campaign import Campaign

HOOK = "https://receiver/rewards"
TRIES = frozenset(
    {
        ("user_rewards", "attempts"),
        ("webhook_attempts", "*"),
        ("webhook_endpoints", "consecutive_failures"),
        ("webhook_endpoints", "failing_since"),
        ("webhook_endpoints", "rests_until"),
    }
)
"""An attempt that was never recorded is missing in each of these, and so is its failure."""


def _event(user_reward: UUID) -> dict[str, Any]:
    return {
        "id": f"deliver-{user_reward}",
        "type": "job.reward.deliver",
        "data": {"user_reward_id": str(user_reward)},
        "timestamp": "2026-03-01T12:00:00Z",
    }


def _statuses(rest: Rest) -> Counter[tuple[Any, ...]]:
    return Counter(
        rest.rows(
            "SELECT delivery_method, status, held_at IS NOT NULL, parked_at IS NOT NULL"
            " FROM campaign_jobs.user_rewards JOIN campaign_jobs.rewards ON rewards.id = reward_id"
        )
    )


def _every_method(connection: Connection) -> list[Any]:
    campaign = Campaign(connection)
    hooked = campaign.add_reward("webhook", campaign.add_endpoint(HOOK))
    disabled = campaign.add_endpoint(HOOK)
    connection.execute(
        "UPDATE campaign_jobs.webhook_endpoints SET status = 'disabled', disabled_at = now(),"
        " disabled_reason = 'it answered 410 Gone' WHERE id = %s",
        (disabled,),
    )
    held = campaign.earn(hooked)
    campaign.open_case(held)
    user_rewards = [
        campaign.earn(campaign.add_reward("email")),
        *(campaign.earn(hooked) for _ in range(3)),
        campaign.earn(campaign.add_reward("manual")),
        held,
        campaign.earn(campaign.add_reward("webhook", disabled)),
        UUID(int=1),  # which never comes
    ]
    return [_event(user_reward) for user_reward in user_rewards]


def _every_method_ends(rest: Rest) -> None:
    assert _statuses(rest) == {
        ("email", "delivering", False, False): 1,
        ("webhook", "delivered", False, False): 3,
        ("manual", "earned", False, False): 1,
        ("webhook", "earned", True, False): 1,
        ("webhook", "earned", False, True): 1,
    }
    assert rest.rows("SELECT event->>'type' FROM campaign_jobs.outbox") == [("job.email.reward_earned",)]
    assert sorted(rest.outside.webhooks.values()) == [1, 1, 1]
    assert len(rest.outside.dead_letters) == 1


def _one_webhook(connection: Connection) -> list[Any]:
    campaign = Campaign(connection)
    return [_event(campaign.earn(campaign.add_reward("webhook", campaign.add_endpoint(HOOK))))]


def _delivered(rest: Rest) -> None:
    assert _statuses(rest) == {("webhook", "delivered", False, False): 1}
    assert list(rest.outside.webhooks.values()) == [1]
    assert not rest.outside.dead_letters


def _last_attempt(connection: Connection) -> list[Any]:
    return [retried(_one_webhook(connection)[0], attempts=9)]


def _failed(rest: Rest) -> None:
    assert _statuses(rest) == {("webhook", "failed", False, False): 1}
    assert len(rest.outside.dead_letters) == 1


def _gone(rest: Rest) -> None:
    assert _statuses(rest) == {("webhook", "earned", False, True): 1}
    assert rest.rows("SELECT status FROM campaign_jobs.webhook_endpoints") == [("disabled",)]


def _unsafe(connection: Connection) -> list[Any]:
    campaign = Campaign(connection)
    endpoint = campaign.add_endpoint("https://127.0.0.1:1/rewards")
    return [_event(campaign.earn(campaign.add_reward("webhook", endpoint)))]


def _three_webhooks(connection: Connection) -> list[Any]:
    campaign = Campaign(connection)
    hooked = campaign.add_reward("webhook", campaign.add_endpoint(HOOK))
    return [_event(campaign.earn(hooked)) for _ in range(3)]


def _all_delivered(rest: Rest) -> None:
    assert _statuses(rest) == {("webhook", "delivered", False, False): 3}
    assert list(rest.outside.webhooks.values()) == [1, 1, 1]


SCENARIOS = [
    Scenario(
        name="reward: a batch with every method",
        function="reward",
        source="kafka",
        seed=_every_method,
        expect=_every_method_ends,
    ),
    Scenario(
        name="reward: a webhook that fails at first",
        function="reward",
        source="kafka",
        seed=_one_webhook,
        webhooks=(500, 200),
        expect=_delivered,
        ignored=TRIES,
    ),
    Scenario(
        name="reward: the last attempt fails",
        function="reward",
        source="retry queue",
        seed=_last_attempt,
        webhooks=(500,),
        expect=_failed,
        ignored=TRIES,
    ),
    Scenario(
        name="reward: an endpoint that is gone",
        function="reward",
        source="kafka",
        seed=_one_webhook,
        webhooks=(410,),
        expect=_gone,
        ignored=TRIES,
    ),
    Scenario(
        name="reward: a target that is not safe",
        function="reward",
        source="kafka",
        seed=_unsafe,
        expect=_failed,
        ignored=TRIES,
    ),
    Scenario(
        name="reward: no time after the first pool-full",
        function="reward",
        source="kafka",
        seed=_three_webhooks,
        late_after=("after webhook answer in reward.webhooks.transport:post", 2),
        expect=_all_delivered,
    ),
]
