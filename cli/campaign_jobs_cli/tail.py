"""`campaign-jobs events tail`: what is on the topic, decoded."""

import json
from contextlib import nullcontext, suppress
from typing import Annotated, Any

import typer
from rich.text import Text

from campaign_jobs import events
from campaign_jobs.events import EmailEvent, PositionEvent
from campaign_jobs_cli import kafka, records, session, times
from campaign_jobs_cli.output import Output, visible
from campaign_jobs_cli.records import Understood
from campaign_jobs_cli.selection import Campaign, RewardOwners, Selection, Types, User

app = typer.Typer(
    help="Look at the topic. Nothing is committed, and no function notices.", no_args_is_help=True
)


@app.callback()
def _group() -> None:
    """Keeps `tail` a command of a group, of which it is the only one so far."""


@app.command(epilog=times.TIME_HELP)
def tail(
    context: typer.Context,
    *,
    start: Annotated[
        str, typer.Option("--from", help=f"Where to begin: {times.POINT_HELP}", metavar="POINT")
    ] = "15m",
    types: Types = [],  # noqa: B006  typer copies it.
    campaign: Campaign = None,
    user: User = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for more at the end, until Ctrl-C.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    heartbeats: Annotated[bool, typer.Option("--heartbeats", help="Show relay's heartbeats too.")] = False,
) -> None:
    """Show events as they are on the topic: what is no event with the reason that its dead letter has.

    Records come in the order of their partition, and across partitions roughly by time. With --output json each is a
    line of JSON. What is no event belongs to no type, campaign or user, so those options leave it out.
    """
    opened = session.of(context)
    target, output = opened.target, opened.output
    selection, owners = Selection.of(target, types, campaign, user), RewardOwners(target)
    begin, left = times.point(start), limit
    # Ctrl-C is how it ends where it follows.
    with suppress(KeyboardInterrupt) if follow else nullcontext(), kafka.consumer(target) as client:
        ranges = records.ranges(target, client, begin, None if follow else times.Edge.END)
        for batch in records.read(target, client, ranges):
            found = [records.understand(record) for record in sorted(batch, key=lambda record: record.at)]
            for each in _wanted(found, selection, owners, heartbeats)[:left]:
                _show(output, each)
                left = None if left is None else left - 1
            if left == 0:
                return


def _wanted(
    found: list[Understood], selection: Selection, owners: RewardOwners, heartbeats: bool
) -> list[Understood]:
    valid = [each.event for each in found if each.event is not None]
    chosen = iter(selection.chosen(valid, owners))
    return [
        each
        for each in found
        if (
            next(chosen)
            if each.event is not None
            else selection.is_everything and (heartbeats or not each.is_heartbeat)
        )
    ]


def _show(output: Output, each: Understood) -> None:
    record, event = each.record, each.event
    shown: dict[str, Any] = {
        "place": record.place,
        "partition": record.partition,
        "offset": record.offset,
        "at": record.at,
        "key": None if record.key is None else record.key.decode("utf-8", "backslashreplace"),
        "event": each.decoded,
        "reason": each.reason,
    }
    if each.decoded is None:
        shown["value"] = None if record.value is None else record.value.decode("utf-8", "backslashreplace")
    text = Text(record.at.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3], style="dim")
    text.append(f"  {record.place:<9} ", style="default")
    if event is not None:
        text.append(f"{event.type:<26}", style="cyan")
        text.append(f" {visible(event.id)}", style="bold default")
        text.append(f"  {visible(_about(event))}", style="default")
    elif each.is_heartbeat:
        text.append("heartbeat", style="dim")
    else:
        text.append(f"{'no event' if each.decoded is None else 'invalid':<26}", style="bold red")
        text.append(f" {visible(str(each.reason))}", style="red")
    output.line(shown, text)


def _about(event: events.Event) -> str:
    if isinstance(event, EmailEvent):
        more = events.as_json(event)["data"]
        rest = {
            name: value
            for name, value in more.items()
            if name not in ("type", "campaign_id", "user_id") and value
        }
        extra = f"  {json.dumps(rest, ensure_ascii=False)}" if rest else ""
        return f"campaign {event.data.campaign_id}  user {event.data.user_id}{extra}"
    if isinstance(event, PositionEvent):
        points = event.data.points_per_referral
        return f"campaign {event.data.campaign_id}" + (f"  points {points}" if points else "")
    return f"user reward {event.data.user_reward_id}"
