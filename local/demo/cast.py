"""Who takes part: the characters and moments of launch.jsonl, and a crowd that is made up around them.

Nothing is random but through the seed, and every id is derived from a name, so that all totals are known beforehand.
"""

import base64
import json
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

from campaign_jobs.errors import CampaignJobsError
from campaign_jobs.fraud import lists

LAUNCH_FILE: Final = Path(__file__).with_name("launch.jsonl")
NAMESPACE: Final = uuid5(NAMESPACE_URL, "campaign-jobs:demo")
MAIN_CAMPAIGN: Final = "orbit"
PAUSED_CAMPAIGN: Final = "lighthouse"
SHARE_OF_PAUSED_CAMPAIGN: Final = 0.12
SHARE_REFERRED: Final = 0.5
SHARE_VERIFYING: Final = 0.8
# Below every threshold of the fraud checks: what the crowd does is honest.
MOST_REFERRALS_IN_THE_CROWD: Final = 8
MOST_MINUTES_AGO: Final = 300
FIRST_NAMES: Final = (
    "Comet",
    "Nova",
    "Vega",
    "Luna",
    "Sol",
    "Atlas",
    "Rhea",
    "Juno",
    "Ceres",
    "Iris",
    "Titan",
    "Io",
)
MAIL_DOMAINS: Final = ("example.com", "example.org", "example.net")
BROWSERS: Final = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/139.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:142.0) Gecko/20100101 Firefox/142.0",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/139.0.0.0 Safari/537.36",
)


class ScriptError(CampaignJobsError):
    """launch.jsonl says something that cannot be played."""


class TooFewPeople(ScriptError):
    """The script alone has more characters than people are wanted."""


@dataclass(frozen=True)
class Names:
    """Ids derived from names; `run` keeps the runs in one database apart."""

    run: str

    def uuid(self, kind: str, name: str) -> UUID:
        return uuid5(NAMESPACE, f"{self.run}/{kind}/{name}")


@dataclass(frozen=True, kw_only=True)
class Campaign:
    key: str
    name: str
    timezone: str
    status: str
    milestones: tuple[int, ...] = ()
    position_email_min_delta: int = 3
    points_asked_for: int = 0
    """Asked for by an event; 0 means to keep the campaign's own single point."""

    @property
    def points_per_referral(self) -> int:
        """What the campaign has once that event is done."""
        return self.points_asked_for or 1


@dataclass(frozen=True, kw_only=True)
class Reward:
    key: str
    campaign: str
    name: str
    description: str
    type: str
    method: str
    referrals: int | None = None
    """Verified referrals that earn it; None where a person is given it."""
    endpoint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Person:
    """One user, with what the launch makes of them and what it should lead to."""

    key: str
    campaign: str
    first_name: str
    email: str
    joined_minutes_ago: float
    ip: str | None = None
    device: str | None = None
    user_agent: str = BROWSERS[0]
    referred_by: str | None = None
    verifies: bool = True
    leaves: str | None = None
    """`at signup`, or `after verifying`: the service removes them then."""
    late: bool = False
    """The service publishes the event before it commits the user."""
    dawdles: bool = False
    """Verifies in the second wave, with the paused campaign's people."""
    bounced: bool = False
    """The address has bounced in an earlier campaign."""
    bounces: bool = False
    """The first mail bounces for good."""
    complains: bool = False
    """About the welcome mail, as spam."""
    unsubscribed: bool = False
    """Has been since before the launch."""
    unsubscribes: bool = False
    """By a mail's link, between the two waves."""
    verification_requests: int = 1
    asks_again: bool = False
    """For the verification mail, between the two waves."""
    given_rewards: tuple[str, ...] = ()
    checks: frozenset[str] = frozenset()
    """The fraud checks that should make a case."""
    held: bool = False
    decision: str | None = None
    """What a person decides on the case: `dismiss` or `confirm`."""
    story: str = ""


@dataclass(frozen=True, kw_only=True)
class BadRecord:
    """A record that breaks the contract."""

    name: str
    value: bytes | None
    queue: str
    reason: str
    """What its dead letter's reason contains."""


@dataclass(frozen=True, kw_only=True)
class HopelessEvent:
    """An event that follows the contract and still can never be done."""

    name: str
    type: str
    data: dict[str, Any]
    queue: str
    reason: str


@dataclass(frozen=True)
class Cast:
    names: Names
    started_at: datetime
    campaigns: dict[str, Campaign]
    rewards: dict[str, Reward]
    people: dict[str, Person]
    """In the order in which they joined."""
    original_positions: dict[str, int]
    bad_records: list[BadRecord]
    hopeless_events: list[HopelessEvent]
    characters: frozenset[str] = field(repr=False)

    def user_id(self, key: str) -> UUID:
        return self.names.uuid("person", key)

    def campaign_id(self, key: str) -> UUID:
        return self.names.uuid("campaign", key)

    def joined_at(self, person: Person) -> datetime:
        return self.started_at - timedelta(minutes=person.joined_minutes_ago)

    def of(self, campaign: str) -> list[Person]:
        return [person for person in self.people.values() if person.campaign == campaign]

    def resolved(self, value: Any) -> Any:
        """`$person:…`, `$campaign:…` and other names of launch.jsonl, replaced by their ids."""
        if isinstance(value, dict):
            return {name: self.resolved(entry) for name, entry in value.items()}
        if isinstance(value, str) and value.startswith("$"):
            kind, _, name = value[1:].partition(":")
            return str(self.names.uuid(kind, name))
        return value


def make_cast(names: Names, *, people: int, seed: int, started_at: datetime, own_ses: bool = True) -> Cast:
    """The characters, and a crowd that fills up to `people`. Raises ScriptError where the file does not fit.

    Where SES is not our own, no mail can be made to bounce, nor be read, so nobody answers any.
    """
    campaigns: dict[str, Campaign] = {}
    rewards: dict[str, Reward] = {}
    characters: list[Person] = []
    bad_records: list[BadRecord] = []
    hopeless_events: list[HopelessEvent] = []
    for number, line in enumerate(LAUNCH_FILE.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            kind = next(iter(entry))
            name = entry.pop(kind)
            match kind:
                case "campaign":
                    entry["milestones"] = tuple(entry.get("milestones", ()))
                    campaigns[name] = Campaign(key=name, **entry)
                case "reward":
                    rewards[name] = Reward(key=name, **entry)
                case "person":
                    characters += _people(name, entry)
                case "record":
                    bad_records.append(_bad_record(name, entry))
                case "hopeless":
                    hopeless_events.append(HopelessEvent(name=name, **entry))
                case _:
                    raise ScriptError(
                        f"{kind} is unknown; allowed are campaign, reward, person, record, hopeless"
                    )
        except (ValueError, TypeError, KeyError, ScriptError) as error:
            raise ScriptError(f"{LAUNCH_FILE.name}, line {number}: {error}") from error
    if people < len(characters):
        raise TooFewPeople(
            f"--people {people}: allowed are {len(characters)}, the characters of the script, or more"
        )
    if not own_ses:
        characters = [
            replace(person, bounces=False, complains=False, unsubscribes=False) for person in characters
        ]
    everybody = characters + _crowd(people - len(characters), random.Random(seed))
    everybody.sort(key=lambda person: (-person.joined_minutes_ago, person.key))
    joined: Counter[str] = Counter()
    original_positions = {}
    for person in everybody:
        joined[person.campaign] += 1
        original_positions[person.key] = joined[person.campaign]
    return Cast(
        names,
        started_at,
        campaigns,
        rewards,
        {person.key: person for person in everybody},
        original_positions,
        bad_records,
        hopeless_events,
        frozenset(person.key for person in characters),
    )


def _people(name: str, entry: dict[str, Any]) -> list[Person]:
    """One character, or `count` of them who join `every` minutes; `{n}` stands for the number in every text."""
    count, every = entry.pop("count", 1), entry.pop("every", 0)
    joined = entry.pop("joined")
    entry["checks"] = frozenset(entry.get("checks", ()))
    entry["given_rewards"] = tuple(entry.get("given_rewards", ()))
    if entry["checks"] & {"bot"} and not lists.is_crawler(entry["user_agent"]):
        raise ScriptError(f"{name}: {entry['user_agent']} is no crawler's user agent")
    return [
        Person(
            key=name.replace("{n}", str(number)), joined_minutes_ago=joined - (number - 1) * every, **texts
        )
        for number in range(1, count + 1)
        for texts in [_numbered(entry, number)]
    ]


def _numbered(entry: dict[str, Any], number: int) -> dict[str, Any]:
    return {
        key: value.replace("{n}", str(number)) if isinstance(value, str) else value
        for key, value in entry.items()
    }


def _crowd(count: int, chance: random.Random) -> list[Person]:
    people: list[Person] = []
    referrers: dict[str, list[str]] = {MAIN_CAMPAIGN: [], PAUSED_CAMPAIGN: []}
    referrals: Counter[str] = Counter()
    for number in range(1, count + 1):
        campaign = PAUSED_CAMPAIGN if chance.random() < SHARE_OF_PAUSED_CAMPAIGN else MAIN_CAMPAIGN
        key = f"guest-{number}"
        referred_by = None
        free = [name for name in referrers[campaign][:40] if referrals[name] < MOST_REFERRALS_IN_THE_CROWD]
        if free and chance.random() < SHARE_REFERRED:
            # The first of the list are referred to most, so that a few people have many referrals.
            referred_by = free[min(int(chance.expovariate(0.2)), len(free) - 1)]
            referrals[referred_by] += 1
            if referrals[referred_by] == MOST_REFERRALS_IN_THE_CROWD:
                referrers[campaign].remove(referred_by)
        verifies = chance.random() < SHARE_VERIFYING
        # Who comes late refers nobody, because the row of whom they refer could not be written before theirs.
        late = number % 40 == 0
        if verifies and not late:
            referrers[campaign].append(key)
        people.append(
            Person(
                key=key,
                campaign=campaign,
                first_name=chance.choice(FIRST_NAMES),
                email=f"{key}@{chance.choice(MAIL_DOMAINS)}",
                # Evenly over the time, so that whoever refers joined before.
                joined_minutes_ago=round(MOST_MINUTES_AGO * (1 - number / (count + 1)), 4),
                ip=f"2001:db8:{number // 65536:x}::{number % 65536:x}",
                device=f"device-of-{key}",
                user_agent=chance.choice(BROWSERS),
                referred_by=referred_by,
                verifies=verifies,
                late=late,
            )
        )
    return people


def _bad_record(name: str, entry: dict[str, Any]) -> BadRecord:
    value: bytes | None
    if "base64" in entry:
        value = base64.b64decode(entry["base64"])
    elif "repeat" in entry:
        value = (entry["repeat"] * entry["times"]).encode()
    elif "padded_to" in entry:
        # Spaces between two tokens change nothing but the length.
        body = json.dumps(entry["json"]).encode()
        value = body[:-1] + b" " * (entry["padded_to"] - len(body)) + body[-1:]
    elif "json" in entry:
        value = json.dumps(entry["json"]).encode()
    else:
        value = None if entry["text"] is None else entry["text"].encode()
    return BadRecord(name=name, value=value, queue=entry["queue"], reason=entry["reason"])
