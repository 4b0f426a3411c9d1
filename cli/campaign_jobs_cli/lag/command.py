"""The command `campaign-jobs lag`."""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from confluent_kafka.admin import AdminClient
from rich.console import Group
from rich.live import Live
from rich.text import Text

from campaign_jobs import catalog
from campaign_jobs_cli import kafka, session
from campaign_jobs_cli.lag import queues, topic
from campaign_jobs_cli.lag.queues import QueueDepth
from campaign_jobs_cli.lag.topic import PartitionLag
from campaign_jobs_cli.mappings import mappings_of
from campaign_jobs_cli.output import duration, table_of
from campaign_jobs_cli.targets import Target

LATE_SECONDS: Final = 300
"""As the alarms have it, but for bulk mail, which may wait for the send rate."""

_SUMMARY: Final = (
    "job_type", "lane", "mappings", "heartbeat", "events", "behind", "retries", "later", "under_way", "oldest_retry",
)  # fmt: skip
_PARTITIONS: Final = ("job_type", "lane", "partition", "heartbeat", "committed", "end", "events", "behind")


def lag(
    context: typer.Context,
    *,
    partitions: Annotated[
        bool, typer.Option("--partitions", help="A line for each partition instead of a sum for each lane.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks of --watch.")] = 5,
) -> None:
    """How far everybody is behind: heartbeats, records, retries.

    heartbeat: the age of the last heartbeat that the lane has got through, of the partition that is behind most. It
    is the true delay; one to two minutes are usual, since one is published each minute.

    events: records between the committed offset and the end. Lambda commits the offsets of records that its filter
    keeps out only when it invokes the function, so a quiet lane shows events that are none of its own.

    behind: how long the oldest record has waited that the lane's filter passes; not known where none was found
    among the first 2,000 of a partition.

    retries, later, under way: messages of the retry queue that are due, not due yet, and received by a function.
    oldest retry: as SQS tells CloudWatch each minute. It begins anew with each attempt, and leaves out what was
    received three times.
    """
    opened = session.of(context)
    target, output = opened.target, opened.output
    client = kafka.admin(target)
    if not watch:
        with output.progress("Looking at topic and queues"):
            rows = _rows(target, client, partitions)
        columns = _PARTITIONS if partitions else _SUMMARY
        if output.format == "json":
            output.rows(rows, columns=columns)
        else:
            output.results.print(table_of([_readable(row) for row in rows], columns=columns))
        return
    # Ctrl-C is how it ends.
    with suppress(KeyboardInterrupt):
        if output.format == "json":
            while True:
                output.line({"at": datetime.now(UTC), "lag": _rows(target, client, partitions)}, "")
                time.sleep(every)
        with Live(console=output.results, auto_refresh=False) as live:
            while True:
                live.update(_screen(_rows(target, client, partitions), partitions, every), refresh=True)
                time.sleep(every)


def _rows(target: Target, client: AdminClient, partitions: bool) -> list[dict[str, Any]]:
    lags = topic.look(target, client)
    if partitions:
        return [each.as_row(catalog.JOB_TYPE_BY_LANE[each.lane].name) for each in lags]
    retry_queues = {lane.name: f"{lane.name}-retry" for lane in catalog.JOB_TYPE_BY_LANE}
    fed = [job_type.name for job_type in catalog.QUEUE_JOB_TYPES]
    depths = queues.look(target, [*retry_queues.values(), *fed])
    rows = []
    for job_type in catalog.EVENT_JOB_TYPES:
        state = _state(target, job_type.name)
        for lane in job_type.lanes:
            of_lane = [each for each in lags if each.lane == lane]
            rows.append(_summary(job_type.name, lane.name, state, of_lane, depths[retry_queues[lane.name]]))
    rows += [_summary(name, None, _state(target, name), [], depths[name]) for name in fed]
    return rows


def _state(target: Target, job_type: str) -> str:
    states = sorted({mapping.state for mapping in mappings_of(target, job_type)})
    return ", ".join(states) if states else "none"


def _summary(
    job_type: str, lane: str | None, state: str, lags: Sequence[PartitionLag], depth: QueueDepth
) -> dict[str, Any]:
    return {
        "job_type": job_type,
        "lane": lane,
        "mappings": state,
        "heartbeat_age_seconds": _largest(each.heartbeat_age_seconds for each in lags),
        "events": sum(each.events for each in lags) if lags else None,
        # What is not known of one partition is not known of all.
        "seconds_behind": (
            None
            if any(each.seconds_behind is None for each in lags)
            else _largest(each.seconds_behind for each in lags)
        ),
        "retries": depth.waiting,
        "later": depth.later,
        "under_way": depth.under_way,
        "oldest_retry_seconds": depth.oldest_seconds,
    }


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """The same for a table: ages as people say them, and red where they are late."""
    bulk = any(lane.bulk for lane in catalog.JOB_TYPE_BY_LANE if lane.name == row["lane"])
    ages = {
        "heartbeat": _age(row["heartbeat_age_seconds"], late=not bulk),
        "behind": _age(row["seconds_behind"], late=not bulk),
        "oldest_retry": _age(row.get("oldest_retry_seconds"), late=False),
    }
    state = row.get("mappings")
    if state not in (None, "Enabled"):
        ages["mappings"] = Text(str(state), style="yellow")
    return {**row, **ages}


def _age(seconds: float | None, *, late: bool) -> Text | None:
    if seconds is None:
        return None
    return Text(
        duration(seconds), style="bold red" if late and seconds > LATE_SECONDS else "", justify="right"
    )


def _screen(rows: Sequence[dict[str, Any]], partitions: bool, every: float) -> Group:
    at = datetime.now().astimezone().strftime("%H:%M:%S")
    columns = _PARTITIONS if partitions else _SUMMARY
    hint = Text(f"{at}, again every {every:g} s. Ctrl-C ends.", style="dim")
    return Group(table_of([_readable(row) for row in rows], columns=columns), Text(), hint)
