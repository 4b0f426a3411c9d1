"""The document of the figures: docs/benchmarks.md between its marks, and the chart beside it."""

import json
import re
import subprocess
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks import peers
from benchmarks.environments import REPOSITORY, environment
from campaign_jobs.catalog import POSITION

DOCUMENTS = REPOSITORY / "docs"
NAME = "benchmarks.md"
CHART = "benchmarks.svg"
BEGIN, END = "<!-- figures: written by make bench -->", "<!-- figures: end -->"
DRAWING = REPOSITORY / "benchmarks" / "chart"

OURS = "campaign-jobs"
BARE_BATCHES = (100, 500, POSITION.lanes[0].batch_size)
OUR_DURABILITY = (
    "function or poller killed: the batch comes again within seconds, and what was done is seen. Kafka killed: nothing"
    " lost; power cut: what the disks had not got yet, with one broker; nothing, with MSK's three"
)
OUR_SETUP = "Apache Kafka, 2 pollers' stand-ins, 2 functions' processes, batches of {batch:,}"
OUR_BETTER = "-"

TIMES_THE_FASTEST = 5.0
PART_OF_BARE = 0.5
TIMES_BARE_SQL = 1.2


def write(results: dict[str, Any], directory: Path) -> list[Path]:
    """Write document and chart into the directory; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    template = (DOCUMENTS / NAME).read_text(encoding="utf-8")
    before, _, rest = template.partition(BEGIN)
    after = rest.partition(END)[2]
    document, chart = directory / NAME, directory / CHART
    document.write_text(f"{before}{BEGIN}\n\n{figures(results)}\n\n{END}{after}", encoding="utf-8")
    python = environment("chart", DRAWING / "requirements.txt") / "python"
    drawn = subprocess.run(
        [str(python), str(DRAWING / "draw.py")],
        input=json.dumps(bars(results)),
        capture_output=True,
        text=True,
        check=True,
    )
    chart.write_text(drawn.stdout, encoding="utf-8")
    return [document, chart]


def figures(results: dict[str, Any]) -> str:
    """Everything between the marks, as Markdown."""
    machine = results["machine"]
    versions = ", ".join(
        f"{name} {machine[name.rpartition(' ')[2].lower()]}"
        for name in ("PostgreSQL", "Apache Kafka", "Redis", "Python")
    )
    where = (
        f"Measured on {machine['processors']} processors in {results['rounds']} rounds, with {versions};"
        f" the whole run took {results['seconds'] / 60:.0f} minutes. Medians, with their ranges in brackets."
    )
    parts = [
        where,
        aims(results),
        f"![Jobs per second, and milliseconds of a single job]({CHART})",
        beside_the_peers(results),
        beside_the_bare_libraries(results),
        beside_bare_sql(results),
        cold_starts(results),
        uploads(results),
    ]
    return "\n\n".join(parts)


def aims(results: dict[str, Any]) -> str:
    rates = {name: median(side["rates"]) for name, side in results["backlog"].items()}
    fastest = max((name for name in rates if name != OURS), key=rates.__getitem__)
    rows = [
        (
            f"at least {TIMES_THE_FASTEST:g} times the fastest peer, {fastest}",
            rates[OURS] / rates[fastest],
            rates[OURS] / rates[fastest] >= TIMES_THE_FASTEST,
        )
    ]
    for batch, ways in results["single"].items():
        part = median(ways["pipeline"]) / median(ways["bare"])
        rows.append(
            (
                f"at least {PART_OF_BARE:g} of the bare libraries, batches of {int(batch):,}",
                part,
                part >= PART_OF_BARE,
            )
        )
    for job, seconds in results["scheduled"].items():
        name, of_job = whole_run(seconds)
        times = median(of_job) / median(seconds["bare"])
        rows.append(
            (f"{job}: at most {TIMES_BARE_SQL:g} times the bare SQL ({name})", times, times <= TIMES_BARE_SQL)
        )
    return table(
        ("aim", "measured", "reached"),
        [(aim, f"{measured:.2f}", "yes" if reached else "**no**") for aim, measured, reached in rows],
    )


def whole_run(seconds: dict[str, list[float]]) -> tuple[str, list[float]]:
    """What is compared with the bare SQL: the run that does all that it does."""
    return next((name, each) for name, each in seconds.items() if name != "bare")


def beside_the_peers(results: dict[str, Any]) -> str:
    rates = {name: side["rates"] for name, side in results["backlog"].items()}
    fastest = max(median(each) for name, each in rates.items() if name != OURS)
    described = {OURS: (OURS, OUR_SETUP.format(batch=BARE_BATCHES[-1]), OUR_DURABILITY, OUR_BETTER)}
    for peer in peers.PEERS:
        described[peer.name] = (f"{peer.name} {peer.version}", peer.setup, peer.durability, peer.better)
    rows = []
    for name, each in sorted(rates.items(), key=lambda item: -median(item[1])):
        title, setup, durability, better = described[name]
        hundredths = quantiles(results["latency"][name], n=100, method="inclusive")
        rows.append(
            (
                title,
                setup,
                spread(each, "{:,.0f}"),
                f"{median(each) / fastest:.2f}",
                f"{hundredths[49]:,.1f} / {hundredths[98]:,.1f}",
                f"{median(results['backlog'][name]['memory_mb']):,.0f}",
                durability,
                better,
            )
        )
    heads = (
        "", "set up as", "jobs/s", "× fastest peer", "one job, p50 / p99 ms", "workers' MiB", "what is lost",
        "where it is better",
    )  # fmt: skip
    return table(heads, rows)


def beside_the_bare_libraries(results: dict[str, Any]) -> str:
    rows = [
        (
            f"{int(batch):,}",
            spread(ways["bare"], "{:,.0f}"),
            spread(ways["pipeline"], "{:,.0f}"),
            f"{median(ways['pipeline']) / median(ways['bare']):.2f}",
        )
        for batch, ways in results["single"].items()
    ]
    return table(("events in a batch, one process", "bare, events/s", "pipeline, events/s", "ratio"), rows)


def beside_bare_sql(results: dict[str, Any]) -> str:
    rows = []
    for job, seconds in results["scheduled"].items():
        floor = median(seconds["bare"])
        rows += [
            (
                job,
                "the bare SQL" if name == "bare" else name,
                spread(each, "{:,.2f}"),
                f"{median(each) / floor:.3f}",
            )
            for name, each in seconds.items()
        ]
    return table(("job type", f"{results['users']:,} users", "seconds", "ratio"), rows)


def cold_starts(results: dict[str, Any]) -> str:
    rows = [
        (
            name,
            f"{median(of['ours']):,.0f}",
            f"{median(of['ours']) / median(of['theirs']):.2f}",
            f"{of['memory_mb']:.0f}",
        )
        for name, of in results["imports"].items()
    ]
    return table(("handler", "imports, ms", "ratio to the bare imports", "MiB after them"), rows)


def uploads(results: dict[str, Any]) -> str:
    rows = [(name, *(f"{size / 1e6:.2f}" for size in of)) for name, of in results["sizes"].items()]
    return table(("uploaded", "MB unzipped", "MB zipped"), rows)


def bars(results: dict[str, Any]) -> dict[str, Any]:
    """What the chart shows."""
    latencies = {
        name: [quantiles(each, n=100, method="inclusive")[place] for place in (49, 98)]
        for name, each in results["latency"].items()
    }
    largest = str(BARE_BATCHES[-1])
    rates = {name: side["rates"] for name, side in results["backlog"].items()}
    rates["pipeline, one process"] = results["single"][largest]["pipeline"]
    rates["bare libraries, one process"] = results["single"][largest]["bare"]
    return {"rates": rates, "latencies": latencies, "ours": [OURS, "pipeline, one process"]}


def spread(each: list[float], form: str) -> str:
    text = form.format(median(each))
    return text if len(each) == 1 else f"{text} ({form.format(min(each))} – {form.format(max(each))})"


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def kafka_version() -> str:
    locked = (REPOSITORY / "local" / "kafka" / "jars.lock").read_text(encoding="utf-8")
    found = re.search(r"^org\.apache\.kafka:kafka-clients:([\d.]+) ", locked, re.MULTILINE)
    assert found is not None
    return found[1]
