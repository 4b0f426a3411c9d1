"""`campaign-jobs pause` and `resume`: the mappings of a job type that events start, the rule of one on a schedule."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer

from campaign_jobs import catalog
from campaign_jobs_cli import session
from campaign_jobs_cli.errors import CommandError, NotFound, WrongInput
from campaign_jobs_cli.mappings import SWITCHED, mappings_of
from campaign_jobs_cli.session import Yes
from campaign_jobs_cli.targets import LOCAL, Target

_NAMES: Final = [each.name for each in SWITCHED]
_LOOK_EVERY_SECONDS: Final = 0.5

JobTypes = Annotated[
    list[str],
    typer.Argument(
        metavar="JOB_TYPE...",
        help=", ".join(_NAMES),
        autocompletion=lambda incomplete: [name for name in _NAMES if name.startswith(incomplete)],
    ),
]
Timeout = Annotated[float, typer.Option(min=1, help="How many seconds to wait for it.")]


@dataclass(frozen=True)
class Switch:
    """One mapping or rule, which is Enabled, Disabled, or on its way to either."""

    job_type: str
    kind: str
    name: str
    state: str
    look: Callable[[], str]
    turn: Callable[[bool], None]


def pause(context: typer.Context, *, job_types: JobTypes, timeout: Timeout = 300, yes: Yes = False) -> None:
    """Let nothing of a job type run until it is resumed. What comes meanwhile waits where it is.

    Ends when Lambda says that all is disabled: batches under way have ended then.
    """
    _turn(context, job_types, on=False, timeout=timeout, yes=yes)


def resume(context: typer.Context, *, job_types: JobTypes, timeout: Timeout = 300, yes: Yes = False) -> None:
    """Let a job type go on where it was paused. Ends when Lambda says that all is enabled."""
    _turn(context, job_types, on=True, timeout=timeout, yes=yes)


def _turn(context: typer.Context, job_types: Sequence[str], *, on: bool, timeout: float, yes: bool) -> None:
    opened = session.of(context)
    target, output = opened.target, opened.output
    if unknown := [name for name in job_types if name not in _NAMES]:
        raise WrongInput(f"there is no job type {unknown[0]} to switch; allowed are {', '.join(_NAMES)}")
    wanted = _word(on)
    switches = [each for name in dict.fromkeys(job_types) for each in _switches(target, name)]
    rows = [
        {
            "job_type": each.job_type,
            "kind": each.kind,
            "name": each.name,
            "state": each.state,
            "becomes": wanted,
        }
        for each in switches
    ]
    changing = [each for each in switches if each.state != wanted]
    output.beforehand.rows(rows, columns=("job_type", "kind", "name", "state", "becomes"))
    if changing:
        if not on:
            for line in consequences({each.job_type for each in changing}, target):
                output.note(line)
        verb = "Resume" if on else "Pause"
        output.confirm(f"{verb} {', '.join(dict.fromkeys(job_types))} of {target.name}?", yes=yes)
        with output.progress(f"Waiting for {wanted.lower()}", len(changing)) as advance:
            for _ in _until(changing, on=on, timeout=timeout):
                advance()
        output.note(f"All is {wanted.lower()}.")
    else:
        output.note(f"All is {wanted.lower()} already.")
    if output.format == "json":
        output.rows([{**row, "state": wanted, "before": row["state"]} for row in rows], columns=())


def consequences(job_types: set[str], target: Target) -> list[str]:
    """What a pause leads to, a line each. The local system has no alarms."""

    def will_ring(what: str) -> str:
        return "" if target.name == LOCAL else f" {what} will ring."

    lines = []
    for each in catalog.EVENT_JOB_TYPES:
        if each.name in job_types:
            alarms = " and ".join(target.resource_name(f"heartbeat-age-{lane.name}") for lane in each.lanes)
            lines.append(
                f"{each.name}: its events wait on the topic, which Kafka keeps for 7 days, and retries in their "
                f"queue for {catalog.QUEUE_RETENTION_DAYS}.{will_ring(alarms)}"
            )
    lines += [
        f"{fed.name}: SES's events wait in their queue for {catalog.QUEUE_RETENTION_DAYS} days; addresses that bounce "
        f"are mailed again meanwhile.{will_ring(target.resource_name(f'queue-age-{fed.name}'))}"
        for fed in catalog.QUEUE_JOB_TYPES
        if fed.name in job_types
    ]
    for scheduled in catalog.SCHEDULED_JOB_TYPES:
        if scheduled.name not in job_types:
            continue
        if scheduled in catalog.JOB_TYPES_WITH_WATERMARK:
            lines.append(
                f"{scheduled.name}: no run starts; the next one makes up for it. A disabled rule rings nothing."
            )
        else:
            alarms = f"{target.resource_name('outbox-age')} and all heartbeat-age alarms"
            lines.append(
                f"{scheduled.name}: no follow-up event is published and no heartbeat, and nobody reports how far "
                f"anybody is.{will_ring(alarms)}"
            )
    return lines


def _word(on: bool) -> str:
    return "Enabled" if on else "Disabled"


def _switches(target: Target, job_type: str) -> list[Switch]:
    if any(each.name == job_type for each in catalog.SCHEDULED_JOB_TYPES):
        return [_rule(target, job_type)]
    found = [_mapping(target, job_type, each.uuid, each.source) for each in mappings_of(target, job_type)]
    if not found:
        raise NotFound(f"{job_type} of {target.name} has no mappings; deploy the stack")
    return found


def _mapping(target: Target, job_type: str, uuid: str, source: str) -> Switch:
    lambda_ = target.client("lambda")

    def look() -> str:
        return str(lambda_.get_event_source_mapping(UUID=uuid)["State"])

    def turn(on: bool) -> None:
        try:
            lambda_.update_event_source_mapping(UUID=uuid, Enabled=on)
        except lambda_.exceptions.ResourceInUseException:
            pass  # Lambda is at another change of it; whoever waits asks again.

    return Switch(job_type, "mapping", source, look(), look, turn)


def _rule(target: Target, job_type: str) -> Switch:
    events, name = target.client("events"), target.resource_name(job_type)

    def look() -> str:
        try:
            return _word(events.describe_rule(Name=name)["State"] != "DISABLED")
        except events.exceptions.ResourceNotFoundException as error:
            raise NotFound(f"there is no rule {name}; deploy the stack") from error

    def turn(on: bool) -> None:
        change: Callable[..., Any] = events.enable_rule if on else events.disable_rule
        change(Name=name)

    return Switch(job_type, "rule", name, look(), look, turn)


def _until(switches: Sequence[Switch], *, on: bool, timeout: float) -> Iterator[Switch]:
    """Turn them, and yield for each that has got there. Raises CommandError after `timeout` seconds."""
    wanted, opposite = _word(on), _word(not on)
    deadline = time.monotonic() + timeout
    left = list(switches)
    for each in left:
        each.turn(on)
    while left:
        waiting = []
        for each in left:
            state = each.look()
            if state == wanted:
                yield each
                continue
            if state == opposite:
                each.turn(on)
            waiting.append((each, state))
        left = [each for each, _ in waiting]
        if left and time.monotonic() > deadline:
            states = ", ".join(f"{each.name} is {state}" for each, state in waiting)
            raise CommandError(f"after {timeout:g} s {states}; the same command again goes on waiting")
        if left:
            time.sleep(_LOOK_EVERY_SECONDS)
