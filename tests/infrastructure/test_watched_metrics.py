"""What alarms and dashboard look at is what the functions publish, by name and by dimensions."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from campaign_jobs import catalog
from campaign_jobs.analytics import job as analytics
from campaign_jobs.database.connection import Database
from campaign_jobs.email.feedback import Feedback
from campaign_jobs.email.ses_events import DELIVERY_STATUSES
from campaign_jobs.errors import BatchStopped
from campaign_jobs.fraud import job as fraud
from campaign_jobs.observability import measuring_run
from campaign_jobs.relay.heartbeats import Heartbeats
from campaign_jobs.relay.progress import Progress
from campaign_jobs.relay.schedules import Rules
from campaign_jobs.settings import RelaySettings
from campaign_jobs.worker.pipeline import Pipeline
from campaign_jobs.worker.unroutable import Unroutable
from tests.infrastructure.watching import LANES, Alarm, shown_metrics
from tests.integration.invocations import RecordingQueues, ScriptedJob, from_kafka, from_sqs, settings_of
from tests.integration.test_heartbeats import RecordingPartitions
from tests.integration.test_isolation import by_alias
from tests.ses_events import ses_event, sqs_event

Published = set[tuple[str, frozenset[tuple[str, str]]]]


@pytest.fixture
def published(capsys: pytest.CaptureFixture[str]) -> Callable[[], Published]:
    """Name and dimensions of each metric that was published since the last look."""

    def published() -> Published:
        found: Published = set()
        for line in capsys.readouterr().out.splitlines():
            if line.startswith('{"_aws"'):
                entry = json.loads(line)
                (of_namespace,) = entry["_aws"]["CloudWatchMetrics"]
                assert of_namespace["Namespace"] == "campaign-jobs"
                (names,) = of_namespace["Dimensions"]
                dimensions = frozenset((name, entry[name]) for name in names)
                found |= {(metric["Name"], dimensions) for metric in of_namespace["Metrics"]}
        return found

    return published


def test_every_metric_of_ours_that_is_watched_is_one_that_is_published(
    database: Database,
    watching: dict[str, Any],
    alarms: dict[str, Alarm],
    published: Callable[[], Published],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each function does its work under the name that it has in dev, and what it prints is compared."""

    def become(name: str) -> None:
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", f"campaign-jobs-dev-{name}")

    become("relay")
    settings = RelaySettings.load({"DATABASE_URL": "postgresql://unused", "KAFKA_BROKERS": "unused:9092"})
    heartbeats = Heartbeats(database, RecordingPartitions(), settings)
    heartbeats.publish()
    progress = Progress(database, heartbeats, Rules(settings))
    with progress.of_run():
        progress.report()
    for job_type in catalog.EVENT_JOB_TYPES:
        become(job_type.name)
        work(job_type, database)
    become("feedback")
    gone = Database("postgresql://127.0.0.1:1/gone")
    with pytest.raises(BatchStopped):
        Feedback(gone).handle(sqs_event(ses_event("delivered", "0" * 32)))
    for name, counts in (
        ("analytics", analytics.counts(analytics.AnalyticsReport())),
        ("fraud", fraud.counts(fraud.FraudReport())),
    ):
        become(name)
        with measuring_run(name) as figures:
            figures.update(counts)
    found = published()

    watched = {
        (alarm.properties["MetricName"], frozenset(alarm.dimensions.items()))
        for alarm in alarms.values()
        if alarm.properties["Namespace"] == "campaign-jobs"
    }
    assert len(watched) == len(LANES) * 2 + len(catalog.EVENT_JOB_TYPES) + 1 + 2 + 1
    assert watched <= found
    mails = {f"mails_{status}" for status in DELIVERY_STATUSES}
    shown = {
        (name, frozenset(zip(pairs[::2], pairs[1::2], strict=True)))
        for namespace, name, *pairs in shown_metrics(watching)
        if namespace == "campaign-jobs"
    }
    assert {(name, dimensions) for name, dimensions in shown if name not in mails} <= found
    assert {"mails_sent", "mails_delivered"} == {name for name, _ in shown} & mails


def work(job_type: catalog.EventJobType, database: Database) -> None:
    """A batch from Kafka, a retry in each lane, and a batch that stops."""
    queues = RecordingQueues()
    settings = settings_of(job_type)
    function: Pipeline | Unroutable = (
        Unroutable(settings, database, queues=queues)  # type: ignore[arg-type]
        if job_type is catalog.UNROUTABLE
        else Pipeline(job_type, ScriptedJob(), settings, database, queues=queues)
    )
    bad = b"not JSON"
    function.handle(from_kafka(bad), by_alias(job_type.lanes[0].name))
    for lane in job_type.lanes:
        message = {
            "topic": "job-events",
            "partition": 0,
            "offset": 1,
            "recorded_at": datetime.now(UTC).isoformat(),
            "first_received_at": datetime.now(UTC).isoformat(),
            "attempts": 1,
            "value": bad.decode(),
        }
        function.handle(from_sqs(message), by_alias(lane.name))
    queues.broken = True
    with pytest.raises(BatchStopped):
        function.handle(from_sqs({**message, "offset": 2}), by_alias(job_type.lanes[0].name))
