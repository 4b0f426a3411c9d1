"""`campaign-jobs analytics`: counting hours again, and taking the numbers along."""

import csv
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, TextIO
from zoneinfo import ZoneInfo

import typer
from botocore.exceptions import BotoCoreError, ClientError

from campaign_jobs.analytics.job import METRICS
from campaign_jobs_cli import naming, session, times
from campaign_jobs_cli.errors import CommandError, WrongInput
from campaign_jobs_cli.output import Format, Output
from campaign_jobs_cli.targets import Target

app = typer.Typer(
    help="The hourly numbers of campaigns: counting them again, exporting them.", no_args_is_help=True
)

OVERLAP_PATIENCE: Final = timedelta(minutes=10)
"""How long another run is waited for; a function's run takes five minutes at most."""
LOOK_AGAIN_SECONDS: Final = 5

From = Annotated[str, typer.Option("--from", help="A day or time, such as 2026-03-01T00:00:00Z.")]
To = Annotated[str, typer.Option("--to", help="Up to here, this moment left out.")]

# A bucket begins where its hour begins in the campaign's time zone; days are the campaign's, too.
_EXPORT: Final = """
SELECT metrics.campaign_id, campaigns.name AS campaign, campaigns.timezone,
    date_trunc(%(by)s, metrics.bucket, campaigns.timezone) AS bucket,
    sum(new_signups)::bigint AS new_signups, sum(email_verifications)::bigint AS email_verifications,
    sum(referrals)::bigint AS referrals, sum(emails_sent)::bigint AS emails_sent,
    sum(rewards_delivered)::bigint AS rewards_delivered
FROM campaign_jobs.campaign_metrics AS metrics
JOIN campaign_jobs.campaigns ON campaigns.id = metrics.campaign_id
WHERE (%(campaign_id)s::uuid IS NULL OR metrics.campaign_id = %(campaign_id)s::uuid)
    AND (%(begin)s::timestamptz IS NULL OR metrics.bucket >= %(begin)s::timestamptz)
    AND (%(end)s::timestamptz IS NULL OR metrics.bucket < %(end)s::timestamptz)
GROUP BY 1, 2, 3, 4 ORDER BY 2, 1, 4
"""


@app.command()
def backfill(
    context: typer.Context,
    begin: From,
    end: To,
    slice_days: Annotated[
        int, typer.Option("--slice-days", min=1, max=366, help="The days that one invocation counts.")
    ] = 7,
    yes: session.Yes = False,
) -> None:
    """Count the hours of a time range again, after an import with old timestamps for example.

    The function counts, slice by slice, and leaves its watermark alone. A range older than what is kept is refused.
    What was counted stays counted; after an interruption go on with the --from that is named.
    """
    opened = session.of(context)
    output, target = opened.output, opened.target
    first, last = times.moment(begin), times.moment(end)
    if first >= last:
        raise WrongInput(f"--to is {end!r}; allowed is a time after --from, {begin!r}")
    slices = list(slices_of(first, last, timedelta(days=slice_days)))
    with target.database() as connection:
        row = connection.execute(
            "SELECT count(*) AS rows, count(DISTINCT campaign_id) AS campaigns FROM campaign_jobs.campaign_metrics"
            " WHERE bucket >= %s AND bucket < %s",
            (first, last),
        ).fetchone()
    assert row is not None
    plan = {"from": first, "to": last, "invocations": len(slices), "counted_before": row["rows"]}
    output.beforehand.record({**plan, "campaigns": row["campaigns"]}, title="Plan")
    output.confirm("Count these hours again?", yes=yes)
    reports = []
    with output.progress("Counting", len(slices)) as advance:
        for part_begin, part_end in slices:
            try:
                reports.append(_count(target, output, part_begin, part_end))
            except (CommandError, BotoCoreError, ClientError) as error:
                counted = (
                    f"; counted up to there. Go on with --from {part_begin.isoformat()}" if reports else ""
                )
                raise CommandError(f"{error}{counted}") from error
            advance()
    output.record(
        {
            "from": first,
            "to": last,
            "invocations": len(reports),
            "hours": sum(report["buckets"] for report in reports),
            "records": sum(report["records"] for report in reports),
        }
    )


def slices_of(begin: datetime, end: datetime, length: timedelta) -> Iterator[tuple[datetime, datetime]]:
    """The range in parts of at most that length, in order, without a gap."""
    while begin < end:
        part_end = min(begin + length, end)
        yield begin, part_end
        begin = part_end


def _count(target: Target, output: Output, begin: datetime, end: datetime) -> dict[str, Any]:
    """One invocation, repeated while another run is at work. Where its answer is lost, the SDK asks again, and counting
    twice gives the same numbers."""
    event = {"backfill": {"from": begin.isoformat(), "to": end.isoformat()}}
    give_up_at, told = time.monotonic() + OVERLAP_PATIENCE.total_seconds(), False
    while True:
        answer = target.client("lambda").invoke(
            FunctionName=target.resource_name("analytics"), Payload=json.dumps(event).encode()
        )
        report: dict[str, Any] = json.loads(answer["Payload"].read())
        if "FunctionError" in answer:
            raise CommandError(
                f"the function failed on {begin.isoformat()} to {end.isoformat()}: {_problem(report)}"
            )
        if not report["overlapped"]:
            return report
        if time.monotonic() > give_up_at:
            raise CommandError("another run of analytics has been at work all the time; try again later")
        if not told:
            output.note("Another run of analytics is at work; waiting for its end.")
            told = True
        time.sleep(LOOK_AGAIN_SECONDS)


def _problem(failure: dict[str, Any]) -> str:
    return str(failure.get("errorMessage") or failure.get("errorType") or failure)


@app.command()
def export(
    context: typer.Context,
    *,
    campaign: Annotated[
        str | None, typer.Option("--campaign", help="Of this campaign alone, by id or name.")
    ] = None,
    begin: Annotated[
        str | None,
        typer.Option("--from", help="A day or time; in the campaign's time zone unless it says otherwise."),
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="Up to here, this moment left out.")] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", help=f"{', '.join(METRICS)}; may be given again; all unless given."),
    ] = None,
    by: Annotated[
        str, typer.Option("--by", help="hour, day or month, of the campaign's time zone.")
    ] = "hour",
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Write to this file instead of standard output.", dir_okay=False),
    ] = None,
) -> None:
    """Write the numbers as CSV, or with --output json as JSON: one row for each campaign and hour with something in it.

    Times are those of the campaign's time zone, with their offset.
    """
    opened = session.of(context)
    wanted = tuple(metrics or METRICS)
    for name in wanted:
        if name not in METRICS:
            raise WrongInput(f"--metric is {name!r}; allowed are {', '.join(METRICS)}")
    if by not in ("hour", "day", "month"):
        raise WrongInput(f"--by is {by!r}; allowed are hour, day and month")
    with opened.target.database() as connection:
        chosen = None if campaign is None else naming.campaign(connection, campaign)
        zone = chosen["timezone"] if chosen else "UTC"
        parameters = {
            "campaign_id": chosen["id"] if chosen else None,
            "by": by,
            "begin": None if begin is None else _in_zone(begin, "--from", zone),
            "end": None if end is None else _in_zone(end, "--to", zone),
        }
        with connection.transaction(), connection.cursor("export") as cursor, _written_to(file) as stream:
            rows = (_row(row, wanted) for row in cursor.execute(_EXPORT, parameters))
            count = (_write_json if opened.output.format is Format.JSON else _write_csv)(stream, rows, wanted)
    opened.output.note(f"{count:,} rows" + (f" in {file}" if file else ""))


def _in_zone(given: str, what: str, zone: str) -> datetime:
    """A time; one that is written without a zone is meant in the campaign's."""
    moment = times.moment(given)
    try:
        written = datetime.fromisoformat(given.strip())
    except ValueError:
        return moment  # How long ago, which is the same everywhere.
    try:
        return moment if written.tzinfo else written.replace(tzinfo=ZoneInfo(zone))
    except KeyError as error:
        raise CommandError(
            f"this machine does not know the time zone {zone}; give {what} an offset"
        ) from error


def _row(row: dict[str, Any], wanted: tuple[str, ...]) -> dict[str, Any]:
    try:
        bucket = row["bucket"].astimezone(ZoneInfo(row["timezone"]))
    except (ValueError, KeyError):
        # PostgreSQL knows time zones that this machine does not.
        bucket = row["bucket"].astimezone(UTC)
    return {
        "campaign_id": str(row["campaign_id"]),
        "campaign": row["campaign"],
        "timezone": row["timezone"],
        "bucket": bucket.isoformat(),
        **{name: row[name] for name in wanted},
    }


@contextmanager
def _written_to(file: Path | None) -> Iterator[TextIO]:
    if file is None:
        yield sys.stdout
        return
    try:
        opened = file.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise WrongInput(f"--file {file} cannot be written: {error.strerror}") from error
    with opened as stream:
        yield stream


def _write_csv(stream: TextIO, rows: Iterator[dict[str, Any]], wanted: tuple[str, ...]) -> int:
    writer = csv.DictWriter(
        stream, ("campaign_id", "campaign", "timezone", "bucket", *wanted), lineterminator="\n"
    )
    writer.writeheader()
    count = 0
    for row in rows:
        writer.writerow({**row, "campaign": no_formula(row["campaign"])})
        count += 1
    return count


def _write_json(stream: TextIO, rows: Iterator[dict[str, Any]], _wanted: tuple[str, ...]) -> int:
    count = 0
    stream.write("[")
    for row in rows:
        stream.write((",\n " if count else "\n ") + json.dumps(row))
        count += 1
    stream.write("\n]\n" if count else "]\n")
    return count


def no_formula(text: str) -> str:
    """A campaign's name may be anybody's text, and a spreadsheet would run one that begins like a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
