"""What a score and a position are, as plain functions: the reference that the SQL of `run` is tested against."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True)
class Standing:
    """What the position of one ranked user depends on."""

    user_id: UUID
    original_position: int
    created_at: datetime
    verified_referrals: int = 0


@dataclass(frozen=True)
class Referral:
    referrer_id: UUID
    referred_id: UUID
    status: str


def is_ranked(user_status: str) -> bool:
    """Whether a user of this status takes part in the ranking."""
    return user_status not in ("removed", "blocked")


def verified_referrals(referrals: Iterable[Referral], held: Collection[UUID]) -> dict[UUID, int]:
    """How many referrals count for each referrer: verified or converted, with a hold on neither side."""
    counts: dict[UUID, int] = {}
    for referral in referrals:
        counts_at_all = referral.status in ("verified", "converted")
        if counts_at_all and referral.referrer_id not in held and referral.referred_id not in held:
            counts[referral.referrer_id] = counts.get(referral.referrer_id, 0) + 1
    return counts


def score(original_position: int, verified_referrals: int, points_per_referral: int) -> int:
    """Position = Original Position − (Verified Referrals × Points Per Referral); may well be negative."""
    return original_position - verified_referrals * points_per_referral


def rank(standings: Iterable[Standing], points_per_referral: int) -> dict[UUID, int]:
    """The position of each: 1…n by score, then more verified referrals, then who came first, then the id."""
    ordered = sorted(
        standings,
        key=lambda standing: (
            score(standing.original_position, standing.verified_referrals, points_per_referral),
            -standing.verified_referrals,
            standing.created_at,
            standing.user_id,
        ),
    )
    return {standing.user_id: position for position, standing in enumerate(ordered, start=1)}


def is_worth_telling(last_enqueued_position: int, position: int, min_delta: int) -> bool:
    """Whether a user is told of a position: only of a better one, and better by at least the campaign's minimum."""
    return last_enqueued_position - position >= min_delta
