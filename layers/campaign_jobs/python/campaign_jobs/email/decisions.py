"""May this mail go now? Plain functions on plain data."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from campaign_jobs.events import EmailJobPayload

UNSUBSCRIBABLE: Final = frozenset({"welcome", "position_update", "milestone"})
SENT_WHEN_ENDED: Final = frozenset({"verification", "reward_earned"})
# A status of a reward in which there is nothing left to tell.
OVER: Final = frozenset({"revoked", "expired", "redeemed"})
HELD: Final = "a fraud case holds the reward"
TOO_OLD: Final = "too old: what became of an event of that time is kept no longer"


@dataclass(frozen=True)
class RewardState:
    """What is known of the user reward that a mail is about."""

    user_id: str
    status: str
    delivery_method: str
    expired: bool


@dataclass(frozen=True)
class State:
    """What the database says about one email event at the moment of sending."""

    now: datetime
    campaign_status: str | None
    """None: the campaign is not there (yet)."""
    user_status: str | None
    """None: the user is not there (yet)."""
    user_in_campaign: bool
    verified: bool
    suppressed: str | None
    """Why the address must not be written to."""
    unsubscribed: bool
    held: bool
    message_status: str | None
    """The status of this event's own row in email_messages, if it has one."""
    is_too_old: bool
    """It has no row, and is from so long ago that its row may have been deleted."""
    is_another_mails: bool
    """The row is that of a mail of another type, to another user or with another once-key."""
    claimed_until: datetime | None
    """The end of the claim on this event's row."""
    once_accepted: bool
    """Another event's mail has used up the once-key."""
    once_claimed_until: datetime | None
    """The end of another event's claim on the once-key, or on the user's position updates."""
    position: int | None
    last_notified_position: int
    """The position of the last accepted position_update; at first the original one."""
    last_notified_at: datetime | None
    position_email_min_delta: int
    position_email_cooldown: timedelta
    reward: RewardState | None


@dataclass(frozen=True)
class Send:
    """It may go."""


@dataclass(frozen=True)
class Skip:
    """It must not go, now or ever."""

    reason: str


@dataclass(frozen=True)
class Park:
    """It may go some day: it waits as a row, and relay emits it again."""

    reason: str


@dataclass(frozen=True)
class Settled:
    """What had to be done for this event has been done before."""

    status: str


@dataclass(frozen=True)
class TooOld:
    """What became of this event is kept no longer, so that sending it might send it a second time."""


@dataclass(frozen=True)
class Busy:
    """Somebody else is at it until then."""

    until: datetime


@dataclass(frozen=True)
class Missing:
    """A row that the event names is not there; services publish before they commit."""

    what: str


@dataclass(frozen=True)
class Wrong:
    """The event contradicts the database and will always do so."""

    reason: str


Decision = Send | Skip | Park | Settled | TooOld | Busy | Missing | Wrong
SEND: Final = Send()


def once_key(payload: EmailJobPayload) -> str | None:
    """What may be mailed only once; None where each event is a mail of its own."""
    match payload.type:
        case "welcome":
            return f"welcome:{payload.user_id}"
        case "reward_earned":
            return f"reward_earned:{payload.user_reward_id}"
        case "milestone":
            return f"milestone:{payload.user_id}:{payload.milestone}"
        case _:
            return None


def exclusive_key(payload: EmailJobPayload) -> str | None:
    """Of which only one mail may be on its way at any moment: the once-key, or a user's position updates."""
    return f"position_update:{payload.user_id}" if payload.type == "position_update" else once_key(payload)


def decide(payload: EmailJobPayload, state: State) -> Decision:
    """Decide about one event. What has been done comes first, then what is missing, then who must not be written to."""
    if state.is_another_mails:
        return Wrong("the event's id was used before, for another mail")
    if state.message_status in ("accepted", "skipped"):
        return Settled(state.message_status)
    if state.is_too_old:
        return TooOld()
    if state.claimed_until is not None and state.claimed_until > state.now:
        return Busy(state.claimed_until)
    return (
        _missing_or_wrong(payload, state)
        or _receiver(payload, state)
        or _campaign(payload, state)
        or _once(state)
        or _of_type(payload, state)
        or SEND
    )


def _missing_or_wrong(payload: EmailJobPayload, state: State) -> Decision | None:
    if state.campaign_status is None:
        return Missing("campaign")
    if state.user_status is None:
        return Missing("user")
    if not state.user_in_campaign:
        return Wrong("the user belongs to another campaign")
    if payload.type == "reward_earned":
        if state.reward is None:
            return Missing("user reward")
        if state.reward.user_id != str(payload.user_id):
            return Wrong("the user reward belongs to another user")
    return None


def _receiver(payload: EmailJobPayload, state: State) -> Decision | None:
    if payload.type == "reward_earned" and state.user_status == "blocked" and state.held:
        # The case that blocks may be dismissed, and then the reward is due after all.
        return Skip(HELD)
    if state.user_status in ("removed", "blocked"):
        return Skip(f"the user is {state.user_status}")
    if state.suppressed is not None:
        return Skip(f"the address is suppressed: {state.suppressed}")
    if payload.type in UNSUBSCRIBABLE and state.unsubscribed:
        return Skip("the user has unsubscribed")
    return None


def _campaign(payload: EmailJobPayload, state: State) -> Decision | None:
    if state.campaign_status == "ended" and payload.type not in SENT_WHEN_ENDED:
        return Skip("the campaign has ended")
    if state.campaign_status in ("paused", "draft"):
        return Park(f"the campaign is {state.campaign_status}")
    return None


def _once(state: State) -> Decision | None:
    if state.once_accepted:
        return Skip("it has been sent for another event")
    if state.once_claimed_until is not None and state.once_claimed_until > state.now:
        return Busy(state.once_claimed_until)
    return None


def _of_type(payload: EmailJobPayload, state: State) -> Decision | None:
    match payload.type:
        case "verification" if state.verified:
            return Skip("the user is verified already")
        case "reward_earned":
            return _reward(state)
        case "position_update":
            return _position(state)
        case _:
            return None


def _reward(state: State) -> Decision | None:
    assert state.reward is not None
    if state.reward.status in OVER or state.reward.expired:
        return Skip(f"the reward is {'expired' if state.reward.expired else state.reward.status}")
    if state.reward.delivery_method == "email" and state.reward.status == "delivered":
        return Skip("the reward is delivered already")
    if state.held:
        return Skip(HELD)
    return None


def _position(state: State) -> Decision | None:
    if state.position is None:
        return Skip("the user has no position")
    if state.last_notified_position - state.position < state.position_email_min_delta:
        return Skip("the position is not better by the campaign's minimum than the one last told")
    if (
        state.last_notified_at is not None
        and state.now - state.last_notified_at < state.position_email_cooldown
    ):
        return Skip("the last position update is too recent")
    return None
