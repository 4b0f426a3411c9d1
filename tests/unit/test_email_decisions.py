"""Whether a mail may go, for any state of the database: the specification's sentences as properties."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from campaign_jobs.email.decisions import (
    HELD,
    SEND,
    Busy,
    Missing,
    Park,
    RewardState,
    Send,
    Settled,
    Skip,
    State,
    TooOld,
    Wrong,
    decide,
    exclusive_key,
    once_key,
)
from campaign_jobs.events import EmailJobPayload

CAMPAIGN, USER, OTHER, REWARD = (UUID(int=number) for number in range(1, 5))
NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
TYPES = ("verification", "welcome", "position_update", "reward_earned", "milestone")
UNSUBSCRIBABLE = ("welcome", "position_update", "milestone")


def payload(type_: str, **changes: Any) -> EmailJobPayload:
    needs = {"reward_earned": {"user_reward_id": REWARD}, "milestone": {"milestone": 10}}.get(type_, {})
    fields = {"type": type_, "campaign_id": CAMPAIGN, "user_id": USER, **needs, **changes}
    return EmailJobPayload.model_validate(fields)


FREE = State(
    now=NOW,
    campaign_status="active",
    user_status="pending",
    user_in_campaign=True,
    verified=False,
    suppressed=None,
    unsubscribed=False,
    held=False,
    message_status=None,
    is_too_old=False,
    is_another_mails=False,
    claimed_until=None,
    once_accepted=False,
    once_claimed_until=None,
    position=5,
    last_notified_position=9,
    last_notified_at=None,
    position_email_min_delta=1,
    position_email_cooldown=timedelta(hours=24),
    reward=RewardState(user_id=str(USER), status="delivering", delivery_method="email", expired=False),
)
"""A state in which every type may go."""

moments = st.none() | st.timedeltas(timedelta(days=-3), timedelta(days=3)).map(lambda delta: NOW + delta)
rewards = st.builds(
    RewardState,
    user_id=st.sampled_from([str(USER), str(OTHER)]),
    status=st.sampled_from(["earned", "delivering", "delivered", "failed", "redeemed", "revoked", "expired"]),
    delivery_method=st.sampled_from(["email", "webhook", "manual"]),
    expired=st.booleans(),
)
states = st.builds(
    State,
    now=st.just(NOW),
    campaign_status=st.sampled_from([None, "draft", "active", "active", "paused", "ended"]),
    user_status=st.sampled_from([None, "pending", "verified", "converted", "removed", "blocked"]),
    user_in_campaign=st.booleans(),
    verified=st.booleans(),
    suppressed=st.sampled_from([None, None, "bounce", "complaint", "manual"]),
    unsubscribed=st.booleans(),
    held=st.booleans(),
    message_status=st.sampled_from([None, "claimed", "released", "accepted", "skipped", "parked", "failed"]),
    is_too_old=st.just(False),
    is_another_mails=st.just(False),
    claimed_until=moments,
    once_accepted=st.booleans(),
    once_claimed_until=moments,
    position=st.none() | st.integers(1, 20),
    last_notified_position=st.integers(1, 20),
    last_notified_at=moments,
    position_email_min_delta=st.integers(1, 5),
    position_email_cooldown=st.timedeltas(timedelta(), timedelta(days=2)),
    reward=st.none() | rewards,
)
payloads = st.sampled_from(TYPES).map(payload)


@given(payloads, states)
def test_a_mail_goes_only_where_every_sentence_allows_it(mail: EmailJobPayload, state: State) -> None:
    if not isinstance(decide(mail, state), Send):
        return
    assert state.message_status not in ("accepted", "skipped")
    assert state.claimed_until is None or state.claimed_until <= NOW
    assert state.user_status in ("pending", "verified", "converted")
    assert state.user_in_campaign
    assert state.suppressed is None
    assert state.campaign_status == "active" or (
        state.campaign_status == "ended" and mail.type in ("verification", "reward_earned")
    )
    assert not state.once_accepted
    assert state.once_claimed_until is None or state.once_claimed_until <= NOW
    assert not (mail.type in UNSUBSCRIBABLE and state.unsubscribed)
    assert not (mail.type == "verification" and state.verified)
    if mail.type == "reward_earned":
        assert state.reward is not None
        assert state.reward.user_id == str(USER)
        assert state.reward.status not in ("revoked", "expired", "redeemed")
        assert not state.reward.expired
        assert not state.held
        assert (state.reward.status, state.reward.delivery_method) != ("delivered", "email")
    if mail.type == "position_update":
        assert state.position is not None
        assert state.position <= state.last_notified_position - state.position_email_min_delta
        assert state.last_notified_at is None or NOW - state.last_notified_at >= state.position_email_cooldown


@given(payloads, states)
def test_what_was_settled_is_never_decided_again(mail: EmailJobPayload, state: State) -> None:
    for status in ("accepted", "skipped"):
        assert decide(mail, replace(state, message_status=status)) == Settled(status)


@given(payloads, states)
def test_what_is_too_old_is_never_decided_about(mail: EmailJobPayload, state: State) -> None:
    assert decide(mail, replace(state, message_status=None, is_too_old=True)) == TooOld()


@given(payloads, states)
def test_an_id_that_is_another_mails_is_wrong_whatever_has_become_of_that(
    mail: EmailJobPayload, state: State
) -> None:
    assert isinstance(decide(mail, replace(state, is_another_mails=True)), Wrong)


@given(payloads, states)
def test_a_live_claim_is_left_alone_and_an_expired_one_is_as_none(
    mail: EmailJobPayload, state: State
) -> None:
    assume(state.message_status not in ("accepted", "skipped"))
    until = NOW + timedelta(seconds=1)
    assert decide(mail, replace(state, claimed_until=until)) == Busy(until)
    expired = replace(state, claimed_until=NOW, once_claimed_until=NOW - timedelta(seconds=1))
    assert decide(mail, expired) == decide(mail, replace(state, claimed_until=None, once_claimed_until=None))


@given(payloads, states)
def test_whoever_must_not_be_written_to_is_skipped_and_never_waits_as_a_parked_mail(
    mail: EmailJobPayload, state: State
) -> None:
    assume(state.message_status not in ("accepted", "skipped"))
    there = replace(
        state,
        claimed_until=None,
        campaign_status=state.campaign_status or "paused",
        user_in_campaign=True,
        reward=replace(FREE.reward, expired=True) if FREE.reward else None,
    )
    assert decide(mail, replace(there, user_status="removed")) == Skip("the user is removed")
    # What a case both blocks and holds comes back when it is dismissed.
    held = mail.type == "reward_earned" and there.held
    assert decide(mail, replace(there, user_status="blocked")) == Skip(
        HELD if held else "the user is blocked"
    )
    reachable = replace(there, user_status="pending", suppressed="bounce")
    assert decide(mail, reachable) == Skip("the address is suppressed: bounce")


@given(payloads, states)
def test_missing_rows_are_waited_for_whatever_else_is_the_case(mail: EmailJobPayload, state: State) -> None:
    assume(state.message_status not in ("accepted", "skipped"))
    open_ = replace(state, claimed_until=None, user_in_campaign=True)
    assert decide(mail, replace(open_, campaign_status=None)) == Missing("campaign")
    there = replace(open_, campaign_status="ended", user_status=None)
    assert decide(mail, there) == Missing("user")
    if mail.type == "reward_earned":
        assert decide(mail, replace(there, user_status="removed", reward=None)) == Missing("user reward")


@given(payloads, states)
def test_the_reason_is_there_and_names_nobody(mail: EmailJobPayload, state: State) -> None:
    decision = decide(mail, state)
    if isinstance(decision, (Skip, Park, Wrong)):
        assert decision.reason
        assert str(USER) not in decision.reason


@pytest.mark.parametrize("type_", TYPES)
def test_each_type_may_go(type_: str) -> None:
    assert decide(payload(type_), FREE) == SEND


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("status", ["paused", "draft"])
def test_a_paused_campaign_parks_its_mail(type_: str, status: str) -> None:
    assert decide(payload(type_), replace(FREE, campaign_status=status)) == Park(f"the campaign is {status}")


@pytest.mark.parametrize(
    ("type_", "changes", "decision"),
    [
        *((type_, {"campaign_status": "ended"}, SEND) for type_ in ("verification", "reward_earned")),
        *((type_, {"campaign_status": "ended"}, Skip("the campaign has ended")) for type_ in UNSUBSCRIBABLE),
        *((type_, {"unsubscribed": True}, Skip("the user has unsubscribed")) for type_ in UNSUBSCRIBABLE),
        *((type_, {"unsubscribed": True}, SEND) for type_ in ("verification", "reward_earned")),
        *((type_, {"verified": True}, SEND) for type_ in TYPES if type_ != "verification"),
        *((type_, {"held": True}, SEND) for type_ in TYPES if type_ != "reward_earned"),
        *(
            (type_, {"user_in_campaign": False}, Wrong("the user belongs to another campaign"))
            for type_ in TYPES
        ),
        ("verification", {"verified": True}, Skip("the user is verified already")),
        ("reward_earned", {"held": True}, Skip(HELD)),
        ("welcome", {"once_accepted": True}, Skip("it has been sent for another event")),
        ("welcome", {"once_claimed_until": NOW + timedelta(1)}, Busy(NOW + timedelta(1))),
        ("milestone", {"message_status": "failed"}, SEND),
        ("milestone", {"message_status": "parked"}, SEND),
        ("position_update", {"position": None}, Skip("the user has no position")),
    ],
)
def test_the_sentences_one_by_one(type_: str, changes: dict[str, Any], decision: Any) -> None:
    assert decide(payload(type_), replace(FREE, **changes)) == decision


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 10), st.integers(0, 48), st.integers(1, 48))
def test_a_position_update_goes_if_and_only_if_better_by_the_minimum_and_outside_the_cooldown(
    position: int, told: int, minimum: int, hours_ago: int, cooldown: int
) -> None:
    state = replace(
        FREE,
        position=position,
        last_notified_position=told,
        last_notified_at=NOW - timedelta(hours=hours_ago),
        position_email_min_delta=minimum,
        position_email_cooldown=timedelta(hours=cooldown),
    )
    goes = told - position >= minimum and hours_ago >= cooldown
    assert isinstance(decide(payload("position_update"), state), Send) == goes
    first = decide(payload("position_update"), replace(state, last_notified_at=None))
    assert isinstance(first, Send) == (told - position >= minimum)


def test_a_cooldown_of_millennia_is_only_a_long_one() -> None:
    state = replace(FREE, last_notified_at=NOW, position_email_cooldown=timedelta(days=10_000 * 365))
    assert isinstance(decide(payload("position_update"), state), Skip)


@pytest.mark.parametrize("status", ["revoked", "expired", "redeemed"])
def test_a_reward_that_is_over_is_not_told(status: str) -> None:
    assert FREE.reward is not None
    for method in ("email", "webhook", "manual"):
        reward = replace(FREE.reward, status=status, delivery_method=method)
        assert decide(payload("reward_earned"), replace(FREE, reward=reward)) == Skip(
            f"the reward is {status}"
        )


def test_a_reward_delivered_otherwise_may_still_be_told_but_not_one_that_the_mail_delivers() -> None:
    assert FREE.reward is not None
    delivered = replace(FREE.reward, status="delivered")
    mail = payload("reward_earned")
    assert decide(mail, replace(FREE, reward=delivered)) == Skip("the reward is delivered already")
    assert decide(mail, replace(FREE, reward=replace(delivered, delivery_method="webhook"))) == SEND
    assert isinstance(decide(mail, replace(FREE, reward=replace(delivered, user_id=str(OTHER)))), Wrong)


def test_once_keys_tell_apart_what_may_be_sent_side_by_side() -> None:
    mails = [
        payload("welcome"),
        payload("welcome", user_id=OTHER),
        payload("reward_earned"),
        payload("reward_earned", user_reward_id=OTHER),
        payload("milestone"),
        payload("milestone", milestone=25),
        payload("milestone", user_id=OTHER),
    ]
    for one, other in itertools.combinations(mails, 2):
        assert once_key(one) != once_key(other)
    # Of a user reward there is one, whoever a confused event names as its user.
    assert once_key(payload("reward_earned", user_id=OTHER)) == once_key(payload("reward_earned"))
    for type_ in ("verification", "position_update"):
        assert once_key(payload(type_)) is None
    assert exclusive_key(payload("verification")) is None
    assert exclusive_key(payload("position_update")) == exclusive_key(payload("position_update", priority=3))
    assert exclusive_key(payload("position_update")) != exclusive_key(
        payload("position_update", user_id=OTHER)
    )
