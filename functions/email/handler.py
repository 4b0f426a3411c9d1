"""Sends the mails of a batch of email events; each of its two lanes has a mapping of its own."""

from collections.abc import Mapping
from typing import Any

from campaign_jobs.catalog import EMAIL
from campaign_jobs.database.connection import Database
from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.rate import SendRate
from campaign_jobs.email.ses import SesSender
from campaign_jobs.email.unsubscribing.keys import KeyRing
from campaign_jobs.email.unsubscribing.links import UnsubscribeLinks
from campaign_jobs.settings import EmailSettings
from campaign_jobs.worker.pipeline import LambdaContext, Pipeline

settings = EmailSettings.load()
database = Database.from_settings(
    settings, application_name="campaign-jobs-email", timeout_seconds=EMAIL.timeout_seconds
)
sender = SesSender(
    pool_size=settings.kafka_worker_pool_size, configuration_set=settings.ses_configuration_set
)
pipeline = Pipeline(
    EMAIL,
    EmailJob(
        database,
        sender,
        rate=SendRate(database, sender, share=settings.ses_rate_share),
        pool_size=settings.kafka_worker_pool_size,
        default_sender=settings.default_sender,
        unsubscribe_links=UnsubscribeLinks(settings.unsubscribe_url, KeyRing.from_settings(settings)),
        default_base_url=settings.default_public_base_url,
        missing_row_patience=settings.missing_row_patience,
    ),
    settings,
    database,
)


def handler(event: dict[str, Any], context: LambdaContext) -> Mapping[str, int]:
    return pipeline.handle(event, context)
