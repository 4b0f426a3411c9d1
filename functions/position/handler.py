"""Recalculates the positions of the campaigns that a batch of events asks for."""

from collections.abc import Mapping
from typing import Any

from campaign_jobs.catalog import POSITION
from campaign_jobs.database.connection import Database
from campaign_jobs.position.job import PositionJob
from campaign_jobs.settings import PositionSettings
from campaign_jobs.worker.pipeline import LambdaContext, Pipeline

settings = PositionSettings.load()
database = Database.from_settings(
    settings, application_name="campaign-jobs-position", timeout_seconds=POSITION.timeout_seconds
)
pipeline = Pipeline(
    POSITION,
    PositionJob(
        database,
        missing_row_patience=settings.missing_row_patience,
    ),
    settings,
    database,
)


def handler(event: dict[str, Any], context: LambdaContext) -> Mapping[str, int]:
    return pipeline.handle(event, context)
