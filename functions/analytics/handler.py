"""Counts the hourly metrics; invoked with `{"backfill": {"from": …, "to": …}}` it counts that range again."""

from typing import Any

from campaign_jobs.analytics.job import AnalyticsJob, as_json, counts
from campaign_jobs.catalog import ANALYTICS
from campaign_jobs.database.connection import Database
from campaign_jobs.observability import logger_of, measuring_run
from campaign_jobs.settings import AnalyticsSettings

job = AnalyticsJob(
    Database.from_settings(
        AnalyticsSettings.load(),
        application_name="campaign-jobs-analytics",
        timeout_seconds=ANALYTICS.timeout_seconds,
    )
)


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    with measuring_run(ANALYTICS.name) as figures:
        report = job.run(event)
        figures.update(counts(report))
    logger_of(ANALYTICS.name).info("analytics ended", extra={"report": as_json(report)})
    return as_json(report)
