"""`campaign-jobs enqueue`: ask for one job, as a service would."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, get_args
from uuid import UUID

import typer
from pydantic import ValidationError

from campaign_jobs import events, outbox
from campaign_jobs.errors import InvalidEvent, NotOurs
from campaign_jobs.events import (
    EmailJobPayload,
    EmailType,
    Event,
    Payload,
    PositionRecalcJobPayload,
    RewardDeliveryJobPayload,
)
from campaign_jobs.producer import JobProducer
from campaign_jobs_cli import session
from campaign_jobs_cli.errors import WrongInput
from campaign_jobs_cli.selection import campaign_of, user_of
from campaign_jobs_cli.session import Session, Yes

app = typer.Typer(
    help="Ask for one job. Shows the event and asks before it publishes it, and prints the event's id.",
    no_args_is_help=True,
)

_EMAIL_TYPES: Final = get_args(EmailType)
_STDIN: Final = Path("-")

Id = Annotated[
    str | None,
    typer.Option(
        "--id", help="The event's id, the identity of the job for ever; a new UUID unless it is given."
    ),
]
Outbox = Annotated[
    bool, typer.Option("--outbox", help="Write it to the outbox, from which relay publishes it.")
]


@app.command()
def email(
    context: typer.Context,
    *,
    type_: Annotated[
        str, typer.Argument(metavar="TYPE", help=", ".join(_EMAIL_TYPES), autocompletion=lambda: _EMAIL_TYPES)
    ],
    campaign: Annotated[str, typer.Option("--campaign", help="By id or name.")],
    user: Annotated[str, typer.Option("--user", help="By id or address.")],
    priority: Annotated[int, typer.Option(help="Within one batch, higher goes first.")] = 0,
    template: Annotated[
        UUID | None, typer.Option("--template", help="A template of the campaign instead of its enabled one.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="NAME=TEXT", help="For the template. May be given several times."),
    ] = None,
    user_reward: Annotated[
        UUID | None, typer.Option("--user-reward", help="What a reward_earned mail is about.")
    ] = None,
    milestone: Annotated[int | None, typer.Option(help="What a milestone mail is about.")] = None,
    event_id: Id = None,
    through_outbox: Outbox = False,
    yes: Yes = False,
) -> None:
    """One mail to one user."""
    target = session.of(context).target
    campaign_id = campaign_of(target, campaign)
    given: dict[str, Any] = {
        "type": type_,
        "campaign_id": campaign_id,
        "user_id": user_of(target, user, campaign_id),
        "priority": priority,
        "template_id": template,
        "template_data": dict(_pair(entry) for entry in data or ()),
        "user_reward_id": user_reward,
        "milestone": milestone,
    }
    _enqueue(context, _payload(EmailJobPayload, given), event_id, through_outbox, yes)


@app.command()
def position(
    context: typer.Context,
    *,
    campaign: Annotated[str, typer.Option("--campaign", help="By id or name.")],
    points: Annotated[
        int, typer.Option(help="Becomes the campaign's points for a referral; 0 keeps it.")
    ] = 0,
    event_id: Id = None,
    through_outbox: Outbox = False,
    yes: Yes = False,
) -> None:
    """A recalculation of all positions of a campaign."""
    campaign_id = campaign_of(session.of(context).target, campaign)
    given = {"campaign_id": campaign_id, "points_per_referral": points}
    _enqueue(context, _payload(PositionRecalcJobPayload, given), event_id, through_outbox, yes)


@app.command()
def reward(
    context: typer.Context,
    *,
    user_reward: Annotated[UUID, typer.Option("--user-reward")],
    event_id: Id = None,
    through_outbox: Outbox = False,
    yes: Yes = False,
) -> None:
    """The delivery of one user reward."""
    _enqueue(
        context,
        _payload(RewardDeliveryJobPayload, {"user_reward_id": user_reward}),
        event_id,
        through_outbox,
        yes,
    )


@app.command()
def raw(
    context: typer.Context,
    *,
    file: Annotated[
        Path, typer.Argument(metavar="[FILE]", help="One JSON event; - is standard input.")
    ] = _STDIN,
    key: Annotated[
        str | None, typer.Option(help="The record's key; as the contract has it unless given.")
    ] = None,
    unchecked: Annotated[
        bool,
        typer.Option("--unchecked", help="Publish the bytes whatever they are: to see what becomes of them."),
    ] = False,
    yes: Yes = False,
) -> None:
    """An event as it is, byte by byte, once it is found to follow the contract."""
    opened = session.of(context)
    value = _read(file)
    event = None if unchecked else _checked(value)
    what: dict[str, Any] = {
        "id": event and event.id,
        "type": event and event.type,
        "key": key if key is not None else event and events.partition_key(event),
        "topic": opened.target.kafka.kafka_job_topic,
        "bytes": len(value),
    }
    if event is None:
        what["value"] = value[:200].decode("utf-8", "backslashreplace")
    _publish(opened, what, value, yes)


def _enqueue(
    context: typer.Context, payload: Payload, event_id: str | None, through_outbox: bool, yes: bool
) -> None:
    opened = session.of(context)
    try:
        event = events.new_event(payload, event_id=event_id)
    except InvalidEvent as error:
        raise WrongInput(f"it would be no valid event: {error}") from error
    data = events.as_json(event)["data"]
    what = {
        "id": event.id,
        "type": event.type,
        "key": events.partition_key(event),
        "topic": opened.target.kafka.kafka_job_topic,
        "data": data,
    }
    if through_outbox:
        _into_outbox(opened, what, event, yes)
    else:
        _publish(opened, what, events.as_value(event), yes)


def _publish(opened: Session, what: dict[str, Any], value: bytes, yes: bool) -> None:
    output, target = opened.output, opened.target
    output.beforehand.record(what, title="The event")
    output.confirm(f"Publish it to {what['topic']} of {target.name}?", yes=yes)
    with JobProducer.from_settings(target.kafka) as producer:
        producer.publish([(what["key"], value)])
    if output.format == "json":
        output.record(what)
    else:
        see = f" To see what becomes of it: campaign-jobs --env {target.name} explain {what['id']}"
        output.note(f"Published.{see if what['id'] else ''}")


def _into_outbox(opened: Session, what: dict[str, Any], event: Event, yes: bool) -> None:
    output, target = opened.output, opened.target
    output.beforehand.record(what, title="The event")
    output.confirm(f"Write it to the outbox of {target.name}?", yes=yes)
    with target.database() as connection:
        written = outbox.enqueue(connection, [event])
    if output.format == "json":
        output.record({**what, "written": bool(written)})
    elif written:
        output.note("Written. relay publishes it within a few seconds.")
    else:
        output.note("An event with this id is in the outbox already; it stays as it is.")


def _payload(model: type[Payload], given: dict[str, Any]) -> Payload:
    try:
        return model(**given)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, each['loc'])) or 'the payload'}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise WrongInput("; ".join(problems)) from error


def _pair(entry: str) -> tuple[str, str]:
    name, equals, text = entry.partition("=")
    if not equals:
        raise WrongInput(f"--data {entry}: allowed is NAME=TEXT")
    return name, text


def _read(file: Path) -> bytes:
    if file == _STDIN:
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise WrongInput(f"{file} cannot be read: {error.strerror}") from error


def _checked(value: bytes) -> Event:
    try:
        decoded = events.read_object(value)
        if events.owner(decoded["type"]) is None:
            raise WrongInput("heartbeats are relay's to publish")
        return events.parse(decoded, recorded_at=datetime.now(UTC))
    except (NotOurs, InvalidEvent) as error:
        raise WrongInput(f"it is no valid event: {error}; --unchecked publishes it all the same") from error
