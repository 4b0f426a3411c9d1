"""One invocation to be stopped at each of its boundaries, and how it comes to an end afterwards."""

import base64
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from campaign_jobs.catalog import EVENT_JOB_TYPES, HEARTBEAT_EVENT_TYPE
from campaign_jobs.database.connection import Connection
from campaign_jobs.settings import BY_FUNCTION
from tests.crash.state import Dump, comparable, dead_letters, dump, waiting
from tests.crash.worker import PLENTY_MS, POOL_SIZE, Worker
from tests.integration.webhook_receiver import status

MOST_INVOCATIONS: Final = 60
"""That many and not at rest yet is a job that never ends."""
ACCEPTED: Final = 200

# The database's side of an hour that nobody waits for.
_TIME_PASSES: Final = (
    "UPDATE campaign_jobs.email_messages SET claimed_until = now() - interval '1 s' WHERE status = 'claimed'",
    "UPDATE campaign_jobs.user_rewards SET claimed_until = now() - interval '1 s' WHERE claim_token IS NOT NULL",
    "UPDATE campaign_jobs.webhook_endpoints SET rests_until = now() - interval '1 s' WHERE rests_until > now()",
    "UPDATE campaign_jobs.leases SET expires_at = now() - interval '1 s', waiting_until = now() - interval '1 s'",
)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    name: str
    function: str
    source: Literal["kafka", "retry queue", "own queue", "schedule"]
    seed: Callable[[Connection], Sequence[Any]]
    """Writes what services wrote, and returns what is delivered: values of Kafka records, bodies of messages of the
    retry queue (one), or the event itself (one)."""
    expect: Callable[["Rest"], None]
    """What every run must end with, said once by hand; that all runs end alike is checked as well."""
    ses: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The refusals that await a recipient, see Aws.begin."""
    account: Sequence[str] = ()
    """What SES answers at first when it is asked for the account's rate, see Aws.begin."""
    webhooks: Sequence[int] = (ACCEPTED,)
    """The receiver's answers, the last one for ever."""
    ignored: frozenset[tuple[str, str]] = frozenset()
    """Columns that tell how often something was tried, where the scenario lets tries fail."""
    lane: str | None = None
    """The lane that it comes by, where the job type has several."""
    remaining_ms: int = PLENTY_MS
    receives: int = 1
    """How often SQS has handed out a message of the retry queue, the first invocation's included."""
    late_after: tuple[str, int] | None = None
    """A boundary's label and how many times it is reached; then the time is over. Not within a wait of psycopg's."""
    constants: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outside:
    """What the world has seen of a run, and what the database says that we know of it."""

    mails: Counter[str]
    """Accepted by SES, by recipient."""
    recorded_mails: Counter[str]
    webhooks: Counter[str]
    """Answered with 2xx, by webhook-id."""
    recorded_webhooks: Counter[str]
    records: Counter[str]
    """Published to Kafka, by event id."""
    recorded_records: Counter[str]
    dead_letters: Counter[tuple[str, str, str]]
    waiting: set[tuple[str, str]]
    """In retry queues, by queue and record."""


@dataclass(frozen=True)
class Rest:
    """A run that has come to rest: no record undelivered, no message in the function's own retry queues."""

    dump: Dump
    outside: Outside
    records: tuple[dict[str, Any], ...]
    """What is in the topic, each event once; heartbeats aside."""
    beaten: frozenset[int]
    """The partitions that got heartbeats; how many is a matter of time."""
    boundaries: list[dict[str, Any]]
    at_the_stop: Outside | None
    rows: Callable[[str], list[tuple[Any, ...]]]

    def ends_alike(self, known: set[str], ignored: frozenset[tuple[str, str]]) -> dict[str, Any]:
        return {
            **self.dump.comparable(known, ignored),
            "mails": sorted(self.outside.mails),
            "webhooks": sorted(self.outside.webhooks),
            "records": sorted(
                comparable(json.dumps(record, sort_keys=True), known) for record in self.records
            ),
            "heartbeats": sorted(self.beaten),
            "dead letters": sorted(self.outside.dead_letters),
            "handed on": sorted(self.outside.waiting),
        }


class Run:
    """One run of a scenario over the worker's database, as services left it."""

    def __init__(self, scenario: Scenario, worker: Worker, deliveries: Sequence[Any]) -> None:
        self._scenario = scenario
        self._worker = worker
        self._deliveries = deliveries
        self._events: list[dict[str, Any]] = []
        self._beaten: set[int] = set()

    def to_rest(self, stop_at: tuple[str, int] | None) -> Rest:
        """Deliver, stop there, and deliver again as Lambda does until nothing is left to deliver."""
        self._prepare()
        scenario, connection = self._scenario, self._worker.database.connection
        with self._worker.serving(scenario.function, scenario.constants) as self._handler:
            self._adapt(connection)
            report = self._invoke(self._first_event(), self._lane, stop_at)
            at_the_stop = None
            # The next tick comes in any case.
            again = "error" in report or scenario.source == "schedule"
            if stop_at is not None:
                self._worker.database.wait_for_the_server()
                at_the_stop = self._outside(connection)
                again = True
            self._settle(connection, again)
            rest = Rest(
                dump=dump(connection),
                outside=self._outside(connection),
                records=tuple({event["id"]: event for event in self._events}.values()),
                beaten=frozenset(self._beaten),
                boundaries=report["boundaries"],
                at_the_stop=at_the_stop,
                rows=lambda query: connection.execute(query.encode()).fetchall(),
            )
            if stop_at is None:
                scenario.expect(rest)
            return rest

    def _prepare(self) -> None:
        self._worker.aws.begin(self._scenario.ses, self._scenario.account)
        self._answers: list[tuple[str, int]] = []
        answers = list(self._scenario.webhooks)

        def answer(handler: Any) -> None:
            code = answers.pop(0) if len(answers) > 1 else answers[0]
            self._answers.append((handler.headers["webhook-id"], code))
            status(code)(handler)

        self._worker.receiver.answer(answer)
        if self._uses_kafka:
            self._worker.topic.read()

    @property
    def _uses_kafka(self) -> bool:
        # Only relay may write to it; nobody else is told where it is.
        return "KAFKA_BROKERS" in BY_FUNCTION[self._scenario.function].environment_names()

    def _adapt(self, connection: Connection) -> None:
        connection.execute(
            "UPDATE campaign_jobs.webhook_endpoints SET url = replace(url, 'receiver', %s)",
            [f"127.0.0.1:{self._worker.receiver.port}"],
        )

    def _first_event(self) -> dict[str, Any]:
        match self._scenario.source:
            case "kafka":
                return _from_kafka(self._deliveries)
            case "retry queue":
                (body,) = self._deliveries
                return _from_queue(body, self._scenario.receives)
            case "own queue" | "schedule":
                (event,) = self._deliveries
                return dict(event)

    @property
    def _lane(self) -> str:
        return self._scenario.lane or self._scenario.function

    def _invoke(
        self, event: dict[str, Any], lane: str, stop_at: tuple[str, int] | None = None
    ) -> dict[str, Any]:
        self._report = self._handler(
            {
                "event": event,
                "qualifier": lane,
                "stop_at": stop_at,
                "remaining_ms": self._scenario.remaining_ms,
                "late_after": self._scenario.late_after,
            }
        )
        return self._report

    def _settle(self, connection: Connection, again: bool) -> None:
        """What failed comes again, from Kafka at once, then each message of the retry queues alone and in its time."""
        mine = [
            lane.name for job in EVENT_JOB_TYPES if job.name == self._scenario.function for lane in job.lanes
        ]
        queues = self._worker.aws.queues
        for _ in range(MOST_INVOCATIONS):
            if again:
                if self._scenario.source == "schedule":
                    self._let_time_pass(connection)
                again = "error" in self._invoke(self._first_event(), self._lane)
                continue
            lane = next((name for name in mine if queues[f"{name}-retry"]), None)
            if lane is None:
                return
            self._let_time_pass(connection)
            body = queues[f"{lane}-retry"].pop(0)
            if "error" in self._invoke(_from_queue(_in_time(body)), lane):
                queues[f"{lane}-retry"].append(body)
        raise AssertionError(
            f"not at rest after {MOST_INVOCATIONS} invocations: {self._worker.explain(self._report)}"
        )

    def _let_time_pass(self, connection: Connection) -> None:
        for statement in _TIME_PASSES:
            connection.execute(statement.encode())

    def _outside(self, connection: Connection) -> Outside:
        def count(query: str) -> Counter[str]:
            return Counter(row[0] for row in connection.execute(query.encode()))

        if self._uses_kafka:
            for event in map(json.loads, self._worker.topic.read()):
                if event["type"] == HEARTBEAT_EVENT_TYPE:
                    self._beaten.add(event["data"]["partition"])
                else:
                    self._events.append(event)
        return Outside(
            mails=Counter(mail.recipient for mail in self._worker.aws.mails),
            recorded_mails=count(
                "SELECT email FROM campaign_jobs.email_messages JOIN campaign_jobs.waitlist_users ON id = user_id"
                " WHERE ses_message_id IS NOT NULL AND ses_message_id <> 'seeded'"
            ),
            webhooks=Counter(id_ for id_, code in self._answers if code == ACCEPTED),
            recorded_webhooks=count(
                "SELECT 'user_reward_' || user_reward_id FROM campaign_jobs.webhook_attempts WHERE status_code = 200"
            ),
            records=Counter(event["id"] for event in self._events),
            recorded_records=count(
                "SELECT event_id FROM campaign_jobs.outbox WHERE published_at IS NOT NULL"
            ),
            dead_letters=dead_letters(self._worker.aws.queues),
            waiting=waiting(self._worker.aws.queues),
        )


def check_sends(rest: Rest) -> None:
    """Nothing went out twice but what was out and not recorded when the process was stopped.

    That is at most a pool-full; after a stop anywhere else, everything went out once.
    """
    end, stop = rest.outside, rest.at_the_stop
    for sent, at_the_stop, recorded in (
        (end.mails, stop and stop.mails, stop and stop.recorded_mails),
        (end.webhooks, stop and stop.webhooks, stop and stop.recorded_webhooks),
    ):
        twice = sent - Counter(set(sent))
        in_doubt = (at_the_stop or Counter()) - (recorded or Counter())
        assert twice == in_doubt, "sent twice, against accepted but not recorded at the stop"
        assert twice.total() <= POOL_SIZE
    records_twice = end.records - Counter(set(end.records))
    assert records_twice <= ((stop.records - stop.recorded_records) if stop else Counter())
    handed_on = (
        {record for _, record in stop.waiting} | {record for _, record, _ in stop.dead_letters}
        if stop
        else set()
    )
    assert {record for (_, record, _), times in end.dead_letters.items() if times > 1} <= handed_on
    assert max(end.dead_letters.values(), default=1) <= 2


def _from_kafka(values: Sequence[Any]) -> dict[str, Any]:
    records = [
        {
            "topic": "job-events",
            "partition": 0,
            "offset": offset,
            "timestamp": 1_735_732_800_000,
            "timestampType": "CREATE_TIME",
            "headers": [],
            "value": None if value is None else base64.b64encode(_as_bytes(value)).decode(),
        }
        for offset, value in enumerate(values)
    ]
    return {
        "eventSource": "aws:kafka",
        "eventSourceArn": "arn:aws:kafka:us-east-1:000000000000:cluster/test",
        "bootstrapServers": "b-1.test:9092",
        "records": {"job-events-0": records},
    }


def _as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def _from_queue(body: str, receives: int = 1) -> dict[str, Any]:
    sent = str(round(time.time() * 1000))
    attributes = {"ApproximateReceiveCount": str(receives), "SentTimestamp": sent}
    message = {"messageId": "message", "eventSource": "aws:sqs", "body": body, "attributes": attributes}
    return {"Records": [message]}


def _in_time(text: str) -> str:
    """The message as it is when its time has come, an hour later."""
    body = json.loads(text)
    body.pop("not_before", None)
    received = datetime.fromisoformat(body["first_received_at"]) - timedelta(hours=1)
    return json.dumps({**body, "first_received_at": received.isoformat()})


def retried(value: Any, *, attempts: int = 0, **more: Any) -> str:
    """The body of a message of a retry queue, as the pipeline writes it."""
    now = datetime.now(UTC).isoformat()
    return json.dumps(
        {
            "topic": "job-events",
            "partition": 0,
            "offset": 0,
            "recorded_at": now,
            "first_received_at": now,
            "attempts": attempts,
            "value": _as_bytes(value).decode(),
            **more,
        }
    )
