"""Races of analytics runs with backfills, with each other and with what commits late."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from campaign_jobs.analytics.job import AnalyticsJob, AnalyticsReport
from campaign_jobs.database.connection import Connection
from tests.interleavings.services import writes
from tests.interleavings.stepping import Race

DAYS_AGO = datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(days=3)
# Well within the trailing hours, however long after the import it is looked for.
HOURS_AGO = DAYS_AGO + timedelta(days=2, hours=12)
BACKFILL = {
    "backfill": {
        "from": DAYS_AGO.isoformat(),
        "to": (DAYS_AGO + timedelta(hours=2)).isoformat(),
    }
}
SIGN_UP = """
INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, original_position, created_at)
VALUES (%(id)s, %(campaign)s, %(id)s || '@example.org', %(number)s, %(moment)s)
"""
COUNTED = """
SELECT campaign_id, bucket, new_signups FROM campaign_jobs.campaign_metrics ORDER BY 1, 2
"""
# What is there to be counted, straight from the rows.
HAPPENED = """
SELECT campaign_id, date_trunc('hour', created_at, 'UTC'), count(*)::integer
FROM campaign_jobs.waitlist_users GROUP BY 1, 2 ORDER BY 1, 2
"""


class Signups:
    """A campaign in which people sign up."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.id, self.number = uuid.uuid4(), 0
        connection.execute("INSERT INTO campaign_jobs.campaigns (id, name) VALUES (%s, 'Launch')", (self.id,))

    def sign_up(self, moment: datetime) -> tuple[str, Any]:
        self.number += 1
        return SIGN_UP, {"id": uuid.uuid4(), "campaign": self.id, "number": self.number, "moment": moment}

    def happens(self, moment: datetime) -> None:
        statement, parameters = self.sign_up(moment)
        self.connection.execute(statement.encode(), parameters)

    def watermark(self) -> datetime | None:
        row = self.connection.execute(
            "SELECT watermark FROM campaign_jobs.job_watermarks WHERE job_type = 'analytics'"
        ).fetchone()
        return row[0] if row else None

    def assert_all_is_counted(self) -> None:
        counted = self.connection.execute(COUNTED).fetchall()
        assert counted == self.connection.execute(HAPPENED).fetchall()


@pytest.mark.parametrize("other", ["scheduled", "backfill"])
def test_runs_never_overlap_and_count_once(race: Race, connection: Connection, other: str) -> None:
    first, second = AnalyticsJob(race.first.database), AnalyticsJob(race.second.database)
    signups = Signups(connection)
    signups.happens(DAYS_AGO)
    first.run({})
    event: dict[str, Any] = {} if other == "scheduled" else BACKFILL
    for schedule in race.schedules():
        # One that only the backfill looks for, and two for the scheduled run, one of them late.
        for moment in (DAYS_AGO + timedelta(minutes=40), HOURS_AGO, datetime.now(UTC)):
            signups.happens(moment)
        before = signups.watermark()
        reports: tuple[AnalyticsReport, AnalyticsReport] = schedule.run(
            lambda: first.run({}), lambda: second.run(event)
        )
        assert not all(report.overlapped for report in reports)
        if reports[0].overlapped:
            assert (signups.watermark() == before) == (other == "backfill")
        # Whoever left comes again with the next tick, or is asked for again.
        first.run({})
        first.run(BACKFILL)
        signups.assert_all_is_counted()


def test_a_backfill_that_was_not_turned_away_has_counted_what_was_there(
    race: Race, connection: Connection
) -> None:
    """What commits before the lock is tried is in the numbers, whoever else ran meanwhile."""
    first, second = AnalyticsJob(race.first.database), AnalyticsJob(race.second.database)
    signups = Signups(connection)
    signups.happens(DAYS_AGO)
    first.run({})

    for schedule in race.schedules():

        def happens_and_backfill() -> AnalyticsReport:
            writes(race.second, signups.sign_up(DAYS_AGO + timedelta(minutes=40)))()
            return second.run(BACKFILL)

        _, report = schedule.run(lambda: first.run(BACKFILL), happens_and_backfill)
        if report.overlapped:
            assert not second.run(BACKFILL).overlapped
        signups.assert_all_is_counted()


def test_what_commits_during_a_run_is_counted_by_the_next(race: Race, connection: Connection) -> None:
    job = AnalyticsJob(race.first.database)
    signups = Signups(connection)
    job.run({})
    for schedule in race.schedules():
        work: Callable[[], None] = writes(race.second, signups.sign_up(datetime.now(UTC)))
        schedule.run(lambda: job.run({}), work)
        job.run({})
        signups.assert_all_is_counted()
