"""How late the scheduled jobs are, by the schedules that their rules have now.

The age of a watermark says nothing by itself: an hour is early for a job that runs each day, and late for one that runs
each quarter of an hour. Both are tuned in the EventBridge console, so the rule itself is asked.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Final

from campaign_jobs.catalog import JOB_TYPES_WITH_WATERMARK, RELAY, ScheduledJobType
from campaign_jobs.database.connection import LONGEST_FUNCTION_SECONDS, Connection
from campaign_jobs.errors import CampaignJobsError
from campaign_jobs.observability import logger_of
from campaign_jobs.settings import RelaySettings

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient

DISABLED: Final = "disabled"
_LONGEST_RUN: Final = timedelta(seconds=LONGEST_FUNCTION_SECONDS)

_READ: Final = """
SELECT known.job_type, known.schedule, known.since, progress.watermark, progress.updated_at, clock_timestamp()
FROM campaign_jobs.job_schedules AS known LEFT JOIN campaign_jobs.job_watermarks AS progress USING (job_type)
"""

_REMEMBER: Final = """
INSERT INTO campaign_jobs.job_schedules AS known (job_type, schedule) VALUES (%(job_type)s, %(schedule)s)
ON CONFLICT (job_type) DO UPDATE
SET schedule = EXCLUDED.schedule, since = CASE WHEN %(late)s THEN known.since ELSE clock_timestamp() END
"""


class UnknownSchedule(CampaignJobsError):
    """A rule's schedule is neither a rate nor a cron expression that we can read."""


class Rules:
    """The schedules of the jobs' rules; where no rule is named, the interval that the settings say."""

    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings

    def schedules(self) -> dict[str, str]:
        """By job type; DISABLED where the rule is. Without a job type whose rule cannot be read, which is logged."""
        found: dict[str, str] = {}
        for job_type in JOB_TYPES_WITH_WATERMARK:
            name = self._settings.rule_of(job_type)
            try:
                found[job_type.name] = self._of_settings(job_type) if name is None else self._of_rule(name)
            except Exception as error:  # noqa: BLE001  It is logged, and the missing figure raises the alarm.
                # Whatever it is (no network, no permission, no such rule), the outbox does not wait for it.
                logger_of(RELAY.name).warning(
                    "a rule cannot be read", extra={"job_type": job_type.name, "reason": str(error)}
                )
        return found

    def _of_settings(self, job_type: ScheduledJobType) -> str:
        minutes = self._settings.interval_of(job_type) // timedelta(minutes=1)
        return f"rate({minutes} minutes)"

    def _of_rule(self, name: str) -> str:
        rule = self._client.describe_rule(Name=name)
        return DISABLED if rule.get("State") == "DISABLED" else rule["ScheduleExpression"]

    @cached_property
    def _client(self) -> "EventBridgeClient":
        # Only a system with EventBridge pays for this import.
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=1, read_timeout=2, retries={"mode": "standard", "total_max_attempts": 1}
        )
        return boto3.client("events", config=config)


@dataclass(frozen=True)
class JobProgress:
    """How far a scheduled job has got, when it was asked."""

    schedule: str
    since: datetime
    """No run was due before, by this schedule."""
    watermark: datetime | None
    ran_at: datetime | None
    """When the run that wrote the watermark began."""
    now: datetime

    def missed(self) -> timedelta:
        """How long ago a run was due that has not come to its end; zero where none is."""
        due = next_tick(self.schedule, max(self.since, self.ran_at or self.since))
        return timedelta() if due is None else max(self.now - due, timedelta())

    def age(self) -> timedelta:
        """How far the watermark is behind where its schedule should have brought it.

        That is for how long a run has been missing, and how far the last one left the watermark behind its own time,
        as a transaction does that a service leaves open.
        """
        if self.schedule == DISABLED:
            return timedelta()
        behind = timedelta()
        if self.watermark is not None and self.ran_at is not None:
            behind = max(self.ran_at - self.watermark, behind)
        return behind + self.missed()


def ages(connection: Connection, schedules: Mapping[str, str]) -> dict[str, float]:
    """In seconds, by job type, and remembers the schedules. A job type whose schedule we cannot read is left out."""
    found: dict[str, float] = {}
    stored = _stored(connection)
    for job_type, schedule in schedules.items():
        try:
            if job_type not in stored or stored[job_type].schedule != schedule:
                # So that tuning neither raises an alarm nor takes one back.
                late = job_type in stored and _is_late(stored[job_type])
                remember = {"job_type": job_type, "schedule": schedule, "late": late}
                connection.execute(_REMEMBER, remember)
                stored = _stored(connection)
            found[job_type] = stored[job_type].age().total_seconds()
        except UnknownSchedule as error:
            logger_of(RELAY.name).warning(
                "a rule's schedule cannot be read", extra={"job_type": job_type, "reason": str(error)}
            )
    return found


def _stored(connection: Connection) -> dict[str, JobProgress]:
    return {job_type: JobProgress(*columns) for job_type, *columns in connection.execute(_READ).fetchall()}


def _is_late(progress: JobProgress) -> bool:
    """Whether a run is missing, rather than under way."""
    try:
        return progress.missed() > _LONGEST_RUN
    except UnknownSchedule:
        return False


def next_tick(schedule: str, after: datetime) -> datetime | None:
    """When a rule with this schedule ticks next; None when it does not any more.

    A rate counts from `after`, because the rule does not tell when it ticked last. Raises UnknownSchedule.
    https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-scheduled-rule-pattern.html
    """
    if schedule == DISABLED:
        return None
    if rate := re.fullmatch(r"rate\(([0-9]{1,6}) (minute|hour|day)s?\)", schedule.strip()):
        return after + int(rate[1]) * timedelta(**{f"{rate[2]}s": 1})
    if cron := re.fullmatch(r"cron\((.+)\)", schedule.strip()):
        return _next_by_cron(" ".join(cron[1].split()), after)
    raise UnknownSchedule(f"{schedule!r}: allowed are rate(…), cron(…)")


def _next_by_cron(expression: str, after: datetime) -> datetime | None:
    try:
        # Most rules have a rate.
        from aws_croniter import AwsCroniter

        tick: datetime | None = AwsCroniter(expression).get_next(after.astimezone(UTC))[0]
    except Exception as error:
        # Its errors have no common base.
        raise UnknownSchedule(f"cron({expression}): {error}") from error
    return tick
