"""The launch's tables, for a terminal of 100 columns, readable without colors."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final
from zoneinfo import ZoneInfo

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from local.demo.cast import MAIN_CAMPAIGN, Cast
from local.demo.checks import Check
from local.demo.findings import (
    LEADERBOARD_LENGTH,
    LEADERBOARDS,
    Findings,
    Standing,
    delivery_statuses,
    reward_state,
)

OUTCOMES: Final = ("done", "skipped", "rejected")


def show(console: Console, cast: Cast, findings: Findings, boards: dict[str, list[Standing]]) -> None:
    """All tables but the checks."""
    _events(console, findings)
    _emails(console, findings)
    _receivers(console, cast, findings)
    _leaderboard(console, cast, boards)
    _rewards(console, findings)
    _analytics(console, cast, findings)
    _fraud(console, cast, findings)
    _dead_letters(console, findings)


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """Each check by name; what was expected and found where it is off."""
    console.print()
    console.rule("Checks", align="left")
    for check in checks:
        if check.holds:
            console.print(f"  [green]yes[/]  {check.name}")
        else:
            console.print(f"  [bold red]NO[/]   {check.name}")
            console.print(f"       {check.difference()}", markup=False, soft_wrap=True)


def _table(title: str, *columns: str, numbers: int = 0) -> Table:
    """A table whose last `numbers` columns are figures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        right = number >= len(columns) - numbers
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table


def _figure(number: int) -> str:
    return str(number) if number else "·"


def _counted(title: str, kind: str, counts: dict[str, Counter[str]], columns: Sequence[str]) -> Table:
    table = _table(title, kind, *columns, "total", numbers=len(columns) + 1)
    for name, row in sorted(counts.items()):
        table.add_row(name, *(_figure(row[column]) for column in columns), str(row.total()))
    sums = sum(counts.values(), Counter[str]())
    table.add_section()
    table.add_row("all", *(_figure(sums[column]) for column in columns), str(sums.total()))
    return table


def _events(console: Console, findings: Findings) -> None:
    console.print(_counted("Events by type and outcome", "event type", findings.events, OUTCOMES))
    console.print(
        f"Put off on the way: {findings.tries['later']} times to wait for something, "
        f"{findings.tries['retry']} times after a failure.\n",
        style="dim",
    )
    table = _table("Why events were skipped", "event type", "reason", "events", numbers=1)
    for (event_type, reason), count in sorted(findings.skip_reasons.items()):
        table.add_row(event_type, escape(reason), str(count))
    console.print(table)


def _emails(console: Console, findings: Findings) -> None:
    counts: dict[str, Counter[str]] = {}
    for message in findings.messages:
        counts.setdefault(message["type"], Counter())[message["status"]] += 1
    console.print(_counted("Emails by type and outcome", "type", counts, ("accepted", "skipped", "failed")))
    if findings.mails is not None:
        reports = ("delivered", "bounced", "complained")
        title = "What SES reported of the accepted ones"
        console.print(_counted(title, "type", delivery_statuses(findings.messages), reports))


def _receivers(console: Console, cast: Cast, findings: Findings) -> None:
    table = _table("Who gets no more mail, or less of it", "who", "why", "mails sent", "withheld")
    mails: dict[str, dict[str, Counter[str]]] = {}
    for message in findings.messages:
        by_status = mails.setdefault(message["person"], {"accepted": Counter(), "skipped": Counter()})
        by_status.get(message["status"], Counter[str]())[message["type"]] += 1
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for person in cast.people.values():
        why = findings.suppressions.get(person.email.lower()) or (
            "unsubscribed" if person.key in findings.unsubscribed else None
        )
        if why is not None:
            sent, withheld = (", ".join(sorted(types)) for types in mails[person.key].values())
            alike.setdefault((why, sent, withheld, person.story), []).append(person.key)
    for (why, sent, withheld, story), people in sorted(alike.items()):
        more = f"\nand {len(people) - 1} more" if len(people) > 1 else ""
        table.add_row(people[0] + more, why, sent or "·", f"{withheld}\n[dim]{escape(story)}[/]")
    console.print(table)


def _leaderboard(console: Console, cast: Cast, boards: dict[str, list[Standing]]) -> None:
    before, counted, held, last = (
        {standing.person: standing for standing in boards[moment]} for moment in LEADERBOARDS.values()
    )
    table = _table(
        "Orbit's leaderboard: cheaters rise with their referrals, and fall once they are held",
        "#",
        "who",
        "joined as",
        "referrals",
        "score",
        "at signup",
        "verified",
        "fraud run",
        "now",
        numbers=7,
    )
    top = list(last.values())[:LEADERBOARD_LENGTH]
    shown = {standing.person for standing in top}
    fallen = [
        last[person]
        for person, standing in counted.items()
        if standing.position <= LEADERBOARD_LENGTH and person in last and person not in shown
    ]
    fallen.sort(key=lambda standing: standing.position)
    for standing in [*top, *fallen]:
        if standing in fallen[:1]:
            table.add_section()
        table.add_row(
            str(standing.position),
            standing.person,
            str(standing.original_position),
            str(standing.verified_referrals),
            str(standing.score),
            *(
                str(board[standing.person].position) if standing.person in board else "·"
                for board in (before, counted, held, last)
            ),
        )
    console.print(table)
    points = cast.campaigns[MAIN_CAMPAIGN].points_per_referral
    console.print(f"score = joined as − referrals × {points}; the position is its rank.\n", style="dim")


def _rewards(console: Console, findings: Findings) -> None:
    counts: dict[str, Counter[str]] = {}
    for row in findings.user_rewards:
        counts.setdefault(f"{row['reward']} ({row['method']})", Counter())[reward_state(row)] += 1
    states = ("delivered", "earned", "held", "parked", "revoked", "failed")
    console.print(_counted("Rewards", "reward (method)", counts, states))


def _analytics(console: Console, cast: Cast, findings: Findings) -> None:
    table = _table(
        "The hours' analytics, in each campaign's own time",
        "campaign", "hour", "signups", "verifications", "referrals", "emails", "rewards",
        numbers=5,
    )  # fmt: skip
    for row in findings.metrics:
        campaign = cast.campaigns[row["campaign"]]
        hour = row["bucket"].astimezone(ZoneInfo(campaign.timezone))
        figures = (
            "new_signups", "email_verifications", "referrals", "emails_sent", "rewards_delivered",
        )  # fmt: skip
        table.add_row(
            f"{campaign.name} ({campaign.timezone})",
            hour.strftime("%d %b %H:%M"),
            *(_figure(row[figure]) for figure in figures),
        )
    console.print(table)


def _fraud(console: Console, cast: Cast, findings: Findings) -> None:
    table = _table(
        "Fraud cases with their evidence, and the story behind them",
        "who",
        "risk",
        "hold",
        "status",
        "evidence",
    )
    # A farm of accounts is one story told many times.
    alike: dict[tuple[bool, int, str, str], list[str]] = {}
    for case in sorted(findings.fraud_cases, key=lambda case: str(case["person"])):
        evidence = "; ".join(_evidence(entry) for entry in case["evidence"])
        alike.setdefault((case["holding"], case["risk_score"], evidence, case["status"]), []).append(
            case["person"]
        )
    for (holding, risk_score, evidence, status), people in sorted(
        alike.items(), key=lambda group: (not group[0][0], -group[0][1], group[1])
    ):
        more = f"\nand {len(people) - 1} more" if len(people) > 1 else ""
        story = cast.people[people[0]].story
        table.add_row(
            people[0] + more,
            str(risk_score),
            "yes" if holding else "no",
            status,
            escape(evidence) + (f"\n[dim]{escape(story)}[/]" if story else ""),
        )
    console.print(table)


def _evidence(entry: dict[str, Any]) -> str:
    details = entry["details"]
    shown = ", ".join(
        f"{name.replace('_', ' ')}: {'+'.join(value) if isinstance(value, list) else value}"
        for name, value in details.items()
        if not name.endswith("_id")
    )
    return f"{entry['check']} {entry['weight']} ({shown})"


def _dead_letters(console: Console, findings: Findings) -> None:
    table = _table("Dead letters with their reasons", "queue", "offset", "reason")
    for letter in findings.dead_letters:
        table.add_row(letter.queue, f"{letter.partition}/{letter.offset}", escape(letter.reason))
    console.print(table)
