"""Counts the hourly metrics; invoked with `{"backfill": {"from": …, "to": …}}` it counts that range again."""

from typing import Any

from campaign_jobs.analytics.job import AnalyticsJob, as_json, counts
from campaign_jobs.catalog import ANALYTICS
from campaign_jobs.database.connection import Database
from campaign_jobs.observability import logger_of, publish_metrics
from campaign_jobs.settings import AnalyticsSettings

job = AnalyticsJob(
    Database.from_settings(
        AnalyticsSettings.load(),
        application_name="campaign-jobs-analytics",
        timeout_seconds=ANALYTICS.timeout_seconds,
    )
)


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    report = job.run(event)
    logger_of(ANALYTICS.name).info("analytics ended", extra={"report": as_json(report)})
    publish_metrics(ANALYTICS.name, counts(report))
    return as_json(report)
