"""Positions, analytics and fraud on one campaign, each against the bare SQL that does the same.

    python -m benchmarks.scheduled [--users 1000000] [--rounds 3]

Starts a PostgreSQL server of its own. Every figure is a median over rounds that alternate in one run, so that what else
the machine does meets both sides alike; the ratios are what to compare between machines.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

import psycopg

from benchmarks import analytics, fraud, positions
from benchmarks.campaign import launch, say
from campaign_jobs.database import migrations
from campaign_jobs.database.connection import Database
from local.postgres import PostgresServer

Seconds = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for job, seconds in measure(arguments.users, arguments.rounds).items():
        floor = median(seconds["bare"])
        for name, each in seconds.items():
            print(f"{job:10} {name:45} {median(each):8.3f} s   ratio {median(each) / floor:6.3f}")


def measure(users: int, rounds: int) -> dict[str, Seconds]:
    """Seconds of each round, by job type and what it did."""
    with (
        tempfile.TemporaryDirectory(prefix="scheduled-") as directory,
        PostgresServer(Path(directory) / "data") as server,
    ):
        url = server.create_database("benchmark")
        migrations.apply(url)
        database = Database(url)
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                launch(connection, users)
                say("analytics")
                of_analytics = analytics.measure(connection, database, rounds)
                say("positions")
                of_positions = positions.measure(connection, database, users, rounds)
                # The last, because its holds would count in positions, and not in their bare SQL.
                say("fraud")
                of_fraud = fraud.measure(connection, database, rounds)
        finally:
            database.close()
    return {"position": of_positions, "analytics": of_analytics, "fraud": of_fraud}


if __name__ == "__main__":
    main()
