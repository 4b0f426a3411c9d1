"""What a replay would do: the range read once, and each event judged."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import Consumer

from campaign_jobs.events import Event
from campaign_jobs_cli import records
from campaign_jobs_cli.output import Advance
from campaign_jobs_cli.records import Range, Understood
from campaign_jobs_cli.replay.issuing import Issue
from campaign_jobs_cli.replay.judging import Fate, Judge, Verdict
from campaign_jobs_cli.selection import RewardOwners, Selection
from campaign_jobs_cli.targets import Target
from campaign_jobs_cli.times import Edge

LIVE: timedelta = timedelta(hours=1)
"""Over which the rate of the topic is taken."""

_TOO_LONG = Verdict(Fate.FAILS, "with its new id it would be too long, so it is left out")


@dataclass
class Plan:
    ranges: Sequence[Range]
    records: int = 0
    heartbeats: int = 0
    no_events: int = 0
    """What unroutable has made dead letters of."""
    invalid: int = 0
    """Of a known type, against the contract: their job types have made dead letters of them."""
    other_events: int = 0
    """Not selected."""
    repeated: int = 0
    """Records of an event that was met before."""
    verdicts: Counter[tuple[str, Verdict]] = field(default_factory=Counter)
    first_at: datetime | None = None
    last_at: datetime | None = None

    @property
    def events(self) -> int:
        """How many would be published."""
        return sum(count for (_, verdict), count in self.verdicts.items() if verdict is not _TOO_LONG)

    @property
    def mails(self) -> int:
        return sum(verdict.mails * count for (_, verdict), count in self.verdicts.items())

    def outcomes(self) -> list[dict[str, Any]]:
        """By event type, fate and outcome; those that run first."""
        fates = list(Fate)
        sums: Counter[tuple[str, Fate, str]] = Counter()
        mails: Counter[tuple[str, Fate, str]] = Counter()
        for (event_type, verdict), count in self.verdicts.items():
            key = (event_type, verdict.fate, verdict.outcome)
            sums[key] += count
            mails[key] += verdict.mails * count
        return [
            {"type": key[0], "fate": str(key[1]), "outcome": key[2], "events": sums[key], "mails": mails[key]}
            for key in sorted(sums, key=lambda key: (fates.index(key[1]) != 1, fates.index(key[1]), key))
        ]

    def as_record(self) -> dict[str, Any]:
        return {
            "first_at": self.first_at,
            "last_at": self.last_at,
            "records": self.records,
            "heartbeats": self.heartbeats,
            "no_events": self.no_events,
            "invalid": self.invalid,
            "other_events": self.other_events,
            "repeated": self.repeated,
            "events": self.events,
            "mails": self.mails,
        }


def make(
    target: Target,
    client: Consumer,
    ranges: Sequence[Range],
    *,
    selection: Selection,
    issue: Issue,
    advance: Advance,
) -> Plan:
    """Read the ranges and judge their events. Changes nothing. Raises Unreachable."""
    plan, owners = Plan(ranges), RewardOwners(target)
    with target.database() as connection:
        connection.execute("SET default_transaction_read_only = on")
        judge = Judge(connection)
        for batch in records.read(target, client, ranges):
            plan.records += len(batch)
            found = chosen([records.understand(record) for record in batch], selection, owners, plan)
            _judge(plan, judge, issue, found)
            advance(len(batch))
    return plan


def chosen(
    found: Sequence[Understood], selection: Selection, owners: RewardOwners, plan: Plan | None = None
) -> list[tuple[Understood, Event]]:
    """The valid events among records that are meant; `plan` counts the others."""
    plan = plan or Plan(())
    valid: list[tuple[Understood, Event]] = []
    for each in found:
        plan.first_at = min(each.record.at, plan.first_at or each.record.at)
        plan.last_at = max(each.record.at, plan.last_at or each.record.at)
        if each.event is not None:
            valid.append((each, each.event))
        elif each.is_heartbeat:
            plan.heartbeats += 1
        elif each.decoded is None:
            plan.no_events += 1
        else:
            plan.invalid += 1
    fits = selection.chosen([event for _, event in valid], owners)
    plan.other_events += len(fits) - sum(fits)
    return [each for each, fit in zip(valid, fits, strict=True) if fit]


def _judge(plan: Plan, judge: Judge, issue: Issue, found: Sequence[tuple[Understood, Event]]) -> None:
    fresh: list[tuple[Understood, Event]] = []
    for each, event in found:
        if issue.is_repeated(event):
            plan.repeated += 1
        elif issue.value(each) is None:
            plan.verdicts[event.type, _TOO_LONG] += 1
        else:
            fresh.append((each, issue.event(event)))
    events = [event for _, event in fresh]
    for event, verdict in zip(events, judge.judge(events), strict=True):
        plan.verdicts[event.type, verdict] += 1


def live_rate(target: Target, client: Consumer) -> float:
    """Records a second that were written to the topic within the last hour, heartbeats among them."""
    found = records.ranges(target, client, datetime.now(UTC) - LIVE, Edge.END)
    return sum((each.end or each.start) - each.start for each in found) / LIVE.total_seconds()
