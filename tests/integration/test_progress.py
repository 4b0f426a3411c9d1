"""What is told of everybody's progress, as CloudWatch finds it in the logs."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest

from campaign_jobs import outbox
from campaign_jobs.catalog import EMAIL, UNROUTABLE
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email.store import release_parked
from campaign_jobs.errors import BrokersUnreachable, DatabaseUnavailable, PublishError
from campaign_jobs.observability import measuring_run
from campaign_jobs.relay import job as relay_module
from campaign_jobs.relay import progress as progress_module
from campaign_jobs.relay.heartbeats import Heartbeats
from campaign_jobs.relay.job import Relay
from campaign_jobs.relay.progress import Progress
from campaign_jobs.relay.schedules import Rules
from campaign_jobs.settings import RelaySettings
from campaign_jobs.worker.outcomes import Later, Rejected, Retry, Skipped
from campaign_jobs.worker.pipeline import Pipeline
from campaign_jobs.worker.unroutable import Unroutable
from local.aws import AwsStandIn
from tests.integration.email_campaign import MailCampaign
from tests.integration.invocations import (
    GOOD,
    Context,
    RecordingQueues,
    ScriptedJob,
    event,
    from_kafka,
    from_sqs,
    settings_of,
)
from tests.integration.reward_campaign import deadline
from tests.integration.test_heartbeats import RecordingPartitions
from tests.integration.test_isolation import batch, by_alias
from tests.integration.test_relay import RecordingPublisher, unpublished, welcome

HOUR = timedelta(hours=1)
RULES = {"ANALYTICS_RULE_NAME": "campaign-jobs-test-analytics", "FRAUD_RULE_NAME": "campaign-jobs-test-fraud"}
BATCH = {"processed", "skipped", "retried", "dead_lettered", "ignored", "batch_size", "duration"}


@dataclass(frozen=True)
class Figure:
    value: float
    unit: str
    dimensions: dict[str, str]


class Figures:
    """The metrics among what was printed since the last look."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def take(self) -> dict[str, list[Figure]]:
        found: dict[str, list[Figure]] = {}
        for line in self._capsys.readouterr().out.splitlines():
            if not line.startswith('{"_aws"'):
                continue
            entry = json.loads(line)
            (of_namespace,) = entry["_aws"]["CloudWatchMetrics"]
            assert of_namespace["Namespace"] == "campaign-jobs"
            (names,) = of_namespace["Dimensions"]
            for metric in of_namespace["Metrics"]:
                (value,) = entry[metric["Name"]]
                dimensions = {name: entry[name] for name in names}
                found.setdefault(metric["Name"], []).append(Figure(value, metric["Unit"], dimensions))
        return found

    def by(self, dimension: str, name: str) -> dict[str, float]:
        return {figure.dimensions[dimension]: figure.value for figure in self.take().get(name, [])}


@pytest.fixture
def figures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Figures:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "campaign-jobs-test-relay")
    return Figures(capsys)


@pytest.fixture
def partitions() -> RecordingPartitions:
    return RecordingPartitions()


@pytest.fixture
def make(database: Database, partitions: RecordingPartitions) -> Callable[..., Progress]:
    def make(**environ: str) -> Progress:
        known = {"DATABASE_URL": "postgresql://unused", "KAFKA_BROKERS": "unused:9092"}
        settings = RelaySettings.load(known | environ)
        return Progress(database, Heartbeats(database, partitions, settings), Rules(settings))

    return make


Reported = Callable[[Progress], None]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Reported:
    """One run's report, however soon after the one before."""
    monkeypatch.setattr(progress_module, "EVERY_SECONDS", 0)

    def report(progress: Progress) -> None:
        with progress.of_run():
            progress.report()

    return report


def ran(connection: Connection, job_type: str, ago: timedelta, held_back: timedelta = timedelta()) -> None:
    connection.execute(
        "INSERT INTO campaign_jobs.job_watermarks (job_type, watermark, updated_at)"
        " VALUES (%(job_type)s, now() - %(ago)s - %(held_back)s, now() - %(ago)s) ON CONFLICT (job_type)"
        " DO UPDATE SET watermark = EXCLUDED.watermark, updated_at = EXCLUDED.updated_at",
        {"job_type": job_type, "ago": ago, "held_back": held_back},
    )


def let_pass(connection: Connection, time: timedelta) -> None:
    """The time since the schedules were first seen."""
    connection.execute("UPDATE campaign_jobs.job_schedules SET since = since - %s", [time])


# What relay reports.


def test_every_figure_has_its_unit_and_the_dimensions_that_an_alarm_needs(
    make: Callable[..., Progress], report: Reported, figures: Figures, connection: Connection
) -> None:
    progress = make()
    progress.beat(deadline(60))
    ran(connection, "analytics", timedelta())
    ran(connection, "fraud", timedelta())
    report(progress)
    found = figures.take()
    relay = {"service": "relay", "function_name": "campaign-jobs-test-relay"}
    assert found.keys() == {"heartbeat_age", "outbox_age", "watermark_age"}
    assert {figure.unit for each in found.values() for figure in each} == {"Seconds"}
    assert [figure.dimensions for figure in found["outbox_age"]] == [relay]
    assert [figure.dimensions for figure in found["watermark_age"]] == [
        relay | {"job_type": "analytics"},
        relay | {"job_type": "fraud"},
    ]
    groups = ["email", "email-bulk", "position", "reward", "unroutable"]
    assert sorted(figure.dimensions["consumer_group"] for figure in found["heartbeat_age"]) == [
        f"job-workers-{group}" for group in groups
    ]
    assert {frozenset(figure.dimensions) for figure in found["heartbeat_age"]} == {
        frozenset({*relay, "consumer_group"})
    }
    assert all(0 <= figure.value < 60 for each in found.values() for figure in each)


def test_the_outbox_is_as_old_as_its_oldest_event_that_kafka_may_still_take(
    make: Callable[..., Progress], report: Reported, figures: Figures, connection: Connection
) -> None:
    progress = make()
    outbox.enqueue(connection, [welcome(number) for number in range(4)])
    for number, hours in enumerate((1, 2, 3, 4)):
        connection.execute(
            "UPDATE campaign_jobs.outbox SET created_at = now() - make_interval(hours => %s) WHERE event_id = %s",
            (hours, f"event-{number}"),
        )
    connection.execute("UPDATE campaign_jobs.outbox SET published_at = now() WHERE event_id = 'event-3'")
    connection.execute("UPDATE campaign_jobs.outbox SET refused = 'too long' WHERE event_id = 'event-2'")
    report(progress)
    assert figures.by("service", "outbox_age")["relay"] == pytest.approx(2 * 3600, abs=60)
    connection.execute("UPDATE campaign_jobs.outbox SET published_at = now() WHERE refused IS NULL")
    report(progress)
    assert figures.by("service", "outbox_age") == {"relay": 0}


def test_what_is_emitted_again_waits_from_then_on(
    make: Callable[..., Progress], report: Reported, figures: Figures, connection: Connection
) -> None:
    """A mail that was parked for a week has not waited in the outbox for a week."""
    campaign = MailCampaign(connection)
    mail = campaign.asks("welcome", campaign.add_user(), "parked")
    outbox.enqueue(connection, [mail.event])
    connection.execute(
        "UPDATE campaign_jobs.outbox SET published_at = now(), created_at = now() - interval '7 days'"
    )
    connection.execute(
        "INSERT INTO campaign_jobs.email_messages (event_id, type, campaign_id, user_id, status, reason, parked_event)"
        " VALUES ('parked', 'welcome', %s, %s, 'parked', 'the campaign is paused', %s)",
        (
            campaign.id,
            mail.event.data.user_id,
            json.dumps(campaign.event("welcome", mail.event.data.user_id, "parked")),
        ),
    )
    assert release_parked(connection, limit=10) == 1
    assert unpublished(connection) == ["parked"]
    report(make())
    assert figures.by("service", "outbox_age")["relay"] < 60


def test_each_run_reports_once_a_minute(
    make: Callable[..., Progress], figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = make()
    with progress.of_run():
        progress.report()
        progress.report()
        assert len(figures.take()["outbox_age"]) == 1
        monkeypatch.setattr(progress_module, "EVERY_SECONDS", 0)
        progress.report()
        assert len(figures.take()["outbox_age"]) == 1
        monkeypatch.undo()
    # And by each run, whatever became of the clock in between.
    with progress.of_run():
        progress.report()
        assert len(figures.take()["outbox_age"]) == 1


def test_what_cannot_be_told_is_left_out_and_the_rest_is_told(
    make: Callable[..., Progress],
    report: Reported,
    figures: Figures,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nobody answers there, in no region.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    progress = make(FRAUD_RULE_NAME="campaign-jobs-test-fraud")
    ran(connection, "analytics", timedelta())
    progress.beat(deadline(60))
    report(progress)
    found = figures.take()
    assert [figure.dimensions["job_type"] for figure in found["watermark_age"]] == ["analytics"]
    assert len(found["heartbeat_age"]) == 5
    for table, left in (
        ("heartbeats", {"outbox_age", "watermark_age"}),
        ("job_watermarks", {"outbox_age"}),
        ("outbox", set()),
    ):
        connection.execute(f"ALTER TABLE campaign_jobs.{table} RENAME TO no_{table}".encode())
        report(progress)
        progress.beat(deadline(60))
        assert figures.take().keys() == left


# The schedules.


@pytest.fixture
def rule(aws: AwsStandIn) -> Callable[..., None]:
    """An operator at the EventBridge console."""
    client = boto3.client("events")

    def tune(job_type: str, schedule: str, state: str = "ENABLED") -> None:
        client.put_rule(Name=f"campaign-jobs-test-{job_type}", ScheduleExpression=schedule, State=state)  # type: ignore[arg-type]

    tune("analytics", "rate(1 hour)")
    tune("fraud", "rate(15 minutes)")
    return tune


def test_a_watermark_is_late_by_its_rules_present_schedule(
    make: Callable[..., Progress],
    report: Reported,
    figures: Figures,
    connection: Connection,
    rule: Callable[..., None],
) -> None:
    # The settings say a week; the rules are asked.
    progress = make(**RULES, ANALYTICS_INTERVAL="168h", FRAUD_DETECTION_INTERVAL="168h")
    for job_type in ("analytics", "fraud"):
        ran(connection, job_type, timedelta(minutes=50), held_back=timedelta(seconds=7))
    report(progress)
    let_pass(connection, 3 * HOUR)
    report(progress)
    late = figures.by("job_type", "watermark_age")
    assert late == {"analytics": pytest.approx(7, abs=1), "fraud": pytest.approx(35 * 60 + 7, abs=60)}
    ran(connection, "fraud", timedelta(minutes=1))
    report(progress)
    assert figures.by("job_type", "watermark_age")["fraud"] == 0


def test_a_disabled_rule_expects_nothing_and_enabling_it_raises_no_alarm(
    make: Callable[..., Progress],
    report: Reported,
    figures: Figures,
    connection: Connection,
    rule: Callable[..., None],
) -> None:
    progress = make(**RULES)
    ran(connection, "analytics", 100 * HOUR)
    rule("analytics", "rate(1 hour)", "DISABLED")
    report(progress)
    let_pass(connection, 99 * HOUR)
    report(progress)
    assert figures.by("job_type", "watermark_age")["analytics"] == 0
    rule("analytics", "rate(1 hour)")
    report(progress)
    assert figures.by("job_type", "watermark_age")["analytics"] == 0
    let_pass(connection, 3 * HOUR)
    report(progress)
    assert figures.by("job_type", "watermark_age")["analytics"] == pytest.approx(2 * 3600, abs=60)


def test_tuning_a_rule_neither_raises_an_alarm_nor_takes_one_back(
    make: Callable[..., Progress],
    report: Reported,
    figures: Figures,
    connection: Connection,
    rule: Callable[..., None],
) -> None:
    progress = make(**RULES)

    def late() -> float:
        report(progress)
        return figures.by("job_type", "watermark_age")["analytics"]

    rule("analytics", "rate(1 day)")
    ran(connection, "analytics", 20 * HOUR)
    late()
    let_pass(connection, 30 * HOUR)
    rule("analytics", "rate(5 minutes)")
    assert late() == 0, "it was in time"
    let_pass(connection, timedelta(minutes=25))
    assert late() == pytest.approx(20 * 60, abs=60), "from then on, each five minutes"
    rule("analytics", "cron(0/10 * * * ? *)")
    assert late() == pytest.approx(20 * 60, abs=12 * 60), "still nobody has run"
    let_pass(connection, HOUR)
    assert late() >= 60 * 60
    rule("analytics", "rate(30 days)")
    assert late() == 0, "now a month is soon enough"


def test_a_job_that_never_runs_is_late_too(
    make: Callable[..., Progress], report: Reported, figures: Figures, connection: Connection
) -> None:
    progress = make(FRAUD_DETECTION_INTERVAL="30m")
    report(progress)
    assert figures.by("job_type", "watermark_age") == {"analytics": 0, "fraud": 0}
    let_pass(connection, 2 * HOUR)
    report(progress)
    assert figures.by("job_type", "watermark_age") == {
        "analytics": pytest.approx(3600, abs=60),
        "fraud": pytest.approx(90 * 60, abs=60),
    }


def test_a_rule_that_is_not_there_or_not_to_be_read_is_missing_data(
    make: Callable[..., Progress],
    report: Reported,
    figures: Figures,
    connection: Connection,
    rule: Callable[..., None],
) -> None:
    progress = make(ANALYTICS_RULE_NAME="somebody-elses", FRAUD_RULE_NAME=RULES["FRAUD_RULE_NAME"])
    report(progress)
    assert set(figures.by("job_type", "watermark_age")) == {"fraud"}
    rule("fraud", "cron(0 0 LW * ? *)")
    report(progress)
    assert figures.by("job_type", "watermark_age") == {}
    # And back again.
    rule("fraud", "rate(15 minutes)")
    report(progress)
    assert set(figures.by("job_type", "watermark_age")) == {"fraud"}


# In relay's runs.


class Clashing(RecordingPartitions):
    """Kafka's client at its worst."""

    def submit_to_each_partition(self, value_of: Callable[[int], bytes]) -> tuple[int, "Future[None]"]:
        value_of(0)
        raise ZeroDivisionError


@pytest.mark.parametrize("trouble", ["refused", "clashing", "never acknowledged", "no table"])
def test_whatever_happens_to_heartbeats_the_outbox_goes_out(
    database: Database,
    connection: Connection,
    partitions: RecordingPartitions,
    trouble: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress_module, "END_SECONDS", 0.01)
    if trouble == "refused":
        partitions.failure = BrokersUnreachable("brokers do not answer")
    elif trouble == "never acknowledged":
        partitions.future = Future()
    elif trouble == "no table":
        connection.execute("ALTER TABLE campaign_jobs.heartbeats RENAME TO not_there")
    settings = RelaySettings.load({"DATABASE_URL": "postgresql://unused", "KAFKA_BROKERS": "unused:9092"})
    kafka = Clashing() if trouble == "clashing" else partitions
    progress = Progress(database, Heartbeats(database, kafka, settings), Rules(settings))
    publisher = RecordingPublisher()
    # The next tick's run waits from the third round on.
    monkeypatch.setattr(relay_module, "LOOK_EVERY_SECONDS", 0.01)
    rounds = iter(range(2, -1, -1))

    def after_round() -> None:
        progress.beat(deadline(60))
        outbox.enqueue(connection, [welcome(left := next(rounds))])
        if left == 0:
            connection.execute(
                "UPDATE campaign_jobs.leases SET waiting = gen_random_uuid(), waiting_until = now() + interval '1 hour'"
            )

    outbox.enqueue(connection, [welcome(9)])
    with progress.of_run():
        report = Relay(database, publisher).run(
            deadline(60), before_round=progress.report, after_round=after_round
        )
    assert report.rounds == 3
    assert publisher.ids == ["event-9", "event-2", "event-1"]


def test_a_round_that_fails_is_followed_by_heartbeats_all_the_same(
    database: Database, connection: Connection, make: Callable[..., Progress], partitions: RecordingPartitions
) -> None:
    progress = make()
    publisher = RecordingPublisher()
    publisher.refuse = lambda messages: ()
    outbox.enqueue(connection, [welcome()])
    with pytest.raises(PublishError), progress.of_run():
        Relay(database, publisher).run(deadline(60), after_round=lambda: progress.beat(deadline(60)))
    assert len(partitions.published) == 3


def test_no_heartbeat_is_begun_when_there_is_no_time_for_it(
    make: Callable[..., Progress], partitions: RecordingPartitions
) -> None:
    progress = make()
    progress.beat(deadline(progress_module.LEAST_SECONDS - 1))
    assert partitions.published == []
    progress.beat(deadline(progress_module.LEAST_SECONDS + 5))
    progress.beat(deadline(progress_module.LEAST_SECONDS + 5))
    assert len(partitions.published) == 3


# What a job type's function reports of its batches and runs.


def counted(found: dict[str, list[Figure]]) -> dict[str, float]:
    return {name: figure.value for name, (figure,) in found.items() if name not in ("duration", "retry_age")}


def test_a_batch_is_counted_with_what_did_not_happen(
    database: Database, figures: Figures, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {"0": Retry("no"), "1": Rejected("no"), "2": Skipped("no"), "3": Later("not yet", HOUR)}
    job = ScriptedJob(outcome=lambda delivery: outcomes[delivery.event.id])
    pipeline = Pipeline(EMAIL, job, settings_of(EMAIL), database, queues=RecordingQueues())
    pipeline.handle(batch(0, 3), Context())
    found = figures.take()
    assert found["duration"][0].unit == "Seconds"
    assert found["processed"][0].dimensions == {
        "service": "email",
        "function_name": "campaign-jobs-test-relay",
    }
    expected = {"retried": 1, "dead_lettered": 1, "skipped": 1, "postponed": 1, "batch_size": 4}
    assert counted(found) == {"processed": 0, "ignored": 0, **expected}
    unroutable = Unroutable(settings_of(UNROUTABLE), database, queues=RecordingQueues())  # type: ignore[arg-type]
    unroutable.handle(from_kafka(*GOOD, b"not JSON"), Context())
    found = figures.take()
    assert found.keys() == BATCH
    assert counted(found) == {
        **dict.fromkeys(BATCH - {"duration"}, 0),
        "ignored": len(GOOD),
        "dead_lettered": 1,
        "batch_size": len(GOOD) + 1,
    }


def test_the_age_of_a_retry_survives_its_hops(database: Database, figures: Figures) -> None:
    queues = RecordingQueues()
    job = ScriptedJob(outcome=lambda delivery: Retry("no"))
    pipeline = Pipeline(EMAIL, job, settings_of(EMAIL), database, queues=queues)

    def bodies() -> Sequence[dict[str, Any]]:
        return queues.take("RETRY_QUEUE_URL_EMAIL")

    pipeline.handle(from_kafka(json.dumps(event()).encode()), by_alias("email"))
    assert "retry_age" not in figures.take(), "it has just come"
    (body,) = bodies()
    first = datetime.now(UTC) - 5 * HOUR
    for _ in range(2):
        # Due now, and then not yet due: SQS holds each of them for a quarter of an hour at most.
        body |= {"first_received_at": first.isoformat()}
        pipeline.handle(from_sqs(body), by_alias("email"))
        (figure,) = figures.take()["retry_age"]
        assert figure.value == pytest.approx(5 * 3600, abs=60)
        assert figure.unit == "Seconds"
        assert figure.dimensions.items() >= {"service": "email", "lane": "email"}.items()
        (body,) = bodies()
    # A redriven dead letter begins anew.
    job.outcome = lambda delivery: Rejected("no")
    body.pop("not_before")
    pipeline.handle(from_sqs(body), by_alias("email-bulk"))
    (letter,) = queues.take("DEAD_LETTER_QUEUE_URL_EMAIL")
    assert figures.by("lane", "retry_age") == {"email-bulk": pytest.approx(5 * 3600, abs=60)}
    pipeline.handle(from_sqs(letter), by_alias("email"))
    assert figures.by("lane", "retry_age")["email"] < 60


def test_a_run_is_measured_however_it_ends(figures: Figures) -> None:
    with measuring_run("fraud") as counts:
        counts["records"] = 7
    found = figures.take()
    assert counted(found) == {"errors": 0, "records": 7}
    assert found["duration"][0].unit == "Seconds"
    for error in (DatabaseUnavailable("gone"), SystemExit()):
        with pytest.raises(type(error)), measuring_run("fraud"):
            raise error
        found = figures.take()
        assert counted(found) == {"errors": 1}
        assert "duration" in found
