"""`campaign-jobs asynq`: the road from Asynq."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from campaign_jobs.producer import JobProducer
from campaign_jobs_cli import session
from campaign_jobs_cli.asynq.connecting import connected
from campaign_jobs_cli.asynq.deciding import Kind
from campaign_jobs_cli.asynq.errors import StillInterrupted, UnknownQueue
from campaign_jobs_cli.asynq.mapping import INCLUDED, TaskMapping
from campaign_jobs_cli.asynq.moving import Mover, Totals
from campaign_jobs_cli.asynq.queues import AsynqRedis
from campaign_jobs_cli.asynq.survey import Group, Survey, take_survey
from campaign_jobs_cli.output import Format, Output, Row
from campaign_jobs_cli.session import Session, Yes
from campaign_jobs_cli.targets import Target

app = typer.Typer(
    name="asynq",
    help="Move the tasks of a live Asynq Redis into events (docs/migrating-from-asynq.md).",
    no_args_is_help=True,
)

RedisUrl = Annotated[
    str,
    typer.Option(
        "--redis",
        envvar="ASYNQ_REDIS_URL",
        help="Asynq's Redis: redis://host:port/db, rediss://… with TLS. A cluster is recognized.",
    ),
]
QueueNames = Annotated[
    list[str] | None, typer.Option("--queue", help="Only this queue; repeatable. All of them otherwise.")
]
MappingFile = Annotated[
    str, typer.Option("--mapping", help=f"The mapping file, or {INCLUDED}, the one that comes along.")
]

_TASK_COLUMNS = ("queue", "type", "state", "count", "first", "last", "what_becomes_of_them")
_QUEUE_COLUMNS = (
    *("queue", "paused", "servers", "pending", "active", "scheduled", "retry", "archived", "completed"),
    *("aggregating", "oldest_pending"),
)


@app.command()
def status(
    context: typer.Context, redis: RedisUrl, queue: QueueNames = None, mapping: MappingFile = INCLUDED
) -> None:
    """Show what is in Asynq's queues, and what a move would do with it. Changes nothing."""
    output, rules = session.of(context).output, TaskMapping.load(mapping)
    with connected(redis) as client:
        asynq = AsynqRedis(client)
        survey = _survey(output, asynq, _chosen(asynq, queue), rules)
    servers = {(server.host, server.pid): server for state in survey.queues for server in state.servers}
    if output.format is Format.JSON:
        output.record(
            {
                "queues": [state.as_row() for state in survey.queues],
                "servers": [vars(server) for server in servers.values()],
                "tasks": [group.as_row() for group in survey.groups],
                **{str(kind): survey.count(kind) for kind in Kind},
                "interrupted": survey.interrupted,
            }
        )
        return
    output.rows([state.as_row() for state in survey.queues], columns=_QUEUE_COLUMNS, title="Queues")
    output.rows(
        [vars(server) for server in servers.values()],
        columns=("host", "pid", "status", "queues", "active_workers"),
        title="Servers of Asynq's that are alive",
    )
    output.rows([_as_shown(group) for group in survey.groups], columns=_TASK_COLUMNS, title="Tasks")
    output.note(_in_short(survey))


@app.command()
def move(  # noqa: PLR0917 - its options
    context: typer.Context,
    redis: RedisUrl,
    queue: QueueNames = None,
    mapping: MappingFile = INCLUDED,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what comes and what becomes due, until Ctrl-C.")
    ] = False,
    wait: Annotated[
        int, typer.Option("--wait", min=0, help="Seconds to wait for old workers to end what they are at.")
    ] = 120,
    yes: Yes = False,
) -> None:
    """Pause the queues, wait for the old workers, and move every task that has an event.

    Exit code 0: all that could be moved was, and what is left is listed. 1: it stopped before; nothing is lost, and a
    further move goes on. 2: a wrong option or mapping, 3: declined; nothing was changed.
    """
    current, rules = session.of(context), TaskMapping.load(mapping)
    output = current.output
    with connected(redis) as client, _producer(current.target) as producer:
        asynq = AsynqRedis(client)
        queues = _chosen(asynq, queue)
        survey = _survey(output, asynq, queues, rules)
        if not (follow or survey.count(Kind.MOVES, Kind.DROPS, Kind.HELD)):
            output.note("Nothing can be moved now, so nothing was changed.")
            _report(output, Totals(), survey)
            return
        _show_plan(current, survey, follow=follow, new_queues=follow and not queue)
        output.confirm("Do it?", yes=yes)
        with output.progress("Moving tasks", survey.count(Kind.MOVES, Kind.DROPS)) as advance:
            shown = 0

            def show(totals: Totals) -> None:
                nonlocal shown
                advance(totals.settled - shown)
                shown = totals.settled

            def tell(name: str) -> None:
                output.note(
                    f"Queue {name} is new: paused, and moved as well once old workers are at work on none of it."
                )

            mover = Mover(
                client,
                producer,
                rules,
                queues,
                on_progress=show,
                on_new_queue=tell if follow and not queue else None,
            )
            try:
                with _stopping_by_signal(mover):
                    mover.prepare(wait_seconds=wait)
                    (mover.follow if follow else mover.run)()
            finally:
                output.note(f"{mover.totals.moved.total()} moved, {mover.totals.dropped.total()} dropped.")
        _report(output, mover.totals, _survey(output, asynq, mover.queues, rules))


@app.command()
def resume(
    context: typer.Context,
    redis: RedisUrl,
    queue: QueueNames = None,
    mapping: MappingFile = INCLUDED,
    yes: Yes = False,
) -> None:
    """Give the queues back to the old workers. Refuses while a stopped move has left tasks behind."""
    output = session.of(context).output
    with connected(redis) as client:
        asynq = AsynqRedis(client)
        queues = [name for name in _chosen(asynq, queue) if asynq.is_paused(name)]
        if not queues:
            output.note("No queue is paused.")
            return
        survey = _survey(output, asynq, queues, TaskMapping.load(mapping))
        if survey.interrupted:
            raise StillInterrupted(
                f"{survey.interrupted} tasks were held by a move that was stopped, and their events may have been "
                "published: old workers would run them once more. Run `campaign-jobs asynq move` to its end first"
            )
        output.note(f"Old workers will take tasks of {', '.join(queues)} again.")
        output.confirm("Do it?", yes=yes)
        for name in queues:
            asynq.resume(name)


def _chosen(asynq: AsynqRedis, names: Sequence[str] | None) -> list[str]:
    known = asynq.queues()
    if unknown := [name for name in names or () if name not in known]:
        raise UnknownQueue(f"Asynq has no queue {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    return list(dict.fromkeys(names or known))


def _survey(output: Output, asynq: AsynqRedis, queues: Sequence[str], rules: TaskMapping) -> Survey:
    with output.progress("Looking at the tasks") as advance:
        return take_survey(asynq, queues, rules, advance)


@contextmanager
def _producer(target: Target) -> Iterator[JobProducer]:
    kafka = target.kafka
    with JobProducer(
        brokers=kafka.kafka_brokers, topic=kafka.kafka_job_topic, auth=kafka.kafka_auth, region=target.region
    ) as producer:
        yield producer


@contextmanager
def _stopping_by_signal(mover: Mover) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the move behind the batch in hand; a second one ends it at once."""

    def stop(number: int, _: FrameType | None) -> None:
        mover.stop()
        signal.signal(number, before[number])

    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_plan(current: Session, survey: Survey, *, follow: bool, new_queues: bool) -> None:
    # A plan is for whoever is asked, and no part of the result.
    notes = Output(Format.TABLE, results=current.output.notes, notes=current.output.notes)
    notes.rows([_as_shown(group) for group in survey.groups], columns=_TASK_COLUMNS, title="Tasks")
    named = [state.name for state in survey.queues]
    queues = ", ".join([*named, "every queue that is new"] if new_queues else named)
    notes.note(
        f"{_in_short(survey)}\nA move pauses {queues}, and they stay paused: old workers take nothing from them any "
        "more. It waits until those have ended what they are at, and publishes to "
        f"{current.target.kafka.kafka_job_topic} of {current.target.name}."
        + (" It goes on with what comes and what becomes due, until Ctrl-C." if follow else "")
    )


def _as_shown(group: Group) -> Row:
    """For a table, which has less room than JSON."""
    match group.fate:
        case Kind.MOVES:
            words = str(group.becomes)
        case Kind.WAITS:
            words = f"{group.becomes} when they are due"
        case Kind.DROPS:
            words = f"dropped: {group.why}"
        case Kind.STAYS:
            words = f"stay: {group.why}"
        case Kind.RUNS:
            words = f"in the hands of old workers{f': {group.why}' if group.why else ''}"
        case Kind.HELD:
            words = "held by a move"
    return {**group.as_row(), "what_becomes_of_them": words}


def _in_short(survey: Survey) -> str:
    words = {
        Kind.MOVES: "can be moved",
        Kind.DROPS: "would be dropped, as the mapping says",
        Kind.WAITS: "wait for their time",
        Kind.STAYS: "stay",
        Kind.RUNS: "are in the hands of old workers",
        Kind.HELD: "are held by a move",
    }
    parts = [f"{count} {what}" for kind, what in words.items() if (count := survey.count(kind))]
    before = f" A stopped move has held {survey.interrupted} of them." if survey.interrupted else ""
    return f"{', '.join(parts) or 'No tasks'}.{before}"


def _report(output: Output, totals: Totals, left: Survey) -> None:
    moved = [
        {"queue": queue, "type": task_type, "event": event, "count": count}
        for (queue, task_type, event), count in sorted(totals.moved.items())
    ]
    dropped = [
        {"queue": queue, "type": task_type, "count": count}
        for (queue, task_type), count in sorted(totals.dropped.items())
    ]
    if output.format is Format.JSON:
        left_rows = [group.as_row() for group in left.groups]
        output.record({"moved": moved, "dropped": dropped, "left": left_rows})
        return
    output.rows(moved, columns=("queue", "type", "event", "count"), title="Moved")
    output.rows(dropped, columns=("queue", "type", "count"), title="Dropped")
    output.rows([_as_shown(group) for group in left.groups], columns=_TASK_COLUMNS, title="Left in Asynq")
