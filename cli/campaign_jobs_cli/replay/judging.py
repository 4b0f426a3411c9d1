"""What would become of events that are published once more: the jobs' own decisions, on what the database says now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import UUID

import psycopg

from campaign_jobs.email import decisions as mail
from campaign_jobs.email import store as mails
from campaign_jobs.events import EmailEvent, EmailJobPayload, Event, PositionEvent, RewardEvent
from campaign_jobs.reward import decisions as rewarding
from campaign_jobs.reward import store as rewards
from campaign_jobs.worker.outcomes import Later, Skipped


class Fate(StrEnum):
    DONE = "done already"
    RUNS = "would run"
    SKIPPED = "would be skipped"
    WAITS = "would wait"
    FAILS = "would fail"


@dataclass(frozen=True)
class Verdict:
    """What is known of one event; when it comes, its job decides anew."""

    fate: Fate
    outcome: str
    mails: int = 0
    """Those that would go out for it."""


_ANOTHER = "another event of this replay is for the same"


@dataclass
class Judge:
    """Remembers what it has let run, because that uses up what may happen once."""

    connection: psycopg.Connection[Any]
    _once: set[str] = field(default_factory=set)

    def judge(self, events: Sequence[Event]) -> list[Verdict]:
        """A verdict for each event, in order. Ids must be distinct. One statement for each job type."""
        found: dict[str, Verdict] = {}
        found |= self._mails([event for event in events if isinstance(event, EmailEvent)])
        found |= self._rewards([event for event in events if isinstance(event, RewardEvent)])
        found |= self._positions([event for event in events if isinstance(event, PositionEvent)])
        return [found[event.id] for event in events]

    def _mails(self, events: Sequence[EmailEvent]) -> dict[str, Verdict]:
        if not events:
            return {}
        loaded = mails.load(self.connection, events)
        return {
            each.event.id: self._mail(each.event.data, mail.decide(each.event.data, each.state))
            for each in loaded
        }

    def _mail(self, payload: EmailJobPayload, decision: mail.Decision) -> Verdict:
        match decision:
            case mail.Send():
                key = mail.exclusive_key(payload)
                if key is not None and not self._first(key):
                    return Verdict(Fate.SKIPPED, _ANOTHER)
                return Verdict(Fate.RUNS, "its mail goes out", mails=1)
            case mail.Settled(status):
                return Verdict(Fate.DONE, f"its mail was {status}")
            case mail.TooOld():
                return Verdict(Fate.SKIPPED, mail.TOO_OLD)
            case mail.Skip(reason):
                return Verdict(Fate.SKIPPED, reason)
            case mail.Park(reason):
                return Verdict(Fate.WAITS, reason)
            case mail.Busy():
                return Verdict(Fate.WAITS, "somebody is sending it")
            case mail.Missing(what):
                return Verdict(Fate.FAILS, f"there is no {what}")
            case mail.Wrong(reason):
                return Verdict(Fate.FAILS, reason)

    def _rewards(self, events: Sequence[RewardEvent]) -> dict[str, Verdict]:
        if not events:
            return {}
        _, found = rewards.load(self.connection, sorted({event.data.user_reward_id for event in events}))
        return {event.id: self._reward(found.get(event.data.user_reward_id)) for event in events}

    def _reward(self, user_reward: rewarding.UserReward | None) -> Verdict:
        if user_reward is None:
            return Verdict(Fate.FAILS, "there is no user reward")
        if user_reward.status in rewarding.TERMINAL_STATUSES:
            return Verdict(Fate.DONE, f"the user reward is {user_reward.status}")
        match rewarding.decide(user_reward):
            case rewarding.DeliverByEmail():
                if not self._first(f"reward:{user_reward.id}"):
                    return Verdict(Fate.SKIPPED, _ANOTHER)
                # The mail's own event may be replayed as well; they share their once-key.
                goes = self._first(f"reward_earned:{user_reward.id}")
                return Verdict(Fate.RUNS, "its mail is asked for", mails=int(goes))
            case rewarding.DeliverByWebhook():
                if not self._first(f"reward:{user_reward.id}"):
                    return Verdict(Fate.SKIPPED, _ANOTHER)
                return Verdict(Fate.RUNS, "its webhook is sent")
            case rewarding.Hold():
                return Verdict(Fate.SKIPPED, mail.HELD)
            case rewarding.Park(reason):
                return Verdict(Fate.WAITS, reason)
            case rewarding.Rest():
                return Verdict(Fate.WAITS, "its endpoint has failed, and rests")
            case Skipped(reason):
                return Verdict(Fate.SKIPPED, reason)
            case Later(reason):
                return Verdict(Fate.WAITS, reason)

    def _positions(self, events: Sequence[PositionEvent]) -> dict[str, Verdict]:
        if not events:
            return {}
        wanted = sorted({event.data.campaign_id for event in events})
        rows = self.connection.execute(
            "SELECT id FROM campaign_jobs.campaigns WHERE id = ANY (%s)", [wanted]
        ).fetchall()
        there = {_id(row) for row in rows}
        # Positions are a function of what is stored, so one run more or less makes no difference to them.
        runs = Verdict(Fate.RUNS, "positions are calculated from what is stored")
        missing = Verdict(Fate.FAILS, "there is no campaign")
        return {event.id: runs if event.data.campaign_id in there else missing for event in events}

    def _first(self, key: str) -> bool:
        if key in self._once:
            return False
        self._once.add(key)
        return True


def _id(row: Mapping[str, UUID]) -> UUID:
    return row["id"]
