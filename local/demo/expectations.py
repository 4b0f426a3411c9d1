"""What the launch should lead to, worked out from the script alone: positions, mails, rewards, cases."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from campaign_jobs.position.decisions import (
    Referral,
    Standing,
    is_worth_telling,
    rank,
    verified_referrals,
)
from local.demo.cast import MAIN_CAMPAIGN, PAUSED_CAMPAIGN, Cast, Person

AFTER_SIGNUPS: Final = "after the signups"
AFTER_VERIFYING: Final = "after the verifications"
AFTER_FRAUD: Final = "after the fraud run"
AT_THE_END: Final = "at the end"
STAGES: Final = (AFTER_SIGNUPS, AFTER_VERIFYING, AFTER_FRAUD, AT_THE_END)


@dataclass(frozen=True)
class ExpectedReward:
    """One user reward, and what becomes of it."""

    reward: str
    person: str
    delivery: str
    """What its delivery's event comes to: done or skipped."""
    status: str
    waits: str | None = None
    """`held` or `parked`, where it waits as earned."""


class Expectations:
    """Worked out from the cast; nothing here looks at the system."""

    def __init__(self, cast: Cast) -> None:
        self.cast = cast

    def is_removed(self, person: Person, stage: str) -> bool:
        if stage == AFTER_SIGNUPS:
            return person.leaves == "at signup"
        return person.leaves is not None

    def has_verified(self, person: Person, stage: str) -> bool:
        if not person.verifies or stage == AFTER_SIGNUPS:
            return False
        # Their mails wait until the campaign goes on.
        return person.campaign != PAUSED_CAMPAIGN or stage != AFTER_VERIFYING

    def held(self, stage: str) -> set[str]:
        if stage in (AFTER_SIGNUPS, AFTER_VERIFYING):
            return set()
        return {
            person.key
            for person in self.cast.people.values()
            if person.held and not (stage == AT_THE_END and person.decision == "dismiss")
        }

    def counted_referrals(self, campaign: str, stage: str) -> dict[str, int]:
        """Referrals that count, by referrer."""
        cast = self.cast
        referrals = [
            Referral(cast.user_id(person.referred_by), cast.user_id(person.key), "verified")
            for person in cast.of(campaign)
            if person.referred_by is not None and self.has_verified(person, stage)
        ]
        counts = verified_referrals(referrals, {cast.user_id(key) for key in self.held(stage)})
        return {
            person.key: counts[cast.user_id(person.key)]
            for person in cast.of(campaign)
            if cast.user_id(person.key) in counts
        }

    def positions(self, campaign: str, stage: str) -> dict[str, int]:
        """The position of everybody who is ranked, by the reference that the SQL is tested against."""
        cast = self.cast
        referrals = self.counted_referrals(campaign, stage)
        key_of = {cast.user_id(person.key): person.key for person in cast.of(campaign)}
        standings = [
            Standing(
                user_id=cast.user_id(person.key),
                original_position=cast.original_positions[person.key],
                created_at=cast.joined_at(person),
                verified_referrals=referrals.get(person.key, 0),
            )
            for person in cast.of(campaign)
            if not self.is_removed(person, stage)
        ]
        ranking = rank(standings, cast.campaigns[campaign].points_per_referral)
        return {key_of[user_id]: position for user_id, position in ranking.items()}

    @cached_property
    def told(self) -> list[set[str]]:
        """Who is told of a better position, stage by stage."""
        told: list[set[str]] = []
        last = dict(self.cast.original_positions)
        for stage in STAGES:
            told.append(set())
            for campaign in (MAIN_CAMPAIGN, PAUSED_CAMPAIGN):
                if stage == AFTER_SIGNUPS and campaign == PAUSED_CAMPAIGN:
                    continue
                min_delta = self.cast.campaigns[campaign].position_email_min_delta
                for key, position in self.positions(campaign, stage).items():
                    if is_worth_telling(last[key], position, min_delta):
                        last[key] = position
                        told[-1].add(key)
        return told

    @cached_property
    def user_rewards(self) -> list[ExpectedReward]:
        expected = []
        for reward in self.cast.rewards.values():
            for person in self.cast.of(reward.campaign):
                earned = (
                    reward.key in person.given_rewards
                    if reward.referrals is None
                    else self._brought[person.key] >= reward.referrals
                )
                if earned:
                    expected.append(self._reward(reward.key, person))
        return expected

    @cached_property
    def _brought(self) -> Counter[str]:
        """Referrals that verified, whatever the fraud job thinks of them: services go by these for rewards."""
        return Counter(
            person.referred_by
            for person in self.cast.people.values()
            if person.referred_by is not None and person.verifies
        )

    def _reward(self, key: str, person: Person) -> ExpectedReward:
        reward = self.cast.rewards[key]
        if person.leaves is not None:
            return ExpectedReward(key, person.key, "skipped", "earned")
        if person.held and person.decision is None:
            return ExpectedReward(key, person.key, "skipped", "earned", waits="held")
        if person.decision == "confirm":
            return ExpectedReward(key, person.key, "skipped", "revoked", waits="held")
        delivery = "skipped" if person.held else "done"
        if reward.method == "manual":
            first = next(p.key for p in self.cast.people.values() if key in p.given_rewards)
            return ExpectedReward(
                key, person.key, "skipped", "delivered" if person.key == first else "earned"
            )
        if reward.endpoint == "gone":
            return ExpectedReward(key, person.key, "skipped", "earned", waits="parked")
        return ExpectedReward(key, person.key, delivery, "delivered")

    def milestones(self) -> list[tuple[str, int]]:
        """Who has reached what, once cheaters do not count: people and milestones that a service asks mails for."""
        return [
            (person, milestone)
            for campaign in (MAIN_CAMPAIGN, PAUSED_CAMPAIGN)
            for person, count in self.counted_referrals(campaign, AFTER_FRAUD).items()
            if self.cast.people[person].leaves is None
            for milestone in self.cast.campaigns[campaign].milestones
            if count >= milestone
        ]

    def gets_bulk_mail(self, person: Person) -> bool:
        return person.leaves is None and not person.bounced and not person.unsubscribed

    @cached_property
    def mails(self) -> Counter[tuple[str, str]]:
        """How many mails of a type each address gets."""
        people = self.cast.people
        mails: Counter[tuple[str, str]] = Counter()
        for person in people.values():
            if person.leaves != "at signup" and not person.bounced:
                mails["verification", person.email] += person.verification_requests
            ended = self.cast.campaigns[person.campaign].status == "ended"
            if person.verifies and self.gets_bulk_mail(person) and not ended:
                mails["welcome", person.email] += 1
        for key, _ in self.milestones():
            if self.gets_bulk_mail(people[key]):
                mails["milestone", people[key].email] += 1
        for key in set().union(*self.told):
            if self.gets_bulk_mail(people[key]):
                mails["position_update", people[key].email] += 1
        for expected in self.user_rewards:
            if expected.status == "delivered" and self.cast.rewards[expected.reward].method in (
                "email",
                "manual",
            ):
                mails["reward_earned", people[expected.person].email] += 1
        return mails
