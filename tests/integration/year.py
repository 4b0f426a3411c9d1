"""A year of a campaign in a minute: services, jobs and SES do their work, a month passes, and so on.

Time passes by moving everything that is in the database into the past.
"""

import itertools
import json
import random
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from campaign_jobs.analytics.job import AnalyticsJob
from campaign_jobs.catalog import EMAIL, POSITION, REWARD, EventJobType
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email.feedback import Feedback
from campaign_jobs.email.job import EmailJob
from campaign_jobs.fraud import cases
from campaign_jobs.fraud.job import FraudJob
from campaign_jobs.position.job import PositionJob
from campaign_jobs.relay.job import Relay
from campaign_jobs.reward.job import RewardJob
from campaign_jobs.reward.settlement import deliver_manually
from campaign_jobs.reward.webhooks.client import Answer
from campaign_jobs.worker.pipeline import Pipeline
from tests.integration.email_campaign import (
    DEFAULT_SENDER,
    UNSUBSCRIBE_LINKS,
    MailCampaign,
    RecordingSender,
)
from tests.integration.invocations import RecordingQueues, from_kafka, from_sqs, settings_of
from tests.ses_events import BEGIN, ses_event, sqs_event

MONTH: Final = timedelta(days=30)

MOMENTS: Final = """
SELECT relname, array_agg(attname::text)
FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
WHERE relnamespace = 'campaign_jobs'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
  AND atttypid = 'timestamptz'::regtype
GROUP BY relname ORDER BY relname
"""


@dataclass
class Topic:
    """All that was ever published, each with the month; also what relay publishes to."""

    events: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    unread: list[dict[str, Any]] = field(default_factory=list)
    month: int = 0

    def publish(self, event: dict[str, Any]) -> None:
        self.events.append((self.month, event))
        self.unread.append(event)

    def submit(self, messages: Sequence[tuple[str, bytes]]) -> "Future[None]":
        for _, value in messages:
            self.publish(json.loads(value))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def archived(self) -> list[dict[str, Any]]:
        """Every event with the timestamp that it had, as seen from now."""
        return [_moved(event, (self.month - month) * MONTH) for month, event in self.events]


def _moved(event: dict[str, Any], by: timedelta) -> dict[str, Any]:
    if event.get("timestamp") is None:
        return event
    asked_at = datetime.fromisoformat(event["timestamp"])
    return {**event, "timestamp": (asked_at - by).isoformat()}


@dataclass
class Receiver:
    """Takes every webhook."""

    total_seconds: float = 1
    posts: Counter[str] = field(default_factory=Counter)

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:  # noqa: ARG002
        self.posts[headers["webhook-id"]] += 1
        return Answer(200, None, None, timedelta(milliseconds=3))


class Context:
    aws_request_id = "request"

    def __init__(self, lane: str) -> None:
        self.invoked_function_arn = (
            f"arn:aws:lambda:us-east-1:000000000000:function:campaign-jobs-test:{lane}"
        )

    def get_remaining_time_in_millis(self) -> int:
        return 100_000


class Year:
    """The campaign, the outside, and the functions over one database."""

    def __init__(self, database: Database, connection: Connection) -> None:
        self.database, self.connection = database, connection
        self.campaign = MailCampaign(connection)
        self.campaign.set(position_email_min_delta=2)
        self.paused = MailCampaign(connection)
        self.topic, self.sender, self.receiver = Topic(), RecordingSender(), Receiver()
        self.queues = RecordingQueues()
        self.feedback = Feedback(database)
        self.relay = Relay(database, self.topic)
        self.ses_reports: list[tuple[int, dict[str, Any]]] = []
        self.people: list[UUID] = []
        email = EmailJob(
            database,
            self.sender,
            pool_size=10,
            default_sender=DEFAULT_SENDER,
            unsubscribe_links=UNSUBSCRIBE_LINKS,
        )
        jobs: tuple[tuple[EventJobType, Any], ...] = (
            (EMAIL, email),
            (POSITION, PositionJob(database)),
            (REWARD, RewardJob(database, self.receiver, pool_size=5)),
        )
        self._pipelines = [
            (
                Context(job_type.lanes[0].name),
                Pipeline(job_type, job, settings_of(job_type), database, queues=self.queues),
            )
            for job_type, job in jobs
        ]
        self._rewards = {
            "email": self.campaign.add_reward("email"),
            "manual": self.campaign.add_reward("manual"),
            "webhook": self.campaign.add_reward(
                "webhook", self.campaign.add_endpoint("https://hooks.example.com")
            ),
        }

    def deliver(self, events: Sequence[dict[str, Any]]) -> None:
        """Hand events to every function, as the mappings would without their filters, and again what they postpone."""
        for batch in _batches(events):
            invocation = from_kafka(*(json.dumps(event).encode() for event in batch))
            for context, pipeline in self._pipelines:
                pipeline.handle(invocation, context)
                while waiting := [message for message in self.queues.sent if "retry-queue" in message[0]]:
                    self.queues.sent.remove(waiting[0])
                    # In its time.
                    body = json.loads(waiting[0][1])
                    pipeline.handle(from_sqs({**body, "not_before": body["first_received_at"]}), context)

    def to_rest(self) -> None:
        """Publish and deliver until nothing is new."""
        while True:
            self.relay.round()
            if not self.topic.unread:
                return
            unread, self.topic.unread = self.topic.unread, []
            self.deliver(unread)

    def month(self) -> None:
        """What happens in a month: people come, verify, refer each other, earn; SES reports; the schedules tick."""
        sent_before = len(self.sender.accepted)
        newcomers = [self._sign_up() for _ in range(8)]
        self.to_rest()
        for user, referrer in zip(
            newcomers[:6], itertools.cycle(self.people[-3:] or newcomers[:1]), strict=False
        ):
            self._verify(user, referrer)
        self.to_rest()
        for user in newcomers[:3]:
            for reward in self._rewards.values():
                self._ask("job.reward.deliver", user_reward_id=str(self.campaign.earn(reward, user)))
        self._ask(
            "job.position.recalculate",
            campaign_id=str(self.campaign.id),
            points_per_referral=1 + self.topic.month % 3,
        )
        self.to_rest()
        delivered_by_hand = self.connection.execute(
            "SELECT id FROM campaign_jobs.user_rewards WHERE reward_id = %s AND status = 'earned' LIMIT 1",
            (self._rewards["manual"],),
        ).fetchone()
        assert delivered_by_hand is not None
        deliver_manually(self.connection, delivered_by_hand[0])
        self._report(sent_before)
        FraudJob(self.database).run({})
        self._decide_cases()
        AnalyticsJob(self.database).run({})
        self.to_rest()
        self.people += newcomers

    def _sign_up(self) -> UUID:
        user = self.campaign.add_user()
        self.campaign.change_user(
            user,
            email=f"{user}@mailinator.com" if self.campaign.people % 8 == 0 else f"{user}@example.org",
            user_agent="curl/8.0" if self.campaign.people % 8 == 0 else None,
        )
        # Some producers send no time.
        undated = self.campaign.people % 5 == 0
        self._mail("verification", user, undated=undated, template_data={"name": "Ada"})
        parked = self.paused.add_user()
        self.paused.set(status="paused")
        self.topic.publish({**self.paused.event("welcome", parked), "timestamp": _now()})
        return user

    def _verify(self, user: UUID, referrer: UUID) -> None:
        self.campaign.change_user(user, verified_at=datetime.now(UTC))
        self.campaign.change_user(user, status="verified")
        if user != referrer:
            self.connection.execute(
                "INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id, status, verified_at)"
                " VALUES (%s, %s, %s, %s, 'verified', now())",
                (uuid.uuid4(), self.campaign.id, referrer, user),
            )
            self._mail("milestone", referrer, milestone=1 + self.topic.month)
        self._mail("welcome", user)
        # As a service that is not sure whether it has.
        self._mail("welcome", user)

    def _mail(self, type_: str, user: UUID, *, undated: bool = False, **data: Any) -> None:
        event = {**self.campaign.event(type_, user, **data), "timestamp": None if undated else _now()}
        self.topic.publish(event)

    def _ask(self, type_: str, **data: Any) -> None:
        self.topic.publish({"id": str(uuid.uuid4()), "type": type_, "data": data, "timestamp": _now()})

    def _report(self, sent_before: int) -> None:
        """SES reports of each mail of the month; one in ten bounces. An operator lifts what is suppressed."""
        seconds = (datetime.now(UTC) - BEGIN).total_seconds()
        for number, mail in enumerate(self.sender.accepted[sent_before:]):
            name = "hard_bounce" if number % 10 == 9 else "delivered"
            report = {"name": name, "tag": mail.tags["message"], "to": mail.recipient, "seconds": seconds}
            self.ses_reports.append((self.topic.month, report))
            self.feedback.handle(sqs_event(ses_event(**report)))
        self.connection.execute("DELETE FROM campaign_jobs.email_suppressions")

    def reports_again(self) -> None:
        """Every event of SES comes once more."""
        for month, report in self.ses_reports:
            seconds = report["seconds"] - ((self.topic.month - month) * MONTH).total_seconds()
            self.feedback.handle(sqs_event(ses_event(**{**report, "seconds": seconds})))

    def _decide_cases(self) -> None:
        for (case,) in self.connection.execute(
            "SELECT id FROM campaign_jobs.fraud_cases WHERE status = 'open'"
        ).fetchall():
            with self.database.transaction() as own:
                cases.dismiss(own, case, reason="a newsletter reader")

    def pass_a_month(self) -> None:
        """Everything in the database is a month older."""
        self.topic.month += 1
        with self.connection.transaction():
            # Without triggers: nobody writes anything.
            self.connection.execute("SET LOCAL session_replication_role = replica")
            # Two hours of metrics must not meet on the way.
            self.connection.execute(
                "UPDATE campaign_jobs.campaign_metrics SET bucket = bucket - interval '400 years'"
            )
            self.connection.execute(
                "UPDATE campaign_jobs.campaign_metrics SET bucket = bucket + interval '400 years' - %s",
                (MONTH,),
            )
            for table, columns in self.connection.execute(MOMENTS.encode()).fetchall():
                if table == "campaign_metrics":
                    continue
                changes = ", ".join(f"{column} = {column} - %(month)s" for column in columns)
                self.connection.execute(
                    f"UPDATE campaign_jobs.{table} SET {changes}".encode(), {"month": MONTH}
                )


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _batches(events: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    for first in range(0, len(events), 100):
        yield events[first : first + 100]


def shuffled(events: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    return random.Random(seed).sample(list(events), len(events))
