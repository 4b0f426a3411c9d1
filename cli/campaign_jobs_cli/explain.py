"""`campaign-jobs explain`: what became of an event, or where a person stands and why."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final
from uuid import UUID

import typer
from psycopg import IsolationLevel
from rich.text import Text

from campaign_jobs_cli import explain_events, explain_people, naming, session
from campaign_jobs_cli.dead_letters.finding import find
from campaign_jobs_cli.dead_letters.letters import Filter
from campaign_jobs_cli.errors import ExitCode
from campaign_jobs_cli.output import Format, Output
from campaign_jobs_cli.targets import Connection

SHOWN: Final = 20
"""Rows of one table, unless all are asked for; JSON has all of them."""

# What else an operator may have at hand, and whose it is.
_OWNERS: Final = """
SELECT user_id FROM campaign_jobs.user_rewards WHERE id = %(id)s
UNION SELECT user_id FROM campaign_jobs.fraud_cases WHERE id = %(id)s
"""


def explain(
    context: typer.Context,
    subject: Annotated[
        str, typer.Argument(metavar="EVENT_ID|EMAIL|USER_ID", help="Also the id of a user reward or a case.")
    ],
    campaign: Annotated[
        str | None, typer.Option("--campaign", help="Of this campaign alone, by id or name.")
    ] = None,
    dead_letters: Annotated[
        bool,
        typer.Option(
            "--dead-letters",
            help="Look for the event in the dead-letter queues too, which hides them from others meanwhile.",
        ),
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Long tables to their end.")] = False,
) -> None:
    """Say what became of an event, or where a person stands and why: position, referrals, mails, rewards, holds.

    Exit code 1 where nothing is known of it.
    """
    opened = session.of(context)
    output = opened.output
    with opened.target.database() as connection:
        # Everything as of one moment.
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        with connection.transaction():
            campaign_id = naming.optional_campaign(connection, campaign)
            ids = _whose(connection, subject, campaign_id)
            found = explain_people.read(connection, ids) if ids else []
            event = (
                None
                if found or "@" in subject
                else explain_events.read(connection, subject, opened.target.command, asks_queues=dead_letters)
            )
    if event is not None:
        if dead_letters:
            event = explain_events.with_dead_letters(event, find(opened, Filter(frozenset({subject}))).rows())
        _show_event(output, event)
        known = bool(event["known"])
    else:
        shown = None if everything else SHOWN
        _show_people(output, subject, found, shown=shown, command=opened.target.command)
        known = bool(found)
    if not known:
        raise typer.Exit(ExitCode.FAILED)


def _whose(connection: Connection, subject: str, campaign_id: UUID | None) -> list[UUID]:
    if "@" in subject:
        return naming.people(connection, subject, campaign_id)
    if (id_ := naming.as_uuid(subject)) is None:
        return []
    if found := naming.people(connection, subject, campaign_id):
        return found
    return [row["user_id"] for row in connection.execute(_OWNERS, {"id": id_}).fetchall()]


def _show_event(output: Output, event: Mapping[str, Any]) -> None:
    if output.format is Format.JSON:
        output.record(event)
        return
    output.record({name: event[name] for name in ("event_id", "type", "outcome")}, title="Event")
    for title, name in (
        ("Mail", "mail"),
        ("User reward", "user_reward"),
        ("Parked", "parked_reward"),
        ("Request for positions", "position_request"),
        ("Campaign whose points it set", "set_the_points"),
        ("Outbox", "outbox"),
    ):
        if event[name]:
            output.results.print()
            shown = {key: value for key, value in event[name].items() if value is not None}
            output.record(shown, title=title)
    for title, name, columns in (
        ("What SES reports", "ses_events", ("occurred_at", "delivery_status", "detail", "ses_message_id")),
        ("Dead letters", "dead_letters", ("id", "at", "job_type", "reason", "attempts", "copies")),
        ("Webhook attempts", "webhook_attempts", ("attempted_at", "status_code", "error", "duration_ms")),
    ):
        if event[name]:
            output.results.print()
            output.rows(event[name], columns=columns, title=title)
    output.results.print()
    output.record({"look also": Text("\n".join(event["look_also"]))})


def _show_people(
    output: Output, subject: str, people: Sequence[Mapping[str, Any]], *, shown: int | None, command: str
) -> None:
    if output.format is Format.JSON:
        output.record({"subject": subject, "people": people})
        return
    if not people:
        output.note(f"Nobody is {subject}. Perhaps another campaign, another --env, or an erased user.")
    for number, person in enumerate(people):
        if number:
            output.results.rule(style="dim")
        _show_person(output, person, shown=shown, command=command)


_TABLES: Final = (
    ("Brought by", "brought_by", ("email", "status", "counts", "why_not")),
    ("Referrals", "referrals", ("email", "status", "counts", "why_not", "created_at")),
    ("Mails", "mails", ("created_at", "type", "status", "reason", "delivery", "event_id")),
    (
        "Rewards",
        "rewards",
        ("reward", "method", "status", "attempts", "last_error", "waits_for", "user_reward_id"),
    ),
    (
        "Fraud cases",
        "fraud_cases",
        ("case_id", "status", "risk_score", "holding", "blocking", "opened_at", "decision_reason"),
    ),
    ("In the outbox", "in_the_outbox", ("event_id", "type", "created_at")),
)


def _show_person(output: Output, person: Mapping[str, Any], *, shown: int | None, command: str) -> None:
    user = {name: value for name, value in person["user"].items() if value is not None}
    output.record(user, title="User")
    output.results.print()
    position = {name: value for name, value in person["position"].items() if value not in (None, {})}
    if not_counted := position.get("referrals_not_counted"):
        position["referrals_not_counted"] = "; ".join(f"{count}: {why}" for why, count in not_counted.items())
    output.record(position, title="Position")
    for title, name, columns in _TABLES:
        rows = person[name]
        if not rows:
            continue
        output.results.print()
        part = rows if shown is None else rows[-shown:]
        left = len(rows) - len(part)
        output.rows(
            part,
            columns=columns,
            title=f"{title}, the last {len(part)} of {len(rows)} (--all)" if left else title,
        )
    if missing := [title.lower() for title, name, _ in _TABLES if not person[name]]:
        output.results.print()
        output.record({"none": ", ".join(missing)})
    if any(str(reward["waits_for"]).startswith("an operator") for reward in person["rewards"]):
        output.note(f"{command} rewards deliver USER_REWARD_ID delivers what waits for an operator.")
