"""What a seed decides: people, campaigns, rewards, events with the end that each must come to, and what breaks when.

The data, the order of publication and the plan of faults are the same for the same seed and number of events. What the
processes make of it is not: which batch a kill hits is the operating system's affair.
"""

import json
import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from campaign_jobs import catalog
from campaign_jobs.events import (
    EmailJobPayload,
    EmailType,
    Event,
    Payload,
    PositionRecalcJobPayload,
    RewardDeliveryJobPayload,
    as_value,
    new_event,
    partition_key,
)
from local.chaos.faults import Fault, plan_faults

STEPS_PER_SECOND: Final = 2
EVENTS_PER_SECOND: Final = 60
SHORTEST_SECONDS: Final = 25

Cohort = Literal["pending", "verified", "removed", "suppressed", "unsubscribed", "late", "absent"]
Method = Literal["email", "manual", "working", "flaky", "hanging", "gone"]
End = Literal["accepted", "skipped", "once", "either", "delivered", "earned", "counted", "dead"]
"""What an event must come to: a mail accepted or skipped, one mail of a group, one or the other, a reward delivered or
left to an operator, a request counted in, a dead letter."""


@dataclass(frozen=True)
class Campaign:
    id: UUID
    name: str
    status: str
    timezone: str
    points: int


@dataclass(frozen=True)
class Person:
    id: UUID
    campaign: Campaign
    cohort: Cohort
    original_position: int
    referred_by: UUID | None

    @property
    def email(self) -> str:
        return f"{self.id.hex[:20]}@people.example.net"


@dataclass(frozen=True)
class UserReward:
    id: UUID
    person: Person
    method: Method
    occurrence: int
    is_late: bool


@dataclass(frozen=True)
class Planned:
    """One event, or one record that is none."""

    name: str
    """The event's id, or a name for what has none."""
    kind: str
    value: bytes | None
    key: str | None
    end: End
    about: str = ""
    """The group of `once`, the user reward of `delivered` and `earned`, the job type whose dead letter it becomes."""
    reason: str = ""
    """A part of the dead letter's reason."""
    subject: str = ""
    """The user or user reward that it is about."""
    is_prompt: bool = False
    """Nothing in its own data makes it wait, so that its delay shows what the others did to it."""


@dataclass
class Step:
    """What happens within one half second, in this order."""

    verified_referrals: list[UUID] = field(default_factory=list)
    """The people whose referral is verified now."""
    records: list[Planned] = field(default_factory=list)
    late_people: list[Person] = field(default_factory=list)
    late_rewards: list[UserReward] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    resume: bool = False
    """The paused campaign goes on, and the endpoint that has gone is back."""
    run_schedules: bool = False


@dataclass
class Plan:
    campaigns: list[Campaign]
    people: list[Person]
    user_rewards: dict[UUID, UserReward]
    events: dict[str, Planned]
    steps: list[Step]
    points: dict[UUID, int]
    """By campaign, the points that must hold in the end."""


_KINDS: Final = {
    "verification": 38,
    "welcome": 17,
    "milestone": 8,
    "position_update": 4,
    "reward": 22,
    "position": 10,
    "poison": 1,
    "absent": 0.3,
}
_COHORTS: Final[dict[Cohort, float]] = {
    "pending": 50,
    "verified": 38,
    "removed": 3,
    "suppressed": 3,
    "unsubscribed": 3,
    "late": 3,
}
_METHODS: Final[dict[Method, float]] = {
    "email": 40,
    "working": 36,
    "flaky": 10,
    "manual": 10,
    "gone": 3,
    "hanging": 1,
}
_MANNERS: Final = ("crash", "hang", "memory")
# A type that passes the filter of each function, and that only unroutable owns.
_KILLER_TYPES: Final = {
    "email": "job.email.verification",
    "reward": "job.reward.deliver",
    "position": "job.position.recalculate",
    "unroutable": "job.chaos.killer",
}
EVENTS_FOR_ALL_KILLERS: Final = 5_000
_ZONES: Final = ("UTC", "Asia/Kolkata", "America/St_Johns", "Europe/Berlin")


def make_plan(*, events: int, seed: int, started_at: datetime) -> Plan:
    """The same for the same arguments; `started_at` only shifts the times of the data."""
    return _Planner(events, seed, started_at).plan()


class _Planner:
    def __init__(self, events: int, seed: int, started_at: datetime) -> None:
        self._random = random.Random(seed)
        self._count = events
        self._started_at = started_at
        seconds = max(SHORTEST_SECONDS, events / EVENTS_PER_SECOND)
        self._steps = [Step() for _ in range(int(seconds * STEPS_PER_SECOND))]
        self._campaigns = self._make_campaigns()
        self._people = self._make_people()
        self._by_cohort: dict[Cohort, list[Person]] = {}
        for person in self._people:
            self._by_cohort.setdefault(person.cohort, []).append(person)
        self._user_rewards: dict[UUID, UserReward] = {}
        self._points: dict[UUID, tuple[datetime, str, int]] = {}
        self._first_steps: dict[str, int] = {}
        """By the id of whom or what an event is about, the first step that publishes one."""

    def plan(self) -> Plan:
        events: dict[str, Planned] = {}
        for number in range(self._count):
            planned = self._event(number)
            events[planned.name] = planned
            self._publish(planned, number)
        for killer in self._killers():
            events[killer.name] = killer
            # Early, because a hang takes its function's time-out again and again.
            step = self._random.randrange(4, 4 + len(self._steps) // 4)
            self._steps[step].records.append(killer)
        for person in self._people:
            if person.referred_by is not None and self._random.random() < 0.6:
                # Not in the last steps, which ask for the positions once more.
                step = self._random.randrange(2, len(self._steps) - 4)
                self._steps[step].verified_referrals.append(person.id)
        for person in self._by_cohort.get("late", []):
            self._steps[self._row_step(str(person.id))].late_people.append(person)
        for given in self._user_rewards.values():
            if given.is_late:
                self._steps[self._row_step(str(given.id))].late_rewards.append(given)
        for campaign in self._campaigns:
            last = self._position_event(campaign, points=0, number=self._count)
            events[last.name] = last
            self._steps[-1].records.append(last)
        self._steps[int(len(self._steps) * 0.7)].resume = True
        for step in range(8, len(self._steps), 30):
            self._steps[step].run_schedules = True
        for number, fault in plan_faults(self._random, steps=len(self._steps)):
            self._steps[number].faults.append(fault)
        return Plan(
            campaigns=self._campaigns,
            people=self._people,
            user_rewards=self._user_rewards,
            events=events,
            steps=self._steps,
            points={
                campaign.id: self._points[campaign.id][2] if campaign.id in self._points else campaign.points
                for campaign in self._campaigns
            },
        )

    # The cast

    def _make_campaigns(self) -> list[Campaign]:
        statuses = ["paused", "ended"] + ["active"] * max(2, self._count // 2_500)
        return [
            Campaign(
                id=self._uuid(),
                name=f"Campaign {number}",
                status=status,
                timezone=self._random.choice(_ZONES),
                points=1,
            )
            for number, status in enumerate(statuses, start=1)
        ]

    def _make_people(self) -> list[Person]:
        people: list[Person] = []
        settled: dict[UUID, list[Person]] = {campaign.id: [] for campaign in self._campaigns}
        for _ in range(max(60, self._count // 2)):
            campaign = self._random.choice(self._campaigns)
            (cohort,) = self._random.choices(list(_COHORTS), list(_COHORTS.values()))
            others = settled[campaign.id]
            # Who comes late has no row yet that others could refer to.
            there = [person for person in others[-50:] if person.cohort != "late"]
            is_referred = there and cohort != "late" and self._random.random() < 0.3
            referrer = self._random.choice(there).id if is_referred else None
            person = Person(self._uuid(), campaign, cohort, len(others) + 1, referrer)
            others.append(person)
            people.append(person)
        return people

    def _uuid(self) -> UUID:
        return UUID(int=self._random.getrandbits(128), version=4)

    # The events

    def _event(self, number: int) -> Planned:
        (kind,) = self._random.choices(list(_KINDS), list(_KINDS.values()))
        match kind:
            case "poison":
                return self._poison(number)
            case "absent":
                return self._absent(number)
            case "reward":
                return self._reward_event(number)
            case "position":
                return self._position_event(
                    self._random.choice(self._campaigns),
                    points=self._random.choice((0, 0, 1, 2)),
                    number=number,
                )
            case _:
                return self._email_event(kind, number)

    def _email_event(self, kind: Any, number: int) -> Planned:
        type_: EmailType = kind
        person = self._random.choice(self._people)
        milestone = self._random.choice((1, 5, 10)) if type_ == "milestone" else None
        payload = EmailJobPayload(
            type=type_,
            campaign_id=person.campaign.id,
            user_id=person.id,
            priority=self._random.choice((0, 0, 1, 9)),
            milestone=milestone,
            template_data={"badge": f"{milestone} friends"} if milestone else {},
        )
        end: End
        withheld = {"removed", "suppressed"} | (set() if type_ == "verification" else {"unsubscribed"})
        if person.cohort in withheld or (person.campaign.status == "ended" and type_ != "verification"):
            end = "skipped"
        elif type_ == "verification":
            end = "skipped" if person.cohort == "verified" else "accepted"
        else:
            # What has been told of a position decides, and that depends on when it was.
            end = "either" if type_ == "position_update" else "once"
        return self._planned(
            kind,
            payload,
            number,
            end=end,
            about=f"{type_}:{person.id}:{milestone}" if end == "once" else "",
            is_prompt=person.cohort != "late" and person.campaign.status != "paused" and end != "either",
        )

    def _reward_event(self, number: int) -> Planned:
        if self._user_rewards and self._random.random() < 0.15:
            given = self._random.choice(list(self._user_rewards.values()))
        else:
            given = self._earn()
        return self._planned(
            "reward",
            RewardDeliveryJobPayload(user_reward_id=given.id),
            number,
            end="earned" if given.method == "manual" else "delivered",
            about=str(given.id),
            is_prompt=given.method == "working" and not given.is_late,
        )

    def _earn(self) -> UserReward:
        person = self._random.choice(self._by_cohort["pending"] + self._by_cohort["verified"])
        (method,) = self._random.choices(list(_METHODS), list(_METHODS.values()))
        # Each user has each reward once; another one of the same is another occurrence.
        given = UserReward(
            self._uuid(), person, method, len(self._user_rewards) + 1, is_late=self._random.random() < 0.03
        )
        self._user_rewards[given.id] = given
        return given

    def _position_event(self, campaign: Campaign, *, points: int, number: int) -> Planned:
        payload = PositionRecalcJobPayload(campaign_id=campaign.id, points_per_referral=points)
        planned = self._planned("position", payload, number, end="counted", about=str(campaign.id))
        if points:
            asked = (self._moment(number), planned.name, points)
            self._points[campaign.id] = max(self._points.get(campaign.id, asked), asked)
        return planned

    def _absent(self, number: int) -> Planned:
        if self._random.random() < 0.5:
            reward = RewardDeliveryJobPayload(user_reward_id=self._uuid())
            return self._planned("absent", reward, number, end="dead", about="reward", reason="is not there")
        campaign = self._random.choice(self._campaigns)
        mail = EmailJobPayload(type="verification", campaign_id=campaign.id, user_id=self._uuid())
        return self._planned("absent", mail, number, end="dead", about="email", reason="is not there")

    def _poison(self, number: int) -> Planned:
        def event(type_: str, data: dict[str, Any]) -> bytes:
            return json.dumps({"id": f"poison-{number}", "type": type_, "data": data}).encode()

        user, campaign = str(self._uuid()), str(self._campaigns[-1].id)
        value, owner, reason = self._random.choice(
            (
                (b'{"type": "job.email.welcome"', "unroutable", "not JSON"),
                (b'{"type": "\xff\xfe"}', "unroutable", "not UTF-8"),
                (None, "unroutable", "is null"),
                (b'["job.email.welcome"]', "unroutable", "JSON array"),
                (b'{"id": "1"}', "unroutable", "type is missing"),
                (event("job.email.spam", {}), "unroutable", "is unknown"),
                (b" " * (catalog.MAX_VALUE_BYTES + 1), "unroutable", "allowed are at most"),
                (
                    event("job.email.welcome", {"campaign_id": campaign, "user_id": "nobody"}),
                    "email",
                    "user_id",
                ),
                (
                    event("job.email.milestone", {"campaign_id": campaign, "user_id": user}),
                    "email",
                    "milestone",
                ),
                (
                    event("job.position.recalculate", {"campaign_id": campaign, "points_per_referral": -1}),
                    "position",
                    "points_per_referral",
                ),
                (event("job.reward.deliver", {"user_reward_id": 7}), "reward", "user_reward_id"),
            )
        )
        return Planned(f"poison-{number}", "poison", value, None, "dead", about=owner, reason=reason)

    def _killers(self) -> list[Planned]:
        """One for each function and manner; in a short run, two for the function with the shortest time-out."""
        chosen = [(function, manner) for function in _KILLER_TYPES for manner in _MANNERS]
        if self._count < EVENTS_FOR_ALL_KILLERS:
            chosen = [("unroutable", "crash"), ("unroutable", "hang")]
        killers = []
        for function, manner in chosen:
            id_ = str(self._uuid())
            chaos = {"function": function, "manner": manner}
            value = json.dumps({"id": id_, "type": _KILLER_TYPES[function], "chaos": chaos}).encode()
            killers.append(Planned(id_, "killer", value, None, "dead", about=function, reason="three times"))
        return killers

    def _planned(
        self,
        kind: str,
        payload: Payload,
        number: int,
        *,
        end: End,
        about: str = "",
        reason: str = "",
        is_prompt: bool = False,
    ) -> Planned:
        event: Event = new_event(payload, event_id=str(self._uuid()), timestamp=self._moment(number))
        # Most producers go by the contract's key; some by one of their own, some by none.
        luck = self._random.random()
        key = None if luck < 0.1 else f"{number}" if luck < 0.2 else partition_key(event)
        subject = "" if isinstance(payload, PositionRecalcJobPayload) else str(_subject(payload))
        return Planned(event.id, kind, as_value(event), key, end, about, reason, subject, is_prompt)

    def _moment(self, number: int) -> datetime:
        return self._started_at + timedelta(milliseconds=number)

    def _publish(self, planned: Planned, number: int) -> None:
        """At about its time, perhaps before its elders, perhaps twice at once, perhaps once more much later."""
        last = len(self._steps) - 4
        due = number * last // self._count
        first = min(max(due + self._random.randint(-2, 2), 0), last - 1)
        times = [first]
        if planned.kind != "poison":
            if self._random.random() < 0.08:
                times.append(min(first + self._random.randint(0, 1), last))
            if self._random.random() < 0.03:
                times.append(self._random.randint(first, last))
        for step in times:
            self._steps[step].records.append(planned)
        self._first_steps[planned.subject] = min(first, self._first_steps.get(planned.subject, first))

    def _row_step(self, subject: str) -> int:
        """When a service commits the row that it has published about already."""
        return self._first_steps.get(subject, 0) + 2


def _subject(payload: EmailJobPayload | RewardDeliveryJobPayload) -> UUID:
    return payload.user_id if isinstance(payload, EmailJobPayload) else payload.user_reward_id
