"""`python -m local`: the whole system on this machine until Ctrl-C.

`python -m local demo` plays a launch on it, `python -m local chaos` breaks it.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from campaign_jobs.errors import CampaignJobsError
from local.functions import REPOSITORY
from local.settings import LocalSettings
from local.system import LocalSystem

LOOK_EVERY_SECONDS = 5


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 done, 1 something did not work, 2 wrong arguments or settings."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if arguments[:1] == ["demo"]:
        from local.demo.__main__ import main as demo

        return demo(arguments[1:])
    if arguments[:1] == ["chaos"]:
        from local.chaos.__main__ import main as chaos

        return chaos(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m local",
        description="Run the whole system on this machine: PostgreSQL, Apache Kafka, SES and SQS stand-ins, every "
        "function. Ctrl-C or SIGTERM stops it gracefully. `python -m local demo --help` explains the demo, and "
        "`python -m local chaos --help` the run that breaks things.",
        epilog="KAFKA_BROKERS, DATABASE_URL and AWS_ENDPOINT_URL each replace a part by a real one.",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=REPOSITORY / ".local",
        help="where data, logs and mails go (default: .local)",
    )
    options = parser.parse_args(arguments)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    try:
        settings = LocalSettings.load(os.environ)
        with LocalSystem(
            options.directory, settings, progress=lambda message: print(message, flush=True)
        ) as system:
            print(f"\n{system.summary()}\n\nReady. Ctrl-C stops.", flush=True)
            _watch(system, stopping)
    except CampaignJobsError as error:
        print(error, file=sys.stderr)
        return 1
    print("Stopped.", flush=True)
    return 0


def _watch(system: LocalSystem, stopping: threading.Event) -> None:
    """Show what the functions have done since the last look, when it is something, until told to stop."""
    before: dict[str, int] = {}
    while not stopping.wait(LOOK_EVERY_SECONDS):
        now = {mapping.consumer_group: mapping.counters.delivered for mapping in system.kafka_mappings} | {
            mapping.queue_name: mapping.counters.delivered for mapping in system.sqs_mappings
        }
        news = [
            f"{name} +{count - before.get(name, 0)}"
            for name, count in now.items()
            if count > before.get(name, 0)
        ]
        if news:
            print(f"delivered: {', '.join(news)}", flush=True)
        before = now


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
