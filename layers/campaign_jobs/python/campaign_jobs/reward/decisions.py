"""How a user reward is delivered, and what an endpoint's answer means. Plain functions on plain data."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from campaign_jobs.worker.outcomes import Later, Skipped

TERMINAL_STATUSES: Final = frozenset({"delivered", "redeemed", "revoked", "expired"})
DELIVERABLE_USER_STATUSES: Final = frozenset({"pending", "verified", "converted"})

# Standard Webhooks' schedule: the wait after the first failed attempt, the second, and so on.
RETRY_SCHEDULE: Final = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
RETRY_JITTER: Final = 0.2
"""A wait is longer than the schedule's by up to this share of it."""

GONE: Final = 410
# An endpoint that only ever failed, this often and for this long, is disabled.
FAILURES_TO_DISABLE: Final = 10
FAILING_TO_DISABLE: Final = timedelta(hours=24)

# An endpoint that failed is left alone for half as long as it has been failing, between these two.
FIRST_REST: Final = RETRY_SCHEDULE[0]
LONGEST_REST: Final = timedelta(hours=1)

MAIL_PATIENCE: Final = timedelta(days=1)
"""A mail that nobody has touched for so long may be dead without a word: who asks for the delivery gets another."""

CHANGED_MEANWHILE: Final = Later("the user reward changed meanwhile", timedelta(seconds=1))


@dataclass(frozen=True)
class Endpoint:
    """Where a webhook goes."""

    id: UUID
    url: str = field(repr=False)
    secret: str = field(repr=False)
    previous_secret: str | None = field(repr=False)
    previous_secret_until: datetime | None
    status: str
    disabled_reason: str | None
    consecutive_failures: int
    rests_until: datetime | None
    """Until when nothing is sent to it, since it failed or asked for that."""

    def secrets(self, now: datetime) -> list[str]:
        """The secrets in force, the current one first."""
        if (
            self.previous_secret is None
            or self.previous_secret_until is None
            or self.previous_secret_until <= now
        ):
            return [self.secret]
        return [self.secret, self.previous_secret]


@dataclass(frozen=True)
class UserReward:
    """One row of user_rewards with all that its delivery depends on, at the moment `now` of the database."""

    now: datetime
    id: UUID
    campaign_id: UUID
    status: str
    occurrence: int
    data: dict[str, Any] = field(repr=False)
    earned_at: datetime
    expires_at: datetime | None
    claimed_until: datetime | None
    mail_on_its_way: bool
    """Its mail was asked for, is not settled, and is parked or was touched within MAIL_PATIENCE."""
    held: bool
    user_id: UUID
    user_email: str = field(repr=False)
    user_status: str
    reward_id: UUID
    reward_name: str
    reward_type: str
    delivery_method: str
    endpoint: Endpoint | None


@dataclass(frozen=True)
class DeliverByEmail:
    """Hand it to the email job."""


@dataclass(frozen=True)
class DeliverByWebhook:
    """Post it to this endpoint."""

    endpoint: Endpoint


@dataclass(frozen=True)
class Hold:
    """A fraud case holds it; it waits for the case's dismissal."""


@dataclass(frozen=True)
class Park:
    """Its endpoint is disabled; it waits until the endpoint is enabled again."""

    reason: str


@dataclass(frozen=True)
class Rest:
    """Its endpoint has just failed, and is left alone for this long."""

    left: timedelta


Decision = DeliverByEmail | DeliverByWebhook | Hold | Park | Rest | Skipped | Later


def decide(user_reward: UserReward) -> Decision:
    """What to do now for an event that asks for this delivery.

    A campaign's status makes no difference: who has earned a reward gets it, and the email job parks the mail of a
    paused campaign.
    """
    if user_reward.status in TERMINAL_STATUSES:
        return Skipped(f"the user reward is {user_reward.status}")
    if user_reward.claimed_until is not None and user_reward.claimed_until > user_reward.now:
        return Later("another delivery of it is on its way", user_reward.claimed_until - user_reward.now)
    by_email = user_reward.delivery_method == "email"
    if by_email and user_reward.mail_on_its_way:
        return Skipped("its mail is on its way")
    if user_reward.expires_at is not None and user_reward.expires_at <= user_reward.now:
        return Skipped("the user reward expired")
    # Before the user's status: a case that blocks holds too, and what it withheld comes back when it is dismissed.
    if user_reward.held:
        return Hold()
    if user_reward.user_status not in DELIVERABLE_USER_STATUSES:
        return Skipped(f"the user is {user_reward.user_status}")
    if by_email:
        return DeliverByEmail()
    if user_reward.endpoint is None:
        return Skipped("manual delivery waits for an operator")
    if user_reward.endpoint.status == "disabled":
        return Park(user_reward.endpoint.disabled_reason or "the endpoint is disabled")
    if user_reward.endpoint.rests_until is not None and user_reward.endpoint.rests_until > user_reward.now:
        return Rest(user_reward.endpoint.rests_until - user_reward.now)
    return DeliverByWebhook(user_reward.endpoint)


def retry_delay(attempts_spent: int, retry_after: timedelta | None, jitter: float) -> timedelta:
    """The wait before the next attempt.

    `attempts_spent` are the failed attempts before this one, `jitter` is a random number from 0 to 1. What the endpoint
    asked for is honored where it is longer.
    """
    scheduled = RETRY_SCHEDULE[min(attempts_spent, len(RETRY_SCHEDULE) - 1)]
    return max(scheduled * (1 + RETRY_JITTER * jitter), retry_after or timedelta())


def after_rest(left: timedelta, jitter: float) -> timedelta:
    """The wait of a delivery whose endpoint rests for `left`; `jitter` is a random number from 0 to 1.

    Spread over as much time again, so that whoever comes first finds out alone whether the endpoint is back.
    """
    return left + jitter * max(left, FIRST_REST)


def is_delivered(status: int | None) -> bool:
    """Only a 2xx is a delivery; a redirect is a failure like any other."""
    return status is not None and 200 <= status < 300
