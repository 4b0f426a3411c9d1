"""`campaign-jobs import`: people of a waitlist that was kept elsewhere, from a CSV file into a campaign."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from campaign_jobs_cli import naming, session
from campaign_jobs_cli.errors import ExitCode, WrongInput
from campaign_jobs_cli.import_reading import COLUMNS, PeopleFile, Person, Problem
from campaign_jobs_cli.import_writing import Import, Written
from campaign_jobs_cli.output import Advance, Format, Output

STATEMENT_SECONDS: Final = 1_800
ADVANCED_BY: Final = 5_000
# What analytics counts again by itself; older rows need a backfill (docs/data-contract.md).
COUNTED_ANYWAY: Final = timedelta(hours=24)


def import_people(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="CSV with a header, in UTF-8.", exists=True, dir_okay=False)],
    *,
    campaign: Annotated[str, typer.Option("--campaign", help="Into this campaign; its id or name.")],
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column", metavar="OURS=THEIRS", help="A column with another name; may be given again."
        ),
    ] = None,
    delimiter: Annotated[str, typer.Option("--delimiter", help="What separates cells.")] = ",",
    skip_invalid: Annotated[
        bool,
        typer.Option("--skip-invalid", help="Leave lines out that are wrong, instead of writing nothing."),
    ] = False,
    verification: Annotated[
        bool,
        typer.Option("--verification", help="Send a verification mail to everybody who is not verified."),
    ] = False,
    welcome: Annotated[
        bool, typer.Option("--welcome", help="Send a welcome mail to everybody who is verified.")
    ] = False,
    yes: session.Yes = False,
) -> None:
    """Import people from a CSV file into a campaign.

    Columns: email and, where known, first_name, referral_code, referred_by (a code or an address), verified_at,
    created_at, original_position, verification_token, marketing_consent_at, ip, user_agent and device_fingerprint.

    Everything that is wrong is listed with its line, and then nothing is written. Who is in the campaign already is
    left as they are, so that the same file may come again. Positions are kept, or assigned in the file's order behind
    the last one. No mail is sent unless asked for.
    """
    opened = session.of(context)
    output = opened.output
    people = PeopleFile(file, delimiter=_one_character(delimiter), names=_names(column or []))
    with opened.target.database(statement_seconds=STATEMENT_SECONDS) as connection:
        chosen = naming.campaign(connection, campaign)
        importing = Import(connection, chosen["id"])
        problems: list[Problem] = []
        with output.progress(f"Reading {file.name}") as advance:
            importing.take(_counted(people.read(), problems, advance))
        if people.unfinished is not None:
            # Not to be skipped: nobody knows how much of the file it hides.
            problems.append(people.unfinished)
            skip_invalid = False
        with output.progress("Comparing it with the campaign"):
            problems += importing.check()
            if skip_invalid:
                problems += importing.leave_behind()
            counts = importing.counts()
        problems.sort(key=lambda problem: (problem.line, problem.column))
        plan = _plan(chosen, people, counts, problems, verification=verification, welcome=welcome)
        if problems and not skip_invalid:
            _show(output, plan, problems)
            lines = "1 line is" if plan["invalid"] == 1 else f"{plan['invalid']:,} lines are"
            output.note(f"{lines} wrong, so nothing was written.")
            raise typer.Exit(ExitCode.WRONG_USAGE)
        _show(output.beforehand, plan, problems)
        written = Written(0, 0, 0, 0)
        if counts["new_people"]:
            output.confirm(f"Import {counts['new_people']:,} people into {chosen['name']}?", yes=yes)
            with output.progress(f"Writing {counts['new_people']:,} people"):
                written = importing.write(verification=verification, welcome=welcome)
    if output.format is Format.JSON:
        output.record({**plan, "problems": _rows(problems), "written": asdict(written)})
    else:
        output.record(asdict(written), title="Written")
    if written.people:
        _tell_of_backfill(output, counts["earliest"], opened.target.command)


def _counted(people: Iterator[Person], problems: list[Problem], advance: Advance) -> Iterator[Person]:
    for number, person in enumerate(people, start=1):
        problems += person.problems
        if number % ADVANCED_BY == 0:
            advance(ADVANCED_BY)
        yield person


def _plan(
    campaign: dict[str, Any],
    people: PeopleFile,
    counts: dict[str, Any],
    problems: list[Problem],
    *,
    verification: bool,
    welcome: bool,
) -> dict[str, Any]:
    return {
        "campaign": campaign["name"],
        "campaign_id": campaign["id"],
        **{name: value for name, value in counts.items() if name != "earliest"},
        "invalid": len({problem.line for problem in problems}),
        "verification_mails": counts["pending"] if verification else 0,
        "welcome_mails": counts["verified"] if welcome else 0,
        "ignored_columns": people.ignored,
    }


def _show(output: Output, plan: dict[str, Any], problems: list[Problem]) -> None:
    if output.format is Format.JSON:
        output.record({**plan, "problems": _rows(problems), "written": None})
        return
    if problems:
        output.rows(_rows(problems), columns=("line", "column", "problem"), title="What is wrong")
        output.results.print()
    output.record({**plan, "ignored_columns": ", ".join(plan["ignored_columns"]) or None}, title="Plan")


def _rows(problems: list[Problem]) -> list[dict[str, Any]]:
    return [asdict(problem) for problem in problems]


def _tell_of_backfill(output: Output, earliest: datetime | None, command: str) -> None:
    now = datetime.now(UTC)
    if earliest is not None and earliest < now - COUNTED_ANYWAY:
        output.note(
            f"Analytics does not look that far back by itself: {command} analytics backfill "
            f"--from {earliest.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ} --to {now:%Y-%m-%dT%H:%M:%SZ}"
        )


def _names(given: list[str]) -> dict[str, str]:
    names = {}
    for each in given:
        ours, separator, theirs = each.partition("=")
        if not separator or ours not in COLUMNS or not theirs.strip():
            raise WrongInput(
                f"--column is {each!r}; allowed is OURS=THEIRS, ours being one of {', '.join(COLUMNS)}"
            )
        names[ours] = theirs
    return names


def _one_character(given: str) -> str:
    delimiter = {"\\t": "\t", "tab": "\t"}.get(given, given)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise WrongInput(f"--delimiter is {given!r}; allowed is one character, or tab")
    return delimiter
