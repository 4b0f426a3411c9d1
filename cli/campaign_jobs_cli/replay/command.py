"""The command `campaign-jobs replay`."""

import math
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID, uuid4

import typer

from campaign_jobs_cli import kafka, records, session, times
from campaign_jobs_cli.errors import NotFound, WrongInput
from campaign_jobs_cli.output import Output, duration
from campaign_jobs_cli.replay import plan as planning
from campaign_jobs_cli.replay import state as states
from campaign_jobs_cli.replay.issuing import Issue
from campaign_jobs_cli.replay.plan import Plan
from campaign_jobs_cli.replay.publishing import publish
from campaign_jobs_cli.replay.state import State
from campaign_jobs_cli.selection import Campaign, Selection, Types, User
from campaign_jobs_cli.session import Session, Yes

LEAST_RATE: Final = 10.0
"""Events a second, where the topic is so quiet that a share of its rate would take for ever."""

MOST_RATE: Final = 1_000_000.0
"""Above what any topic takes, and below infinity."""

ONCE: Final = (
    "Under new ids these are new jobs. What may happen once still happens once: a welcome mail for each user, "
    "reward_earned for each user reward, milestone for each user and milestone, and a delivered reward stays "
    "delivered. A position_update goes only to who is better off than last told. A verification goes again to all who "
    "are not verified."
)


def replay(
    context: typer.Context,
    *,
    start: Annotated[
        str | None, typer.Option("--from", metavar="POINT", help=f"Where to begin: {times.POINT_HELP}")
    ] = None,
    end: Annotated[
        str, typer.Option("--to", metavar="POINT", help="Where to end; what is there is not replayed.")
    ] = "end",
    types: Types = [],  # noqa: B006  typer copies it.
    campaign: Campaign = None,
    user: User = None,
    again: Annotated[
        bool, typer.Option("--again", help="Under new ids, so that what is done is done again. Asks twice.")
    ] = False,
    share: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=10,
            help="The most that is published a second, as a share of the rate at which the topic was written over the "
            f"last hour; {LEAST_RATE:g} events a second at least.",
        ),
    ] = 0.5,
    rate: Annotated[
        float | None,
        typer.Option(min=0.1, max=MOST_RATE, help="The most that is published a second, in events."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="FILE", help="Go on with a replay that was interrupted."),
    ] = None,
    yes: Yes = False,
) -> None:
    """Publish events of the topic once more, byte by byte, under the ids that they have: what is done stays done.

    Shows a plan first: what was found, what is done already, what would run by what the database says now, and how
    many mails would go out. Heartbeats, and records that are no valid event, are counted and left out. So is what is
    published after the plan was made.

    Each step is written to a file once Kafka has acknowledged it. Interrupted, even killed, the replay goes on with
    --resume FILE; a step that is repeated is repeated under the same ids.
    """
    opened = session.of(context)
    if resume is not None:
        if start is not None:
            raise WrongInput("--resume goes on with what was planned: leave out --from")
        _resume(opened, resume, yes)
        return
    if start is None:
        raise WrongInput("say where to begin: --from POINT, or --resume FILE")
    selection = Selection.of(opened.target, types, campaign, user)
    plan, state, live = _planned(opened, start, end, selection, again=again, share=share, rate=rate)
    result: dict[str, Any] = {
        "replay_id": state.replay_id,
        **plan.as_record(),
        "again": again,
        "rate": state.rate,
        "live_rate": live,
        "outcomes": plan.outcomes(),
    }
    _show(opened.output, result)
    if dry_run or not plan.events:
        if opened.output.format == "json":
            opened.output.record({**result, "published": 0, "state_file": None})
        elif not plan.events:
            opened.output.note("There is nothing to replay.")
        return
    takes = duration(plan.events / state.rate)
    opened.output.confirm(
        f"Publish {_counted(plan.events)} to {state.topic} of {state.environment}, at most {state.rate:g} a second, "
        f"which takes about {takes}?",
        yes=yes,
    )
    if again:
        opened.output.note(ONCE)
        opened.output.confirm(f"Run {_counted(plan.events)} again, under new ids?", yes=yes)
    file = states.new_file(state.environment, state)
    state.save(file)
    published = _publish(opened, state, file)
    if opened.output.format == "json":
        opened.output.record({**result, "published": published, "state_file": str(file)})


def _planned(
    opened: Session,
    start: str,
    end: str,
    selection: Selection,
    *,
    again: bool,
    share: float,
    rate: float | None,
) -> tuple[Plan, State, float]:
    target = opened.target
    replay_id: UUID = uuid4()
    begin, until = times.point(start), times.point(end)
    if isinstance(begin, datetime) and isinstance(until, datetime) and begin >= until:
        raise WrongInput(f"--to is {end!r}; allowed is a point after --from, {start!r}")
    with kafka.consumer(target) as client:
        ranges = records.ranges(target, client, begin, until)
        live = planning.live_rate(target, client)
        total = sum(max(0, (each.end or 0) - each.start) for each in ranges)
        with opened.output.progress("Reading the topic", total) as advance:
            issue = Issue(replay_id, again=again)
            plan = planning.make(target, client, ranges, selection=selection, issue=issue, advance=advance)
    state = State(
        environment=target.name,
        topic=target.kafka.kafka_job_topic,
        ranges=ranges,
        selection=selection,
        again=again,
        # Rounded, because nobody wants to read 13.72639.
        rate=rate if rate is not None else float(math.ceil(max(LEAST_RATE, share * live))),
        events=plan.events,
        replay_id=replay_id,
    )
    return plan, state, live


def _resume(opened: Session, file: Path, yes: bool) -> None:
    target, output = opened.target, opened.output
    state = states.load(file)
    if (state.environment, state.topic) != (target.name, target.kafka.kafka_job_topic):
        raise WrongInput(f"{file} is of {state.topic} of {state.environment}: --env {state.environment}")
    left = state.left()
    what = {
        "replay_id": state.replay_id,
        "started_at": state.started_at,
        "again": state.again,
        "rate": state.rate,
        "events": state.events,
        "published": state.published,
        "records_left": sum((each.end or 0) - each.start for each in left),
    }
    output.beforehand.record(what, title="The replay")
    if not left:
        output.note("Nothing is left of it.")
    else:
        _note_lost(opened, state)
        output.confirm(f"Go on with it in {state.environment}?", yes=yes)
        _publish(opened, state, file)
    if output.format == "json":
        output.record({**what, "published": state.published, "records_left": 0, "state_file": str(file)})


def _note_lost(opened: Session, state: State) -> None:
    """Say what Kafka has thrown away meanwhile."""
    target = opened.target
    with kafka.consumer(target) as client:
        begins = {
            each.partition: each.start
            for each in records.ranges(target, client, times.Edge.BEGINNING, times.Edge.END)
        }
    if unknown := [each.partition for each in state.left() if each.partition not in begins]:
        raise NotFound(f"the topic has no partition {unknown[0]} any more")
    lost = sum(max(0, min(begins[each.partition], each.end or 0) - each.start) for each in state.left())
    if lost:
        opened.output.note(f"{lost} records of it are no longer on the topic, and will not be replayed.")


def _publish(opened: Session, state: State, file: Path) -> int:
    output = opened.output
    resuming = f"campaign-jobs --env {state.environment} replay --resume {file}"
    output.note(f"Interrupted, it goes on with: {resuming}")
    try:
        with output.progress("Publishing", max(0, state.events - state.published)) as advance:
            published = publish(opened.target, state, file, advance)
    except BaseException:
        output.note(f"{state.published} of {_counted(state.events)} published. To go on: {resuming}")
        raise
    output.note(
        f"{_counted(published)} published. How they get on: campaign-jobs --env {state.environment} lag"
    )
    return published


def _show(output: Output, result: dict[str, Any]) -> None:
    shown = {
        name: value for name, value in result.items() if name not in ("outcomes", "replay_id", "live_rate")
    }
    shown["rate"] = f"{result['rate']:g} events/s; the topic was written at {result['live_rate']:.2f}/s"
    output.beforehand.record(shown, title="The plan")
    if result["outcomes"]:
        columns = ("type", "fate", "outcome", "events", "mails")
        output.beforehand.rows(result["outcomes"], columns=columns)


def _counted(number: int) -> str:
    return f"{number} event{'' if number == 1 else 's'}"
