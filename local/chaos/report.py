"""The one table of a run."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from local.chaos.faults import TITLES, Breaker
from local.chaos.judge import Verdict, percentile


def show(console: Console, verdict: Verdict, breaker: Breaker, *, seed: int, seconds: float) -> None:
    """Events, lost, doubled, time to recover, delay of neighbors."""
    counts = verdict.counts
    table = Table(title=f"Chaos, seed {seed}, {seconds:.0f} s", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("")
    table.add_row("events", str(counts["events"]), f"in {counts['records']} records, repetitions included")
    table.add_row("lost", str(len(verdict.lost)), "without the end that they ask for")
    table.add_row("doubled", str(len(verdict.doubled)), "effects in the database")
    table.add_row("wrong", str(len(verdict.wrong)), "another end, position or count than the data ask for")
    table.add_section()
    table.add_row(
        "mails sent",
        str(counts["mails"]),
        f"{counts['follow-up mails']} follow-ups among the events behind them",
    )
    table.add_row(
        "mails sent again",
        str(verdict.mails_again),
        f"{verdict.mails_again_allowed} allowed: a pool-full for each crash",
    )
    table.add_row("events of SES", str(counts["events of SES"]), "recorded, each once")
    table.add_row("mail events skipped", str(counts["skipped"]), "")
    table.add_row(
        "webhooks taken",
        str(counts["webhooks"]),
        f"{counts['webhooks again']} again, with the same webhook-id",
    )
    table.add_row("dead letters", str(counts["dead letters"]), f"{counts['dead letters again']} repeated")
    table.add_row(
        "killers",
        str(counts["killers"]),
        f"ended {counts['killed together']} processes with neighbors, {counts['killed alone']} alone",
    )
    table.add_row("positions", str(counts["positions"]), "recomputed")
    table.add_section()
    for kind, title in TITLES.items():
        of_kind = [waits for name, waits in verdict.recoveries if name == kind]
        table.add_row(title, str(len(of_kind)), _recovery(of_kind))
    kills = ", ".join(f"{name} {count}" for name, count in breaker.kills.most_common())
    table.add_row("processes killed", str(breaker.kills.total()), kills)
    table.add_section()
    for name, title in (("neighbors", "delay of bad records' neighbors"), ("others", "delay of the others")):
        delays = verdict.delays[name]
        table.add_row(title, str(len(delays)), _spread(delays))
    console.print(table)


def _recovery(faults: Sequence[Sequence[float]]) -> str:
    """After a fault's end: when half, and when all, of what waited then was done. The median fault and the worst."""
    waiting = [waits for waits in faults if waits]
    if not waiting:
        return "nothing waited"
    halves = [waits[len(waits) // 2] for waits in waiting]
    alls = [waits[-1] for waits in waiting]
    return (
        f"half of what waited done in {_seconds(percentile(halves, 0.5))} (worst {_seconds(max(halves))}), "
        f"all in {_seconds(percentile(alls, 0.5))} (worst {_seconds(max(alls))})"
    )


def _spread(delays: Sequence[float]) -> str:
    if not delays:
        return ""
    shares = ", ".join(f"p{share * 100:.0f} {_seconds(percentile(delays, share))}" for share in (0.5, 0.95))
    return f"{shares}, max {_seconds(max(delays))}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
