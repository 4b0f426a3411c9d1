"""A function's handler like those in `functions`, with the benchmark's job in it."""

from collections.abc import Mapping
from typing import Any

from benchmarks.ours.effect import EffectJob
from campaign_jobs.catalog import POSITION
from campaign_jobs.database.connection import Database
from campaign_jobs.settings import PositionSettings
from campaign_jobs.worker.pipeline import LambdaContext, Pipeline

settings = PositionSettings.load()
database = Database.from_settings(
    settings, application_name="benchmark", timeout_seconds=POSITION.timeout_seconds
)
pipeline = Pipeline(POSITION, EffectJob(database), settings, database)


def handler(event: dict[str, Any], context: LambdaContext) -> Mapping[str, int]:
    return pipeline.handle(event, context)
