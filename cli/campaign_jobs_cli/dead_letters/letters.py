"""A dead letter as people see it, whatever the message is."""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final
from uuid import UUID

from campaign_jobs import catalog
from campaign_jobs_cli.errors import WrongInput
from campaign_jobs_cli.selection import RewardOwners
from campaign_jobs_cli.targets import Target

JOB_TYPES: Final = tuple(each.name for each in (*catalog.EVENT_JOB_TYPES, *catalog.QUEUE_JOB_TYPES))
_FED: Final = frozenset(each.name for each in catalog.QUEUE_JOB_TYPES)


@dataclass(frozen=True)
class Letter:
    """One message of a dead-letter queue. What cannot be told is None; nothing in it is taken for granted."""

    job_type: str
    message_id: str
    receipt_handle: str
    body: str
    sent_at: datetime

    @cached_property
    def content(self) -> dict[str, Any]:
        """The body's JSON object; empty where it is none."""
        return _object(self.body)

    @cached_property
    def _details(self) -> dict[str, Any]:
        details = self.content.get("dead_letter")
        return details if isinstance(details, dict) else {}

    @cached_property
    def value(self) -> str | None:
        """The record's value, as text."""
        if "value_base64" in self.content:
            try:
                return base64.b64decode(str(self.content["value_base64"])).decode("utf-8", "backslashreplace")
            except ValueError:
                return None
        found = self.content.get("value", self.content.get("unreadable_body"))
        return found if isinstance(found, str) else None

    @cached_property
    def event(self) -> dict[str, Any]:
        """The event's JSON object; empty where it is none. Of SES's events, the event of EventBridge."""
        return self.content if self.job_type in _FED else _object(self.value)

    @property
    def at(self) -> datetime:
        """When it was given up."""
        try:
            return datetime.fromisoformat(self._details["at"]).astimezone(UTC)
        except (KeyError, TypeError, ValueError):
            return self.sent_at

    @property
    def reason(self) -> str:
        if "reason" in self._details:
            return str(self._details["reason"])
        last = self.content.get("reason")
        return "SQS moved it, because it was received too often" + (
            f"; the last reason: {last}" if last else ""
        )

    @property
    def attempts(self) -> int | None:
        found = self._details.get("attempts", self.content.get("attempts"))
        return found if isinstance(found, int) else None

    @property
    def place(self) -> tuple[str, int, int] | None:
        """Topic, partition and offset."""
        topic, partition, offset = (self.content.get(name) for name in ("topic", "partition", "offset"))
        if isinstance(topic, str) and isinstance(partition, int) and isinstance(offset, int):
            return topic, partition, offset
        return None

    @property
    def id(self) -> str:
        """By which it is chosen: PARTITION:OFFSET, or the message's id where it has no place on the topic."""
        return self.message_id if self.place is None else f"{self.place[1]}:{self.place[2]}"

    @property
    def ids(self) -> frozenset[str | None]:
        """All that it may be chosen by."""
        return frozenset({self.id, self.event_id, self.message_id})

    @property
    def identity(self) -> tuple[object, ...]:
        """The same for each copy: a crash between sending and committing may repeat a dead letter."""
        own = self.place or (hashlib.sha256(self.body.encode("utf-8", "surrogatepass")).hexdigest(),)
        return (self.job_type, *own)

    @property
    def event_id(self) -> str | None:
        return _text(self.event.get("id"))

    @property
    def event_type(self) -> str | None:
        return _text(self.event.get("detail-type" if self.job_type in _FED else "type"))

    @property
    def _data(self) -> dict[str, Any]:
        data = self.event.get("data")
        return data if isinstance(data, dict) else {}

    @property
    def campaign_id(self) -> str | None:
        return _text(self._data.get("campaign_id")) or _text(self.event.get("campaign_id"))

    @property
    def user_id(self) -> str | None:
        return _text(self._data.get("user_id"))

    @property
    def user_reward_id(self) -> UUID | None:
        try:
            return UUID(str(self._data.get("user_reward_id")))
        except ValueError:
            return None

    @property
    def destination(self) -> str | None:
        """The queue, by its part of the name, from which it is tried anew; None where that would be in vain."""
        if self.job_type in _FED:
            return self.job_type
        if not self.content or "unreadable_body" in self.content or self.content.get("value_dropped"):
            return None
        lane = catalog.LANE_BY_EVENT_TYPE.get(self.event_type or "")
        job_type = next(each for each in catalog.EVENT_JOB_TYPES if each.name == self.job_type)
        return f"{(lane if lane in job_type.lanes else job_type.lanes[0]).name}-retry"

    def as_row(self, copies: int = 1) -> dict[str, Any]:
        topic, partition, offset = self.place or (None, None, None)
        return {
            "id": self.id,
            "at": self.at,
            "job_type": self.job_type,
            "event_type": self.event_type,
            "reason": self.reason,
            "attempts": self.attempts,
            "event_id": self.event_id,
            "campaign_id": self.campaign_id,
            "user_id": self.user_id,
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "copies": copies,
        }


@dataclass(frozen=True)
class Filter:
    """Which dead letters are meant. What is empty or None leaves out nothing."""

    ids: frozenset[str] = frozenset()
    """Each a letter's id, its event's, or its message's."""
    job_types: Sequence[str] = JOB_TYPES
    reason: str | None = None
    pattern: re.Pattern[str] | None = None
    campaign: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_everything(self) -> bool:
        return self == Filter()

    def chosen(self, letters: Sequence[Letter], owners: RewardOwners) -> list[Letter]:
        """Those of some letters that are meant. Raises Unreachable where the database has to tell."""
        found = [letter for letter in letters if self._fits(letter)]
        if self.campaign is None:
            return found
        rewards = {each.user_reward_id for each in found if each.user_reward_id is not None}
        owner_of = owners.of(rewards)
        return [letter for letter in found if str(self.campaign) in _campaigns(letter, owner_of)]

    def _fits(self, letter: Letter) -> bool:
        return (
            (not self.ids or bool(self.ids & letter.ids))
            and (self.reason is None or self.reason.casefold() in letter.reason.casefold())
            and (self.pattern is None or self.pattern.search(letter.reason) is not None)
            and (self.since is None or letter.at >= self.since)
            and (self.until is None or letter.at < self.until)
        )


@dataclass
class Found:
    """Dead letters with their copies, each shown once."""

    messages: list[Letter] = field(default_factory=list)

    def add(self, letters: Sequence[Letter]) -> None:
        self.messages += letters

    def __len__(self) -> int:
        return len(self._copies)

    @property
    def message_ids(self) -> frozenset[str]:
        return frozenset(letter.message_id for letter in self.messages)

    @property
    def _copies(self) -> Counter[tuple[object, ...]]:
        return Counter(letter.identity for letter in self.messages)

    def letters(self) -> list[Letter]:
        """One of each, the newest first."""
        first = {letter.identity: letter for letter in reversed(self.messages)}
        return sorted(first.values(), key=lambda letter: letter.at, reverse=True)

    def rows(self) -> list[dict[str, Any]]:
        copies = self._copies
        return [letter.as_row(copies[letter.identity]) for letter in self.letters()]


def _campaigns(letter: Letter, owner_of: Mapping[UUID, tuple[UUID, UUID]]) -> set[str | None]:
    """What it names, and that of its user reward."""
    reward = letter.user_reward_id
    of_reward = owner_of.get(reward) if reward is not None else None
    return {letter.campaign_id, None if of_reward is None else str(of_reward[0])}


def pattern_of(text: str | None) -> re.Pattern[str] | None:
    """Raises WrongInput."""
    try:
        return None if text is None else re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise WrongInput(f"--matching {text}: no regular expression, {error}") from None


def letter_of(job_type: str, message: Mapping[str, Any]) -> Letter:
    """From what SQS has handed over."""
    return Letter(
        job_type,
        message["MessageId"],
        message["ReceiptHandle"],
        message["Body"],
        datetime.fromtimestamp(int(message["Attributes"]["SentTimestamp"]) / 1000, UTC),
    )


def where(target: Target, job_type: str) -> str:
    """The URL of a job type's dead-letter queue. Raises NotFound."""
    return target.queue_url(f"{job_type}-dead-letters")


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
