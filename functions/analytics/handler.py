"""Counts the hourly metrics, and deletes what has been kept long enough.

Invoked with `{"backfill": {"from": …, "to": …}}` it counts that range again, and deletes nothing.
"""

from dataclasses import asdict
from typing import Any

from campaign_jobs import retention
from campaign_jobs.analytics.job import AnalyticsJob, as_json, counts
from campaign_jobs.catalog import ANALYTICS
from campaign_jobs.database.connection import Database
from campaign_jobs.observability import logger_of, measuring_run
from campaign_jobs.retention import Retention
from campaign_jobs.settings import AnalyticsSettings
from campaign_jobs.worker.delivery import Deadline
from campaign_jobs.worker.pipeline import LambdaContext

settings = AnalyticsSettings.load()
database = Database.from_settings(
    settings, application_name="campaign-jobs-analytics", timeout_seconds=ANALYTICS.timeout_seconds
)
job = AnalyticsJob(database)
kept = Retention(database, settings)


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    deadline = Deadline.of_invocation(context.get_remaining_time_in_millis)
    logger = logger_of(ANALYTICS.name)
    with measuring_run(ANALYTICS.name) as figures:
        report = job.run(event)
        figures.update(counts(report))
        logger.info("analytics ended", extra={"report": as_json(report)})
        if not report.backfilled and not report.overlapped:
            deleted = kept.run(deadline)
            figures.update(retention.counts(deleted))
            logger.info("retention ended", extra={"report": asdict(deleted)})
    return as_json(report)
