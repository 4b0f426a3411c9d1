"""Everything in one run: beside the peers, beside bare SQL, cold starts and sizes. Writes docs/benchmarks.md.

    python -m benchmarks [--quick] [--rounds 3] [--users 1000000]

What is between the marks of docs/benchmarks.md, and docs/benchmarks.svg, are written anew; the figures are kept in
.bench/results.json. A quick run shows in a minute that everything works; its figures say nothing, so they go below
.bench.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import imports, peers, report, scheduled, servers, sizes, throughput
from benchmarks.campaign import say
from benchmarks.environments import CACHE, BenchmarkError
from benchmarks.report import BARE_BATCHES
from benchmarks.servers import Servers
from benchmarks.sides import OurSide, PeerSide, Side
from campaign_jobs.settings import BY_FUNCTION

RESULTS = CACHE / "results.json"
OUR_EVENTS = 60_000
OUR_MEMBERS = 2
PACED_JOBS = 250
PACED_RATE = 25.0
QUICK = 20
"""A quick run has so many times fewer of everything."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: a little of everything, no figures"
    )
    parser.add_argument(
        "--rounds", type=positive, help="measurements of each, in turn (default: 3; 1 when quick)"
    )
    parser.add_argument(
        "--users", type=positive, help="of the campaign (default: 1,000,000; 20,000 when quick)"
    )
    parser.add_argument("--again", action="store_true", help="write the document from the last run's figures")
    arguments = parser.parse_args()
    try:
        if arguments.again:
            results = last_results()
        else:
            results = measure(
                quick=arguments.quick,
                rounds=arguments.rounds or (1 if arguments.quick else 3),
                users=arguments.users or (20_000 if arguments.quick else 1_000_000),
            )
        if not arguments.quick:
            RESULTS.write_text(json.dumps(results, indent=1), encoding="utf-8")
        for path in report.write(results, CACHE / "quick" if arguments.quick else report.DOCUMENTS):
            say(f"wrote {path}")
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: allowed is 1 or more")
    return number


def last_results() -> dict[str, Any]:
    """The figures of the last whole run. Raises BenchmarkError where there was none."""
    try:
        results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BenchmarkError(
            "there are no figures to write again: run `make bench` without --again first"
        ) from error
    return results


def measure(*, quick: bool, rounds: int, users: int) -> dict[str, Any]:
    started = time.monotonic()
    fewer = QUICK if quick else 1
    sides: list[Side] = [OurSide(jobs=OUR_EVENTS, members=OUR_MEMBERS), *map(PeerSide, peers.PEERS)]
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        servers.running(Path(directory)) as shared,
    ):
        results: dict[str, Any] = {
            "machine": machine(shared),
            "rounds": rounds,
            "users": users,
            "backlog": backlogs(sides, shared, rounds, fewer),
            "single": singles(shared, rounds, OUR_EVENTS // fewer),
            "latency": latencies(sides, shared, PACED_JOBS // fewer),
        }
    results["scheduled"] = scheduled.measure(users, rounds)
    say("imports")
    results["imports"] = {name: imports.measure(name, rounds) for name in BY_FUNCTION}
    say("sizes")
    results["sizes"] = sizes.measure(dependencies=not quick)
    results["seconds"] = time.monotonic() - started
    return results


def backlogs(sides: list[Side], shared: Servers, rounds: int, fewer: int) -> dict[str, Any]:
    """By side, jobs per second and MiB of each round."""
    results: dict[str, Any] = {side.name: {"rates": [], "memory_mb": []} for side in sides}
    for number in range(1, rounds + 1):
        for side in sides:
            rate, megabytes = throughput.backlog(side, shared, f"backlog-{number}", side.jobs // fewer)
            results[side.name]["rates"].append(rate)
            results[side.name]["memory_mb"].append(megabytes)
            say(f"round {number}: {side.name}, {rate:,.0f} jobs/s")
    return results


def singles(shared: Servers, rounds: int, count: int) -> dict[str, Any]:
    """By batch size and way, events per second of each round in one process."""
    topic = throughput.filled_topic(shared, "single", count)
    results: dict[str, Any] = {str(batch): {"bare": [], "pipeline": []} for batch in BARE_BATCHES}
    for number in range(1, rounds + 1):
        for batch in BARE_BATCHES:
            for way, rates in results[str(batch)].items():
                rates.append(throughput.single(shared, way, topic, count, batch))
            bare, ours = (results[str(batch)][way][-1] for way in ("bare", "pipeline"))
            say(f"round {number}: batches of {batch}, bare {bare:,.0f}, pipeline {ours:,.0f} events/s")
    return results


def latencies(sides: list[Side], shared: Servers, count: int) -> dict[str, list[float]]:
    """By side, milliseconds from enqueuing to commit of each job."""
    results = {}
    for side in sides:
        results[side.name] = throughput.latency(side, shared, "latency", count, PACED_RATE)
        say(f"one by one: {side.name}, p50 {statistics.median(results[side.name]):,.1f} ms")
    return results


def machine(shared: Servers) -> dict[str, Any]:
    row = shared.connection.execute("SHOW server_version").fetchone()
    assert row is not None
    redis = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True)
    return {
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "postgresql": row[0].split()[0],
        "redis": redis.stdout.partition("v=")[2].split()[0],
        "kafka": report.kafka_version(),
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
