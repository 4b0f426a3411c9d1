"""Publishes the outbox and heartbeats to Kafka, brings back what waits in rows, and tells how far everybody has got."""

from typing import Any

from campaign_jobs.catalog import RELAY
from campaign_jobs.database.connection import Database
from campaign_jobs.observability import logger_of, measuring_run
from campaign_jobs.producer import JobProducer
from campaign_jobs.relay.heartbeats import Heartbeats
from campaign_jobs.relay.job import Relay, counts
from campaign_jobs.relay.progress import Progress
from campaign_jobs.relay.schedules import Rules
from campaign_jobs.settings import RelaySettings
from campaign_jobs.worker.delivery import Deadline
from campaign_jobs.worker.pipeline import LambdaContext

settings = RelaySettings.load()
database = Database.from_settings(
    settings, application_name="campaign-jobs-relay", timeout_seconds=RELAY.timeout_seconds
)
producer = JobProducer.from_settings(settings)
relay = Relay(database, producer)
progress = Progress(database, Heartbeats(database, producer, settings), Rules(settings))


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, float]:
    deadline = Deadline.of_invocation(context.get_remaining_time_in_millis)
    with measuring_run(RELAY.name) as figures, progress.of_run():
        report = relay.run(
            deadline, before_round=progress.report, after_round=lambda: progress.beat(deadline)
        )
        figures.update(counts(report))
    logger_of(RELAY.name).info("relay ended", extra=counts(report))
    return counts(report)
