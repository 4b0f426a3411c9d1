"""Hours are counted again by the function, and the numbers are taken along."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from campaign_jobs.analytics.job import METRICS, AnalyticsJob, as_json
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.errors import CampaignJobsError
from campaign_jobs_cli import analytics
from campaign_jobs_cli.analytics import slices_of
from local.control import Control
from local.functions import FunctionFailed
from tests.cli.conftest import Command, Endpoints
from tests.integration.position_campaign import Campaign

DAY = datetime(2026, 3, 1, tzinfo=UTC)


class Invoked:
    """The function's job, called as Lambda's API calls the function; without a process of its own."""

    def __init__(self, database: Database) -> None:
        self.events: list[dict[str, Any]] = []
        self.before: Callable[[], None] = lambda: None
        self._job = AnalyticsJob(database)

    def invoke(self, event: dict[str, Any]) -> object:
        self.events.append(event)
        self.before()
        try:
            return as_json(self._job.run(event))
        except CampaignJobsError as error:
            raise FunctionFailed(type(error).__name__, str(error)) from error


@pytest.fixture
def function(database: Database, endpoints: Endpoints) -> Iterator[Invoked]:
    invoked = Invoked(database)
    with Control([("campaign-jobs-local-analytics", invoked)], [], []) as control:
        endpoints.set(control_url=control.url)
        yield invoked


@pytest.fixture
def campaign(connection: Connection) -> Campaign:
    campaign = Campaign(connection)
    for day, user in enumerate(campaign.add_users(10)):
        connection.execute(
            "UPDATE campaign_jobs.waitlist_users SET created_at = %s, verified_at = NULL WHERE id = %s",
            (DAY + timedelta(days=day, hours=10), user),
        )
    return campaign


def counted(connection: Connection) -> int:
    row = connection.execute("SELECT sum(new_signups) FROM campaign_jobs.campaign_metrics").fetchone()
    return int(row[0] or 0) if row else 0


def test_a_long_range_is_counted_in_slices(
    command: Command, campaign: Campaign, connection: Connection, function: Invoked
) -> None:
    options = ["--from", "2026-03-01T10:00:00Z", "--to", "2026-03-11T00:00:00Z", "--slice-days", "4"]
    asked = command("analytics", "backfill", *options)
    assert asked.code == 3 and function.events == []
    printed = command("analytics", "backfill", *options, "--yes", "--output", "json")
    assert printed.code == 0, printed.err
    assert printed.json == {
        "from": "2026-03-01T10:00:00+00:00",
        "to": "2026-03-11T00:00:00+00:00",
        "invocations": 3,
        "hours": 10,
        "records": 10,
    }
    bounds = [(event["backfill"]["from"], event["backfill"]["to"]) for event in function.events]
    assert [begin for begin, _ in bounds[1:]] == [end for _, end in bounds[:-1]], "without a gap"
    assert counted(connection) == 10
    assert connection.execute("SELECT count(*) FROM campaign_jobs.job_watermarks").fetchone() == (0,)


def test_slices_cover_the_range() -> None:
    assert list(slices_of(DAY, DAY + timedelta(days=5), timedelta(days=2))) == [
        (DAY, DAY + timedelta(days=2)),
        (DAY + timedelta(days=2), DAY + timedelta(days=4)),
        (DAY + timedelta(days=4), DAY + timedelta(days=5)),
    ]


def test_what_the_function_refuses_is_told_with_its_reason(
    command: Command, campaign: Campaign, connection: Connection, function: Invoked
) -> None:
    printed = command("analytics", "backfill", "--from", "2020-01-01", "--to", "2020-01-02", "--yes")
    assert printed.code == 1
    assert "the oldest row that is kept" in printed.err and "Traceback" not in printed.err
    assert counted(connection) == 0


def test_an_interruption_says_where_to_go_on(
    command: Command, campaign: Campaign, connection: Connection, function: Invoked
) -> None:
    def fail_the_second_time() -> None:
        if len(function.events) == 2:
            raise FunctionFailed("Sandbox.Timedout", "Task timed out after 300.00 seconds")

    function.before = fail_the_second_time
    options = ["--to", "2026-03-11T00:00:00Z", "--slice-days", "4", "--yes"]
    printed = command("analytics", "backfill", "--from", "2026-03-01T10:00:00Z", *options)
    assert printed.code == 1
    assert "timed out" in printed.err and "--from 2026-03-05T10:00:00+00:00" in printed.err
    assert counted(connection) == 4


def test_another_run_is_waited_for(
    command: Command,
    campaign: Campaign,
    connection: Connection,
    database_url: str,
    function: Invoked,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('campaign_jobs.analytics', 0))")

        def let_go(seconds: float) -> None:
            other.rollback()

        # In the place of the wait: the other run ends.
        monkeypatch.setattr(analytics.time, "sleep", let_go)
        options = ["--from", "2026-03-01T10:00:00Z", "--to", "2026-03-03T00:00:00Z", "--yes"]
        printed = command("analytics", "backfill", *options)
    assert printed.code == 0, printed.err
    assert "Another run of analytics is at work" in printed.err
    assert len(function.events) == 2 and counted(connection) == 2


@pytest.mark.parametrize(("begin", "end"), [("2026-03-02", "2026-03-01"), ("yesterday", "2026-03-01")])
def test_a_range_that_is_none(command: Command, function: Invoked, begin: str, end: str) -> None:
    assert command("analytics", "backfill", "--from", begin, "--to", end, "--yes").code == 2
    assert function.events == []


@pytest.fixture
def metrics(connection: Connection) -> Campaign:
    """Numbers around the hour that daylight saving leaves out in Berlin, on 29 March 2026."""
    campaign = Campaign(connection)
    connection.execute(
        "UPDATE campaign_jobs.campaigns SET timezone = 'Europe/Berlin', name = '=HYPERLINK(1)'"
    )
    for bucket, signups in (
        ("2026-03-28T22:00:00Z", 1),
        ("2026-03-29T00:00:00Z", 2),
        ("2026-03-29T01:00:00Z", 4),
    ):
        connection.execute(
            "INSERT INTO campaign_jobs.campaign_metrics (campaign_id, bucket, new_signups, emails_sent)"
            " VALUES (%s, %s, %s, 1)",
            (campaign.id, bucket, signups),
        )
    return campaign


def test_numbers_as_csv_in_the_campaigns_time_zone(command: Command, metrics: Campaign) -> None:
    printed = command("analytics", "export", "--campaign", metrics.id)
    assert printed.code == 0, printed.err
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert list(rows[0]) == ["campaign_id", "campaign", "timezone", "bucket", *METRICS]
    assert [(row["bucket"], row["new_signups"]) for row in rows] == [
        ("2026-03-28T23:00:00+01:00", "1"),
        ("2026-03-29T01:00:00+01:00", "2"),
        ("2026-03-29T03:00:00+02:00", "4"),
    ]
    assert rows[0]["campaign"] == "'=HYPERLINK(1)", "a spreadsheet must not run it"


def test_days_and_bounds_are_the_campaigns(command: Command, metrics: Campaign) -> None:
    rows = command("analytics", "export", "--campaign", metrics.id, "--by", "day", "--output", "json").json
    assert [(row["bucket"], row["new_signups"]) for row in rows] == [
        ("2026-03-28T00:00:00+01:00", 1),
        ("2026-03-29T00:00:00+01:00", 6),
    ]
    options = ["--campaign", str(metrics.id), "--metric", "new_signups", "--output", "json"]
    (row, *others) = command("analytics", "export", *options, "--from", "2026-03-29").json
    assert row["new_signups"] == 2 and len(others) == 1
    assert set(row) == {"campaign_id", "campaign", "timezone", "bucket", "new_signups"}
    (row,) = command("analytics", "export", *options, "--to", "2026-03-29").json
    assert row["new_signups"] == 1
    assert command("analytics", "export", *options, "--from", "2026-03-30").json == []


def test_numbers_go_to_a_file(command: Command, metrics: Campaign, tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    printed = command("analytics", "export", "--file", file, "--output", "json")
    assert printed.out == "" and "3 rows" in printed.err
    assert len(json.loads(file.read_text())) == 3


def test_a_file_that_cannot_be_written(command: Command, metrics: Campaign, tmp_path: Path) -> None:
    printed = command("analytics", "export", "--file", tmp_path / "nowhere" / "numbers.csv")
    assert printed.code == 2 and "No such file or directory" in printed.err


def test_what_is_no_metric(command: Command, metrics: Campaign) -> None:
    assert command("analytics", "export", "--metric", "sales").code == 2
    assert command("analytics", "export", "--by", "week").code == 2
