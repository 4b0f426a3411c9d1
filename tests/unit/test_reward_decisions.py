"""How a user reward is delivered is decided by plain functions."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_jobs.reward.decisions import (
    FIRST_REST,
    RETRY_SCHEDULE,
    DeliverByEmail,
    DeliverByWebhook,
    Endpoint,
    Hold,
    Park,
    Rest,
    UserReward,
    after_rest,
    decide,
    is_delivered,
    retry_delay,
)
from campaign_jobs.reward.webhooks.client import parse_retry_after
from campaign_jobs.worker.outcomes import Later, Skipped

NOW = datetime(2025, 1, 1, 12, tzinfo=UTC)
SOON = NOW + timedelta(seconds=40)
BEFORE = NOW - timedelta(seconds=1)
ENDPOINT = Endpoint(
    id=uuid.uuid4(),
    url="https://hooks.example.com/?token=t0ken",
    secret="whsec_current",
    previous_secret="whsec_previous",
    previous_secret_until=SOON,
    status="enabled",
    disabled_reason=None,
    consecutive_failures=0,
    rests_until=None,
)


def user_reward(method: str = "webhook", **changes: Any) -> UserReward:
    values: dict[str, Any] = {
        "now": NOW,
        "id": uuid.uuid4(),
        "campaign_id": uuid.uuid4(),
        "status": "earned",
        "occurrence": 1,
        "data": {"code": "c0de"},
        "earned_at": BEFORE,
        "expires_at": None,
        "claimed_until": None,
        "mail_on_its_way": False,
        "held": False,
        "user_id": uuid.uuid4(),
        "user_email": "person@example.com",
        "user_status": "verified",
        "reward_id": uuid.uuid4(),
        "reward_name": "Early access",
        "reward_type": "early_access",
        "delivery_method": method,
        "endpoint": ENDPOINT if method == "webhook" else None,
    }
    return UserReward(**(values | changes))


@pytest.mark.parametrize("status", ["earned", "failed"])
def test_each_method_has_its_delivery(status: str) -> None:
    assert decide(user_reward("email", status=status)) == DeliverByEmail()
    assert decide(user_reward("webhook", status=status)) == DeliverByWebhook(ENDPOINT)
    assert decide(user_reward("manual", status=status)) == Skipped("manual delivery waits for an operator")


@pytest.mark.parametrize("method", ["email", "webhook", "manual"])
@pytest.mark.parametrize("status", ["delivered", "redeemed", "revoked", "expired"])
def test_what_is_over_stays_over_whatever_else_is_true(method: str, status: str) -> None:
    over = user_reward(method, status=status, held=True, claimed_until=SOON, user_status="removed")
    assert decide(over) == Skipped(f"the user reward is {status}")


@pytest.mark.parametrize("method", ["email", "webhook", "manual"])
def test_an_expiry_in_the_past_is_over_and_one_to_come_is_not(method: str) -> None:
    assert decide(user_reward(method, expires_at=NOW)) == Skipped("the user reward expired")
    assert decide(user_reward(method, expires_at=SOON)) == decide(user_reward(method))


@pytest.mark.parametrize("user_status", ["removed", "blocked"])
def test_removed_and_blocked_users_get_nothing(user_status: str) -> None:
    assert decide(user_reward(user_status=user_status)) == Skipped(f"the user is {user_status}")


def test_a_live_claim_is_waited_for_and_an_expired_one_taken_over() -> None:
    live = decide(user_reward(status="delivering", claimed_until=SOON))
    assert isinstance(live, Later) and live.after == timedelta(seconds=40)
    assert decide(user_reward(status="delivering", claimed_until=NOW)) == DeliverByWebhook(ENDPOINT)


def test_a_mail_on_its_way_is_not_asked_for_again() -> None:
    on_its_way = user_reward("email", status="delivering", mail_on_its_way=True)
    assert decide(on_its_way) == Skipped("its mail is on its way")
    assert decide(user_reward("email", status="delivering")) == DeliverByEmail()
    assert decide(user_reward(status="delivering", mail_on_its_way=True)) == DeliverByWebhook(ENDPOINT)


@pytest.mark.parametrize("method", ["email", "webhook", "manual"])
def test_a_hold_stops_every_method(method: str) -> None:
    assert decide(user_reward(method, held=True)) == Hold()


@pytest.mark.parametrize("method", ["email", "webhook", "manual"])
def test_a_hold_of_a_blocked_user_waits_for_the_case(method: str) -> None:
    assert decide(user_reward(method, held=True, user_status="blocked")) == Hold()


def test_a_disabled_endpoint_parks_with_its_reason() -> None:
    disabled = replace(ENDPOINT, status="disabled", disabled_reason="it answered 410 Gone")
    assert decide(user_reward(endpoint=disabled)) == Park("it answered 410 Gone")


def test_an_endpoint_that_rests_is_left_alone_until_then() -> None:
    assert decide(user_reward(endpoint=replace(ENDPOINT, rests_until=SOON))) == Rest(timedelta(seconds=40))
    rested = replace(ENDPOINT, rests_until=NOW)
    assert decide(user_reward(endpoint=rested)) == DeliverByWebhook(rested)
    resting_and_disabled = replace(ENDPOINT, rests_until=SOON, status="disabled")
    assert decide(user_reward(endpoint=resting_and_disabled)) == Park("the endpoint is disabled")


@given(st.timedeltas(timedelta(), timedelta(days=1)), st.floats(0, 1))
def test_who_waits_for_a_rest_comes_after_it_and_not_all_at_once(left: timedelta, jitter: float) -> None:
    assert left <= after_rest(left, jitter) <= left + max(left, FIRST_REST)
    assert after_rest(left, 1) - after_rest(left, 0) >= FIRST_REST


def test_the_previous_secret_signs_until_its_end() -> None:
    assert ENDPOINT.secrets(NOW) == ["whsec_current", "whsec_previous"]
    assert ENDPOINT.secrets(SOON) == ["whsec_current"]
    assert replace(ENDPOINT, previous_secret=None, previous_secret_until=None).secrets(NOW) == [
        "whsec_current"
    ]


def test_no_secret_address_or_token_is_in_a_representation() -> None:
    shown = repr(user_reward())
    for text in ("whsec_", "t0ken", "person@example.com", "c0de"):
        assert text not in shown


@given(st.integers(0, 100), st.floats(0, 1), st.timedeltas(timedelta(), timedelta(hours=24)) | st.none())
def test_a_retry_waits_as_scheduled_and_as_long_as_the_endpoint_asks(
    attempts_spent: int, jitter: float, retry_after: timedelta | None
) -> None:
    scheduled = RETRY_SCHEDULE[min(attempts_spent, 8)]
    delay = retry_delay(attempts_spent, retry_after, jitter)
    assert delay >= max(scheduled, retry_after or timedelta())
    assert delay <= max(scheduled * 1.2, retry_after or timedelta())


def test_retries_are_spread_as_standard_webhooks_says() -> None:
    assert [retry_delay(spent, None, 0) / timedelta(seconds=1) for spent in range(9)] == [
        5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400,
    ]  # fmt: skip


def test_only_a_2xx_is_a_delivery() -> None:
    delivered = [status for status in range(100, 600) if is_delivered(status)]
    assert delivered == list(range(200, 300))
    assert not is_delivered(None)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("99999999999999", 86_400),
        ("9" * 18, 86_400),
        ("Wed, 01 Jan 2025 12:01:00 GMT", 60),
        ("Wed, 01 Jan 2025 11:00:00 GMT", 0),
        ("Fri, 01 Jan 2027 00:00:00 GMT", 86_400),
        ("Wednesday, 01-Jan-25 12:01:00 GMT", 60),
        ("Wed, 01 Jan 2025 12:01:00 -0000", 60),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 5_000, None),
        ("", None),
    ],
)
def test_retry_after_is_read_and_bounded(value: str, seconds: float | None) -> None:
    expected = None if seconds is None else timedelta(seconds=seconds)
    assert parse_retry_after(value, now=NOW) == expected
