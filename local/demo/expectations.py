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
AFTER_UNSUBSCRIBING: Final = "after the unsubscriptions"
AFTER_FRAUD: Final = "after the fraud run"
AT_THE_END: Final = "at the end"
STAGES: Final = (AFTER_SIGNUPS, AFTER_VERIFYING, AFTER_UNSUBSCRIBING, AFTER_FRAUD, AT_THE_END)

BULK_TYPES: Final = ("welcome", "position_update", "milestone")
"""Who has unsubscribed gets none of these."""


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
        # The mails of a paused campaign wait until it goes on.
        waits = person.dawdles or person.campaign == PAUSED_CAMPAIGN
        return person.verifies and since(AFTER_FRAUD if waits else AFTER_VERIFYING, stage)

    def suppressed(self, person: Person, stage: str) -> str | None:
        """Why the address must not be written to in the moment that leads to `stage`."""
        if person.bounced or (person.bounces and since(AFTER_VERIFYING, stage)):
            return "bounce"
        return "complaint" if person.complains and since(AFTER_UNSUBSCRIBING, stage) else None

    def unsubscribed(self, person: Person, stage: str) -> bool:
        """In the moment that leads to `stage`."""
        return person.unsubscribed or (person.unsubscribes and since(AFTER_UNSUBSCRIBING, stage))

    def held(self, stage: str) -> set[str]:
        if not since(AFTER_FRAUD, stage):
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
        return self.earned(AT_THE_END)

    def earned(self, stage: str) -> list[ExpectedReward]:
        """Those that services know of by then."""
        return [
            self._reward(reward.key, person)
            for reward in self.cast.rewards.values()
            for person in self.cast.of(reward.campaign)
            if (
                reward.key in person.given_rewards and since(AFTER_VERIFYING, stage)
                if reward.referrals is None
                else self._brought[stage][person.key] >= reward.referrals
            )
        ]

    @cached_property
    def _brought(self) -> dict[str, Counter[str]]:
        """Referrals that verified, whatever the fraud job thinks of them: services go by these for rewards."""
        return {
            stage: Counter(
                person.referred_by
                for person in self.cast.people.values()
                if person.referred_by is not None and self.has_verified(person, stage)
            )
            for stage in STAGES
        }

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
        if reward.method == "email" and self.suppressed(person, AFTER_FRAUD):
            return ExpectedReward(key, person.key, "done", "failed")
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

    def withheld(self, person: Person, type_: str, stage: str) -> str | None:
        """Why a mail of this type is withheld in the moment that leads to `stage`, where its receiver is the reason."""
        if reason := self.suppressed(person, stage):
            return f"the address is suppressed: {reason}"
        if type_ in BULK_TYPES and self.unsubscribed(person, stage):
            return "the user has unsubscribed"
        return None

    @cached_property
    def asked(self) -> list[tuple[str, Person, str]]:
        """The mails that only their receivers can keep from going: type, receiver, and the stage that they lead to."""
        people = self.cast.people
        asked: list[tuple[str, Person, str]] = []
        for person in people.values():
            if person.leaves != "at signup":
                asked += [("verification", person, AFTER_SIGNUPS)] * person.verification_requests
            if person.asks_again:
                asked.append(("verification", person, AFTER_UNSUBSCRIBING))
            ended = self.cast.campaigns[person.campaign].status == "ended"
            if person.verifies and person.leaves is None and not ended:
                verified = next(stage for stage in STAGES if self.has_verified(person, stage))
                asked.append(("welcome", person, verified))
        asked += [("milestone", people[key], AT_THE_END) for key, _ in self.milestones()]
        asked += [
            ("reward_earned", people[expected.person], AT_THE_END)
            for expected in self.user_rewards
            if expected.status in ("delivered", "failed")
            and self.cast.rewards[expected.reward].method in ("email", "manual")
        ]
        for stage, told in zip(STAGES, self.told, strict=True):
            asked += [("position_update", people[key], stage) for key in told]
        return asked

    @cached_property
    def mails(self) -> Counter[tuple[str, str]]:
        """How many mails of a type each address gets."""
        mails: Counter[tuple[str, str]] = Counter()
        for type_, person, stage in self.asked:
            if self.withheld(person, type_, stage) is None:
                mails[type_, person.email] += 1
        # The launch is shorter than the rest between two position updates.
        return Counter(
            {(type_, email): 1 if type_ == "position_update" else n for (type_, email), n in mails.items()}
        )

    def gets(self, type_: str, person: Person) -> bool:
        return self.mails[type_, person.email] > 0

    @cached_property
    def withheld_mails(self) -> set[tuple[str, str, str]]:
        """Whom mails of which types did not go to, and why, where the receiver is the reason."""
        return {
            (person.key, type_, reason)
            for type_, person, stage in self.asked
            if (reason := self.withheld(person, type_, stage))
        }

    def delivery_status(self, person: Person, type_: str) -> str:
        """What SES reports in the end of a mail that it has taken."""
        if person.bounces:
            return "bounced"
        return "complained" if person.complains and type_ == "welcome" else "delivered"


def since(first: str, stage: str) -> bool:
    """Whether `stage` is `first` or comes later."""
    return STAGES.index(stage) >= STAGES.index(first)
