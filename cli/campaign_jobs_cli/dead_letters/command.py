"""The commands `campaign-jobs dead-letters list|show|redrive|discard`."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from campaign_jobs_cli import session, times
from campaign_jobs_cli.dead_letters.finding import find
from campaign_jobs_cli.dead_letters.letters import JOB_TYPES, Filter, Found, Letter, pattern_of
from campaign_jobs_cli.dead_letters.queue import Reading, reading, send
from campaign_jobs_cli.dead_letters.saving import saving
from campaign_jobs_cli.errors import NotFound, WrongInput
from campaign_jobs_cli.selection import campaign_of
from campaign_jobs_cli.session import Session, Yes
from campaign_jobs_cli.targets import Target

app = typer.Typer(
    help="What was given up: invalid, refused for good, or out of attempts. It stays for 14 days.",
    no_args_is_help=True,
)

_COLUMNS: Final = ("id", "at", "job_type", "event_type", "reason", "attempts", "copies")

Ids = Annotated[
    list[str],
    typer.Argument(metavar="[ID]...", help="As `list` shows it, PARTITION:OFFSET; or an event's id."),
]
JobTypes = Annotated[
    list[str],
    typer.Option(
        "--job-type",
        help=f"{', '.join(JOB_TYPES)}. May be given several times.",
        autocompletion=lambda incomplete: [name for name in JOB_TYPES if name.startswith(incomplete)],
    ),
]
Reason = Annotated[str | None, typer.Option("--reason", help="Only those whose reason contains this text.")]
Matching = Annotated[
    str | None, typer.Option("--matching", help="Only those whose reason this regular expression finds.")
]
Campaign = Annotated[
    str | None, typer.Option("--campaign", help="Only those of this campaign, by id or name.")
]
Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only those given up since then.")]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Only those given up before.")]
All = Annotated[bool, typer.Option("--all", help="All there are, where nothing else says which.")]


@app.command("list", epilog=times.TIME_HELP)
def list_(
    context: typer.Context,
    *,
    job_types: JobTypes = [],  # noqa: B006  typer copies it.
    reason: Reason = None,
    matching: Matching = None,
    campaign: Campaign = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """List dead letters, the newest first, each once however many copies there are.

    They are hidden from others while they are read, and back afterwards.
    """
    opened = session.of(context)
    found = find(
        opened,
        _filter(
            opened.target,
            [],
            job_types,
            reason=reason,
            matching=matching,
            campaign=campaign,
            since=since,
            until=until,
        ),
    )
    opened.output.rows(found.rows(), columns=_COLUMNS, title="Dead letters")


@app.command()
def show(
    context: typer.Context,
    *,
    ids: Ids,
    job_types: JobTypes = [],  # noqa: B006  typer copies it.
) -> None:
    """Show dead letters whole, with the event as it came."""
    opened = session.of(context)
    found = find(opened, _filter(opened.target, ids, job_types))
    if not found:
        raise NotFound(f"there is no dead letter {', '.join(ids)}")
    _tell_missing(opened, ids, found)
    rows = [
        {**row, "copies": row["copies"], "goes_back_to": letter.destination, "event": letter.event or None}
        | ({} if letter.event else {"value": letter.value, "body": letter.body})
        for letter, row in zip(found.letters(), found.rows(), strict=True)
    ]
    if opened.output.format == "json":
        opened.output.rows(rows, columns=())
        return
    for row in rows:
        opened.output.record({**row, "event": row["event"] and json.dumps(row["event"], indent=2)})


@app.command(epilog=times.TIME_HELP)
def redrive(
    context: typer.Context,
    *,
    ids: Ids = [],  # noqa: B006  typer copies it.
    job_types: JobTypes = [],  # noqa: B006
    reason: Reason = None,
    matching: Matching = None,
    campaign: Campaign = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    yes: Yes = False,
) -> None:
    """Send dead letters back to be tried anew, under the ids that they have: what is done stays done.

    Each is sent to its retry queue first, and deleted then: interrupted, the command may repeat one and loses none.
    """
    opened = session.of(context)
    target, output = opened.target, opened.output
    wanted = _filter(
        opened.target,
        ids,
        job_types,
        reason=reason,
        matching=matching,
        campaign=campaign,
        since=since,
        until=until,
        needed=not everything,
    )
    found = find(opened, wanted)
    _tell_missing(opened, ids, found)
    going = Found()
    going.add([letter for letter in found.messages if letter.destination is not None])
    _plan(opened, found, lambda letter: letter.destination)
    if stay := len(found) - len(going):
        output.note(
            f"{_counted(stay)} can only be discarded: the event cannot be read, or was too large to keep."
        )
    redriven: Counter[str] = Counter()
    if going:
        output.confirm(f"Send {_counted(len(going))} of {target.name} back?", yes=yes)
        done: set[tuple[object, ...]] = set()

        def send_back(queue: Reading, letters: Sequence[Letter]) -> None:
            first = {each.identity: each for each in letters if each.identity not in done}
            for destination in sorted({str(each.destination) for each in first.values()}):
                send(
                    target,
                    destination,
                    [each.body for each in first.values() if each.destination == destination],
                )
            done.update(first)
            redriven.update(str(each.destination) for each in first.values())
            queue.delete(letters)

        _each(opened, going, "Sending back", send_back)
    _report(opened, "redriven", redriven, going)


@app.command(epilog=times.TIME_HELP)
def discard(
    context: typer.Context,
    *,
    ids: Ids = [],  # noqa: B006  typer copies it.
    job_types: JobTypes = [],  # noqa: B006
    reason: Reason = None,
    matching: Matching = None,
    campaign: Campaign = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    save: Annotated[
        Path | None, typer.Option("--save", help="Write them to this new file first, a line of JSON each.")
    ] = None,
    no_save: Annotated[bool, typer.Option("--no-save", help="Keep nothing of them.")] = False,
    yes: Yes = False,
) -> None:
    """Delete dead letters for good. Wants --save FILE, or --no-save."""
    opened = session.of(context)
    if (save is None) != no_save:
        raise WrongInput("say whether to keep them: either --save FILE or --no-save")
    wanted = _filter(
        opened.target,
        ids,
        job_types,
        reason=reason,
        matching=matching,
        campaign=campaign,
        since=since,
        until=until,
        needed=not everything,
    )
    found = find(opened, wanted)
    _tell_missing(opened, ids, found)
    _plan(opened, found, lambda _: None)
    discarded: Counter[str] = Counter()
    if found:
        kept = "and keep nothing of them" if save is None else f"after writing them to {save}"
        question = f"Delete {_counted(len(found))} of {opened.target.name} {kept}?"
        opened.output.confirm(question, yes=yes)
        gone: set[tuple[object, ...]] = set()
        with saving(save) as write:

            def throw_away(queue: Reading, letters: Sequence[Letter]) -> None:
                write(letters)
                queue.delete(letters)
                new = {each.identity: each.job_type for each in letters if each.identity not in gone}
                discarded.update(new.values())
                gone.update(new)

            _each(opened, found, "Deleting", throw_away)
    _report(opened, "discarded", discarded, found)


def _filter(
    target: Target,
    ids: Sequence[str],
    job_types: Sequence[str],
    *,
    reason: str | None = None,
    matching: str | None = None,
    campaign: str | None = None,
    since: str | None = None,
    until: str | None = None,
    needed: bool = False,
) -> Filter:
    if unknown := [name for name in job_types if name not in JOB_TYPES]:
        raise WrongInput(f"--job-type {unknown[0]}: allowed are {', '.join(JOB_TYPES)}")
    found = Filter(
        frozenset(ids),
        tuple(name for name in JOB_TYPES if not job_types or name in job_types),
        reason,
        pattern_of(matching),
        None if campaign is None else campaign_of(target, campaign),
        None if since is None else times.moment(since),
        None if until is None else times.moment(until),
    )
    if needed and found.is_everything:
        raise WrongInput("say which dead letters are meant: by id, --job-type, --reason and others, or --all")
    return found


def _tell_missing(opened: Session, ids: Sequence[str], found: Found) -> None:
    """Say which of the ids that were given lead to nothing: mistyped, sent back by now, or with somebody else."""
    known = {id_ for letter in found.messages for id_ in letter.ids}
    if missing := [id_ for id_ in dict.fromkeys(ids) if id_ not in known]:
        opened.output.note(f"There is no such dead letter: {', '.join(missing)}")


def _each(
    opened: Session, planned: Found, what: str, act: Callable[[Reading, Sequence[Letter]], None]
) -> None:
    """Read the queues again and act on the messages that were shown, copies included, and on no other.

    One that was sent back and given up once more meanwhile is another message at the same place.
    """
    for job_type in sorted({letter.job_type for letter in planned.messages}):
        left = {letter.message_id for letter in planned.messages if letter.job_type == job_type}
        with (
            opened.output.progress(f"{what}: {job_type}", len(left)) as advance,
            reading(opened.target, job_type) as queue,
        ):
            for letters in queue.batches():
                if meant := [letter for letter in letters if letter.message_id in left]:
                    act(queue, meant)
                    left -= {letter.message_id for letter in meant}
                    advance(len(meant))
                if not left:
                    break


def _plan(opened: Session, found: Found, destination: Callable[[Letter], str | None]) -> None:
    groups: Counter[tuple[str, str, str | None]] = Counter(
        (letter.job_type, letter.reason, destination(letter)) for letter in found.letters()
    )
    rows = [
        {"job_type": job_type, "reason": reason, "goes_to": to, "dead_letters": count}
        for (job_type, reason, to), count in groups.most_common()
    ]
    columns = ["job_type", "reason", "goes_to", "dead_letters"]
    if all(row["goes_to"] is None for row in rows):
        columns.remove("goes_to")
    opened.output.beforehand.rows(rows, columns=columns, title="Dead letters")


def _report(opened: Session, what: str, counts: Counter[str], planned: Found) -> None:
    total = counts.total()
    if opened.output.format == "json":
        opened.output.record({what: total, "by": dict(counts), "planned": len(planned)})
        return
    gone = len(planned) - total
    missing = f"; {gone} were not there any more, or with somebody else" if gone else ""
    opened.output.note(f"{total} {what}{missing}.")


def _counted(number: int) -> str:
    return f"{number} dead letter{'' if number == 1 else 's'}"
