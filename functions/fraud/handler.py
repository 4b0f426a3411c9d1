"""Looks for fraud in what changed since the last run."""

from dataclasses import asdict
from typing import Any

from campaign_jobs.catalog import FRAUD
from campaign_jobs.database.connection import Database
from campaign_jobs.fraud.job import FraudJob, counts
from campaign_jobs.observability import logger_of, measuring_run
from campaign_jobs.settings import FraudSettings

job = FraudJob(
    Database.from_settings(
        FraudSettings.load(),
        application_name="campaign-jobs-fraud",
        timeout_seconds=FRAUD.timeout_seconds,
    )
)


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    with measuring_run(FRAUD.name) as figures:
        report = job.run(event)
        figures.update(counts(report))
    logger = logger_of(FRAUD.name)
    logger.info("fraud ended", extra={"report": asdict(report)})
    for problem in report.invalid_policies:
        logger.warning(
            "a campaign's fraud_policy is wrong; the default one is in force", extra={"problem": problem}
        )
    return asdict(report)
