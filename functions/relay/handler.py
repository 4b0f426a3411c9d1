"""Publishes the outbox to Kafka, and brings back what waits in rows."""

from typing import Any

from campaign_jobs.catalog import RELAY
from campaign_jobs.database.connection import Database
from campaign_jobs.observability import logger_of, publish_metrics
from campaign_jobs.producer import JobProducer
from campaign_jobs.relay.job import Relay, counts
from campaign_jobs.settings import RelaySettings
from campaign_jobs.worker.delivery import Deadline
from campaign_jobs.worker.pipeline import LambdaContext

settings = RelaySettings.load()
relay = Relay(
    Database.from_settings(
        settings, application_name="campaign-jobs-relay", timeout_seconds=RELAY.timeout_seconds
    ),
    JobProducer.from_settings(settings),
)


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, float]:
    report = counts(relay.run(Deadline.of_invocation(context.get_remaining_time_in_millis)))
    logger_of(RELAY.name).info("relay ended", extra=report)
    publish_metrics(RELAY.name, report)
    return report
