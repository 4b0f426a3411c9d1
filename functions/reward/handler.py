"""Delivers the user rewards of a batch of reward events."""

from collections.abc import Mapping
from typing import Any

from campaign_jobs.catalog import REWARD
from campaign_jobs.database.connection import Database
from campaign_jobs.reward.job import RewardJob
from campaign_jobs.reward.webhooks.client import HttpsWebhookClient
from campaign_jobs.settings import RewardSettings
from campaign_jobs.worker.pipeline import LambdaContext, Pipeline

settings = RewardSettings.load()
database = Database.from_settings(
    settings, application_name="campaign-jobs-reward", timeout_seconds=REWARD.timeout_seconds
)
pipeline = Pipeline(
    REWARD,
    RewardJob(
        database,
        HttpsWebhookClient(
            test_targets=settings.webhook_test_targets, test_ca_file=settings.webhook_test_ca_file
        ),
        pool_size=settings.kafka_worker_pool_size,
        missing_row_patience=settings.missing_row_patience,
    ),
    settings,
    database,
)


def handler(event: dict[str, Any], context: LambdaContext) -> Mapping[str, int]:
    return pipeline.handle(event, context)
