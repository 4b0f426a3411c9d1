"""Dead-letters the records that no job type owns."""

from collections.abc import Mapping
from typing import Any

from campaign_jobs.catalog import UNROUTABLE
from campaign_jobs.database.connection import Database
from campaign_jobs.settings import UnroutableSettings
from campaign_jobs.worker.pipeline import LambdaContext
from campaign_jobs.worker.unroutable import Unroutable

settings = UnroutableSettings.load()
unroutable = Unroutable(
    settings,
    Database.from_settings(
        settings, application_name="campaign-jobs-unroutable", timeout_seconds=UNROUTABLE.timeout_seconds
    ),
)


def handler(event: dict[str, Any], context: LambdaContext) -> Mapping[str, int]:
    return unroutable.handle(event, context)
