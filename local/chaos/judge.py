"""What became of each event, by database, mails, receivers and dead letters, against what the plan asks."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
from psycopg.rows import dict_row

from campaign_jobs import catalog
from campaign_jobs.reward.webhooks.signing import webhook_id
from local.aws.mails import read_mails
from local.chaos.faults import Breaker
from local.chaos.plan import Plan, Planned
from local.chaos.publishing import Published
from local.chaos.receiver import ChaosReceiver
from local.system import LocalSystem

Row = dict[str, Any]
SOLO_STARTS: Final = 3
"""Starts alone after which a record that ends its process is a dead letter."""
NEIGHBORHOOD: Final = 50
"""Offsets on either side of a bad record in its partition: about what shares a batch with it."""


@dataclass(frozen=True)
class DeadLetter:
    job_type: str
    reason: str
    coordinates: tuple[int, int]
    event_id: str | None
    at: datetime


@dataclass(frozen=True)
class KilledBy:
    """A process that a record has ended."""

    event_id: str
    alone: bool


@dataclass
class Verdict:
    """What is wrong, each line with its event, and the figures for the table."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    mails_again: int = 0
    mails_again_allowed: int = 0
    delays: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from Kafka's acknowledgement to the end, of bad records' neighbors and of the others."""
    recoveries: list[tuple[str, list[float]]] = field(default_factory=list)
    """By fault, the seconds from its end until each event was done that waited then."""

    @property
    def is_right(self) -> bool:
        return not (self.lost or self.doubled or self.wrong) and self.mails_again <= self.mails_again_allowed


class Judge:
    """Looks once, when everything is quiet."""

    def __init__(
        self,
        plan: Plan,
        system: LocalSystem,
        receiver: ChaosReceiver,
        breaker: Breaker,
        published: Sequence[Published],
        *,
        killed: Sequence[KilledBy],
        email_processes: int,
    ) -> None:
        self._plan = plan
        self._system = system
        self._receiver = receiver
        self._breaker = breaker
        self._published = published
        self._killed = killed
        self._email_processes = email_processes
        self._verdict = Verdict()
        self._done_at: dict[str, datetime] = {}

    def look(self) -> Verdict:
        with psycopg.connect(self._system.servers.database_url, row_factory=dict_row) as connection:
            self._messages = _all(connection, "SELECT * FROM campaign_jobs.email_messages")
            self._rewards = _all(connection, "SELECT * FROM campaign_jobs.user_rewards")
            self._users = _all(connection, "SELECT * FROM campaign_jobs.waitlist_users")
            self._referrals = _all(connection, "SELECT * FROM campaign_jobs.referrals")
            self._positions = _all(connection, "SELECT * FROM campaign_jobs.user_positions")
            self._campaigns = _all(connection, "SELECT * FROM campaign_jobs.campaigns")
            self._metrics = _all(connection, "SELECT * FROM campaign_jobs.campaign_metrics")
            self._feedback = _all(connection, "SELECT * FROM campaign_jobs.email_events")
            self._suppressed = _all(connection, "SELECT address FROM campaign_jobs.email_suppressions")
            self._attempts = _all(connection, "SELECT * FROM campaign_jobs.webhook_attempts")
            self._outbox = _all(
                connection,
                "SELECT event_id, event ->> 'type' AS type, published_at FROM campaign_jobs.outbox",
            )
        self._dead = self._read_dead_letters()
        self._by_event = {row["event_id"]: row for row in self._messages}
        self._accepted = {
            (row["user_id"], row["type"], row["once_key"])
            for row in self._messages
            if row["status"] == "accepted"
        }
        self._check_events()
        self._check_killers()
        self._check_follow_ups()
        self._check_mails()
        self._check_feedback()
        self._check_once()
        self._check_webhooks()
        self._check_positions()
        self._check_analytics()
        self._measure()
        return self._verdict

    # Each event and its end

    def _check_events(self) -> None:
        published = {item.planned.name for item in self._published}
        dead = defaultdict(list)
        for letter in self._dead:
            dead[letter.event_id].append(letter)
        rewards = {str(row["id"]): row for row in self._rewards}
        groups: dict[str, list[str]] = defaultdict(list)
        poison = [item for item in self._published if item.planned.kind == "poison"]
        self._check_poison(poison)
        for event in self._plan.events.values():
            self._verdict.counts["events"] += event.name in published
            if event.kind == "poison":
                continue
            letters = dead.get(event.name, [])
            if event.end == "dead":
                self._check_dead(event, letters)
                continue
            if letters:
                self._verdict.wrong.append(f"{_shown(event)} is a dead letter: {letters[0].reason}")
            if event.end in ("delivered", "earned"):
                self._check_reward(event, rewards.get(event.about))
            elif event.end != "counted":
                self._check_message(event, groups)
        for about, statuses in groups.items():
            if statuses.count("accepted") == 0 and set(statuses) == {"skipped"}:
                self._verdict.lost.append(f"{about}: each of its events was skipped, none sent")

    def _check_message(self, event: Planned, groups: dict[str, list[str]]) -> None:
        row = self._by_event.get(event.name)
        if row is None:
            self._verdict.lost.append(f"{_shown(event)} left no trace")
            return
        status = row["status"]
        if status not in ("accepted", "skipped"):
            self._verdict.lost.append(f"{_shown(event)} is {status}: {row['reason']}")
            return
        self._verdict.counts[status] += 1
        self._done_at[event.name] = row["accepted_at"] or row["updated_at"]
        if event.end == "once":
            groups[event.about].append(status)
        elif event.end not in ("either", status):
            self._verdict.wrong.append(f"{_shown(event)} is {status}, not {event.end}: {row['reason']}")

    def _check_reward(self, event: Planned, row: Row | None) -> None:
        if row is None or row["status"] != event.end:
            found = "not there" if row is None else f"{row['status']}: {row['last_error']}"
            self._verdict.lost.append(f"{_shown(event)}: user reward {event.about} is {found}")
            return
        self._verdict.counts[f"rewards {event.end}"] += 1
        if row["delivered_at"] is not None:
            self._done_at[event.name] = row["delivered_at"]

    def _check_dead(self, event: Planned, letters: Sequence[DeadLetter]) -> None:
        """One dead letter for each time that Kafka took it, at most; a crash in between may repeat one."""
        if not letters:
            self._verdict.lost.append(f"{_shown(event)} is no dead letter")
            return
        self._verdict.counts["dead letters"] += 1
        self._verdict.counts["dead letters again"] += len(letters) - len(
            {letter.coordinates for letter in letters}
        )
        for letter in letters:
            if letter.job_type != event.about or event.reason not in letter.reason:
                self._verdict.wrong.append(
                    f"{_shown(event)} is a dead letter of {letter.job_type}: {letter.reason}"
                )
        self._done_at[event.name] = min(letter.at for letter in letters)

    def _check_poison(self, poison: Sequence[Published]) -> None:
        by_place = defaultdict(list)
        for letter in self._dead:
            by_place[letter.coordinates].append(letter)
        for item in poison:
            letters = by_place.get((item.partition, item.offset), [])
            self._check_dead(item.planned, letters)
        expected = {item.planned.name for item in self._published if item.planned.end == "dead"}
        places = {(item.partition, item.offset) for item in self._published if item.planned.name in expected}
        for letter in self._dead:
            if letter.coordinates not in places and letter.event_id not in self._plan.events:
                self._verdict.wrong.append(
                    f"nobody asked for a dead letter of {letter.job_type}: {letter.reason}"
                )

    def _check_killers(self) -> None:
        """That each is a dead letter is checked with the others."""
        self._verdict.counts["killers"] = sum(event.kind == "killer" for event in self._plan.events.values())
        self._verdict.counts["killed together"] = sum(not killed.alone for killed in self._killed)
        alone = Counter(killed.event_id for killed in self._killed if killed.alone)
        self._verdict.counts["killed alone"] = alone.total()
        # A batch that was handed on twice has two messages of each record; the second begins once the first is dead.
        dead = Counter(letter.event_id for letter in self._dead)
        self._verdict.wrong += [
            f"killer {event_id} was started {starts} times alone, for {dead[event_id]} dead letters"
            for event_id, starts in alone.items()
            if starts > SOLO_STARTS * dead[event_id]
        ]

    def _check_follow_ups(self) -> None:
        for row in self._outbox:
            if row["published_at"] is None:
                self._verdict.lost.append(f"outbox event {row['event_id']} was never published")
            elif row["type"].startswith("job.email.") and row["event_id"] not in self._plan.events:
                self._verdict.counts["follow-up mails"] += 1
                message = self._by_event.get(row["event_id"])
                if message is None or message["status"] not in ("accepted", "skipped"):
                    found = message and message["status"]
                    self._verdict.lost.append(f"follow-up {row['type']} {row['event_id']} is {found}")

    # Once

    def _check_mails(self) -> None:
        """By the tag that each mail carries for its event."""
        sent = Counter(mail.tags["message"] for mail in read_mails(self._system.mail_directory))
        accepted = {row["tag"]: row["event_id"] for row in self._messages if row["status"] == "accepted"}
        rivals_went = {
            row["tag"] for row in self._messages if self._was_skipped_for_a_rival(row)
        } & sent.keys()
        self._verdict.counts["mails"] = sent.total()
        self._verdict.lost += [
            f"event {accepted[tag]} is accepted, but no mail was sent"
            for tag in accepted.keys() - sent.keys()
        ]
        self._verdict.wrong += [
            f"a mail was sent with the tag {tag}, whose event is not accepted"
            for tag in sent.keys() - accepted.keys() - rivals_went
        ]
        pool = self._system.settings.kafka_worker_pool_size
        outages = sum(broken.fault.kind == "postgres" for broken in self._breaker.broken)
        self._verdict.mails_again = sent.total() - len(sent) + len(rivals_went)
        self._verdict.mails_again_allowed = pool * (
            self._breaker.kills["email"] + outages * self._email_processes
        )

    def _was_skipped_for_a_rival(self, row: Row) -> bool:
        """Whether the same went to the same user for another event.

        A crash may leave a mail unrecorded, and once its claim has run out its rival is as good: it goes again as that.
        """
        return row["status"] == "skipped" and (row["user_id"], row["type"], row["once_key"]) in self._accepted

    def _check_feedback(self) -> None:
        """SES reports each mail as sent and delivered, some of it twice, and nobody's address as dead."""
        reported = {
            (mail.tags["message"], mail.message_id, status)
            for mail in read_mails(self._system.mail_directory)
            for status in ("sent", "delivered")
        }
        recorded = Counter(
            (row["tag"], row["ses_message_id"], row["delivery_status"]) for row in self._feedback
        )
        self._verdict.counts["events of SES"] = recorded.total()
        self._verdict.lost += [
            f"SES reported {status} of mail {mail}, which nobody recorded"
            for _, mail, status in reported - recorded.keys()
        ]
        self._verdict.doubled += [
            f"SES's {status} of mail {mail} was recorded {n} times"
            for (_, mail, status), n in recorded.items()
            if n > 1
        ]
        self._verdict.wrong += [
            f"SES never reported {status} of mail {mail}" for _, mail, status in recorded.keys() - reported
        ]
        self._verdict.wrong += [
            f"event {row['event_id']} is {row['status']} and {row['delivery_status']}"
            for row in self._messages
            if row["delivery_status"] != ("delivered" if row["status"] == "accepted" else None)
            and not (row["delivery_status"] == "delivered" and self._was_skipped_for_a_rival(row))
        ]
        planned = {person.email for person in self._plan.people if person.cohort == "suppressed"}
        self._verdict.wrong += [
            f"{address} is suppressed, and not by the plan"
            for row in self._suppressed
            if (address := row["address"]) not in planned
        ]

    def _check_once(self) -> None:
        accepted = [row for row in self._messages if row["status"] == "accepted"]
        once = Counter(row["once_key"] for row in accepted if row["once_key"] is not None)
        told = Counter(row["user_id"] for row in accepted if row["type"] == "position_update")
        self._verdict.doubled += [f"{key} was accepted {n} times" for key, n in once.items() if n > 1]
        self._verdict.doubled += [
            f"user {user} was told a position {n} times within the cooldown"
            for user, n in told.items()
            if n > 1
        ]

    def _check_webhooks(self) -> None:
        taken = Counter(request.webhook_id for request in self._receiver.received if request.status == 200)
        recorded = Counter(row["user_reward_id"] for row in self._attempts if row["status_code"] == 200)
        self._verdict.counts["webhooks"] = taken.total()
        self._verdict.counts["webhooks again"] = taken.total() - len(taken)
        if not all(request.is_signed for request in self._receiver.received):
            self._verdict.wrong.append("a webhook was not signed")
        by_webhook = {
            given.id for given in self._plan.user_rewards.values() if given.method not in ("email", "manual")
        }
        for row in self._rewards:
            if row["id"] in by_webhook and row["status"] == "delivered" and not taken[webhook_id(row["id"])]:
                self._verdict.lost.append(f"user reward {row['id']} is delivered, but nobody received it")
        self._verdict.doubled += [
            f"user reward {id_} was recorded as delivered {n} times" for id_, n in recorded.items() if n > 1
        ]

    # What follows from stored state alone

    def _check_positions(self) -> None:
        """The formula once more, in a few lines of Python."""
        counted = Counter(
            row["referrer_id"] for row in self._referrals if row["status"] in ("verified", "converted")
        )
        stored = {row["user_id"]: row["position"] for row in self._positions}
        for campaign in self._campaigns:
            points = self._plan.points[campaign["id"]]
            if campaign["points_per_referral"] != points:
                self._verdict.lost.append(
                    f"campaign {campaign['id']} has {campaign['points_per_referral']} points, not {points}"
                )
            ranked = sorted(
                (
                    row["original_position"] - counted[row["id"]] * points,
                    -counted[row["id"]],
                    row["created_at"],
                    row["id"],
                )
                for row in self._users
                if row["campaign_id"] == campaign["id"] and row["status"] not in ("removed", "blocked")
            )
            right = {id_: place for place, (*_, id_) in enumerate(ranked, start=1)}
            self._verdict.counts["positions"] += len(right)
            self._verdict.wrong += [
                f"user {id_} has position {stored.get(id_)}, not {place}"
                for id_, place in right.items()
                if stored.get(id_) != place
            ]
        ranked_users = {row["id"] for row in self._users if row["status"] not in ("removed", "blocked")}
        self._verdict.wrong += [
            f"user {id_} has a position and no rank" for id_ in stored.keys() - ranked_users
        ]

    def _check_analytics(self) -> None:
        zones = {row["id"]: ZoneInfo(row["timezone"]) for row in self._campaigns}
        right: Counter[tuple[UUID, datetime, str]] = Counter()

        def count(rows: Sequence[Row], column: str, metric: str) -> None:
            for row in rows:
                if row[column] is not None:
                    local = row[column].astimezone(zones[row["campaign_id"]])
                    hour = local.replace(minute=0, second=0, microsecond=0).astimezone(UTC)
                    right[row["campaign_id"], hour, metric] += 1

        count(self._users, "created_at", "new_signups")
        count(self._users, "verified_at", "email_verifications")
        count(self._referrals, "created_at", "referrals")
        count(self._messages, "accepted_at", "emails_sent")
        count(self._rewards, "delivered_at", "rewards_delivered")
        metrics = {metric for _, _, metric in right}
        stored = Counter(
            {
                (row["campaign_id"], row["bucket"].astimezone(UTC), metric): row[metric]
                for row in self._metrics
                for metric in metrics
            }
        )
        self._verdict.wrong += [
            f"{place[2]} of campaign {place[0]} at {place[1]}: {stored[place]}, not {right[place]}"
            for place in right.keys() | (+stored).keys()
            if stored[place] != right[place]
        ]

    # Figures

    def _measure(self) -> None:
        first: dict[str, Published] = {}
        for item in self._published:
            if item.planned.name not in first or item.at < first[item.planned.name].at:
                first[item.planned.name] = item
        self._verdict.counts["records"] = len(self._published)
        bad = defaultdict(set)
        for item in self._published:
            if item.planned.kind in ("poison", "killer"):
                bad[item.partition].add(item.offset)
        prompt = [
            item for item in first.values() if item.planned.is_prompt and item.planned.name in self._done_at
        ]
        self._verdict.delays = {"neighbors": [], "others": []}
        for item in prompt:
            near = any(abs(item.offset - offset) <= NEIGHBORHOOD for offset in bad[item.partition])
            delay = (self._done_at[item.planned.name] - item.at).total_seconds()
            self._verdict.delays["neighbors" if near else "others"].append(max(delay, 0.0))
        for broken in sorted(self._breaker.broken, key=lambda broken: broken.began_at):
            waited = [
                (self._done_at[item.planned.name] - broken.ended_at).total_seconds()
                for item in prompt
                if item.at < broken.ended_at < self._done_at[item.planned.name]
            ]
            self._verdict.recoveries.append((broken.fault.kind, sorted(waited)))

    def _read_dead_letters(self) -> list[DeadLetter]:
        sqs = self._system.servers.client("sqs")
        letters = []
        for job_type in catalog.EVENT_JOB_TYPES:
            url = self._system.queue_urls[job_type.dead_letter_queue_setting]
            while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
                letters += [_dead_letter(json.loads(message["Body"])) for message in messages]
                sqs.delete_message_batch(
                    QueueUrl=url,
                    Entries=[
                        {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                        for number, message in enumerate(messages)
                    ],
                )
        return letters


def _all(connection: Any, statement: str) -> list[Row]:
    rows: list[Row] = connection.execute(statement).fetchall()
    return rows


def _dead_letter(body: Row) -> DeadLetter:
    try:
        event_id = json.loads(body.get("value") or "")["id"]
    except (ValueError, TypeError, KeyError):
        event_id = None
    details = body["dead_letter"]
    return DeadLetter(
        details["job_type"],
        details["reason"],
        (body["partition"], body["offset"]),
        event_id,
        datetime.fromisoformat(details["at"]),
    )


def _shown(event: Planned) -> str:
    return f"{event.kind} event {event.name}"


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of them do not exceed; None of no values."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None
