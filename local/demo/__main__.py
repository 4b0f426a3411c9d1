"""`python -m local demo`: a campaign launch on the local system, with tables and checks."""

import argparse
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO, Final

from rich.console import Console

from campaign_jobs.errors import CampaignJobsError
from local.demo import tables
from local.demo.cast import Names, TooFewPeople, make_cast
from local.demo.checks import check
from local.demo.findings import as_summary, collect
from local.demo.launch import FUNCTION_SETTINGS, Launch
from local.demo.mail_checks import check_mails
from local.demo.outcomes import Outcomes
from local.demo.progress import LaunchProgress
from local.demo.publishing import Publisher
from local.demo.receiver import WebhookReceiver
from local.functions import REPOSITORY
from local.settings import LocalSettings
from local.system import LocalSystem, fresh_directory

WIDTH: Final = 100
MARK: Final = ".campaign-jobs-demo"
EXIT_CODES: Final = """exit codes:
  0    everything was checked and is right
  1    a check is off, or something did not work
  2    wrong arguments
  130  stopped by Ctrl-C (SIGINT), 143 by SIGTERM; the system is stopped gracefully either way"""


class Stopped(BaseException):
    """A signal asks to stop. No Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class DirectoryNotOurs(CampaignJobsError):
    """--directory holds something that no demo has written."""


def main(arguments: list[str]) -> int:
    """Play the launch; returns the exit code that --help explains."""
    options = _options(arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    progress = LaunchProgress(console)
    try:
        with _stopping():
            return _run(options, console, progress)
    except Stopped as stopped:
        progress.end()
        console.print("Stopped before the end.")
        return stopped.exit_code
    except TooFewPeople as error:
        print(error, file=sys.stderr)
        return 2
    except (CampaignJobsError, TimeoutError) as error:
        progress.end()
        print(error, file=sys.stderr)
        print(f"The functions' logs are in {options.directory / 'logs'}.", file=sys.stderr)
        return 1


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m local demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Play a campaign launch on the local system and check that everything came out right.",
        epilog="KAFKA_BROKERS, DATABASE_URL and AWS_ENDPOINT_URL each replace a part by a real one. Where SES is\n"
        "replaced, nobody bounces, complains or unsubscribes by a link, because its mails cannot be read here.\n\n"
        f"{EXIT_CODES}",
    )
    parser.add_argument("--people", type=int, default=300, help="how many sign up (default: 300)")
    parser.add_argument("--seed", type=int, default=1, help="another crowd, the same characters (default: 1)")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the totals and checks as JSON")
    parser.add_argument(
        "--keep", action="store_true", help="keep the system running afterwards, to look around, until Ctrl-C"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=REPOSITORY / ".local" / "demo",
        help="where data, logs and mails go; emptied first (default: .local/demo)",
    )
    options = parser.parse_args(arguments)
    if options.summary is not None and not options.summary.absolute().parent.is_dir():
        parser.error(f"--summary {options.summary}: its directory does not exist")
    return options


def _run(options: argparse.Namespace, console: Console, progress: LaunchProgress) -> int:
    began = time.monotonic()
    settings = LocalSettings.load(os.environ)
    borrows = any((settings.database_url, settings.kafka_brokers, settings.aws_endpoint_url))
    run = datetime.now(UTC).strftime("%Y%m%d-%H%M%S") if borrows else ""
    if borrows:
        # What is not ours may hold another run's records, so this one goes by names of its own.
        settings = replace(
            settings,
            kafka_job_topic=f"{settings.kafka_job_topic}-demo-{run}",
            kafka_job_consumer_group=f"{settings.kafka_job_consumer_group}-demo-{run}",
        )
    started_at = datetime.now(UTC)
    own_ses = settings.aws_endpoint_url is None
    cast = make_cast(
        Names(run), people=options.people, seed=options.seed, started_at=started_at, own_ses=own_ses
    )
    people = cast.people.values()
    console.rule("A campaign launch on this machine", align="left")
    progress.say(
        f"{options.people} people in {len(cast.campaigns)} campaigns sign up, verify, refer each other and earn "
        f"rewards; {sum(bool(person.checks) for person in people)} look like\ncheaters, "
        f"{sum(person.bounces or person.complains or person.unsubscribes for person in people)} bounce, complain "
        f"or unsubscribe, and {len(cast.bad_records) + len(cast.hopeless_events)} records are wrong. "
        "It takes a minute or so.\n"
    )
    outcomes = Outcomes()
    with _emptied(options.directory) as directory, WebhookReceiver(directory) as receiver:
        system = LocalSystem(
            directory,
            settings,
            function_settings={
                **FUNCTION_SETTINGS,
                "WEBHOOK_TEST_TARGETS": receiver.target,
                "WEBHOOK_TEST_CA_FILE": str(receiver.ca_file),
            },
            progress=progress.say,
            on_log_line=outcomes.on_log_line,
            durable=False,
            customary_ports=False,
        )
        with system, Publisher(system.servers.kafka_brokers, settings.kafka_job_topic) as publisher:
            launch = Launch(cast, system, publisher, receiver.urls, progress)
            launch.play()
            findings = collect(cast, system, outcomes, topic=settings.kafka_job_topic, own_ses=own_ses)
            checks = [
                *check(launch, publisher, receiver, outcomes, findings),
                *check_mails(launch, findings),
            ]
            console.print()
            tables.show(console, cast, findings, launch.boards)
            tables.show_checks(console, checks)
            if options.summary is not None:
                summary = as_summary(findings, launch.boards)
                summary["checks"] = {item.name: item.holds for item in checks}
                options.summary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            right = sum(item.holds for item in checks)
            mails = sum(message["status"] == "accepted" for message in findings.messages)
            progress.say(
                f"\n{right} of {len(checks)} checks hold. {publisher.records} records were published, "
                f"{mails} mails sent, in {time.monotonic() - began:.0f} s.\n"
            )
            _say_where_to_look(progress, system, options)
            if options.keep:
                progress.say(f"\n{system.summary()}\n\nThe system keeps running. Ctrl-C stops it.")
                try:
                    threading.Event().wait()
                except Stopped:
                    pass  # The demo is done, so this is no early end.
    return 0 if right == len(checks) else 1


def _say_where_to_look(progress: LaunchProgress, system: LocalSystem, options: argparse.Namespace) -> None:
    progress.say("Where to look:")
    if system.settings.aws_endpoint_url is None:
        progress.say(f"  - Mails    {_shown(system.mail_directory / 'index.html')}")
    progress.say(f"  - Logs     {_shown(system.log_directory)}")
    if options.summary is not None:
        progress.say(f"  - Summary  {_shown(options.summary)}")


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextmanager
def _emptied(directory: Path) -> Iterator[Path]:
    """The demo's directory, empty but for a mark that says whose it is and that somebody is at it."""
    directory = directory.absolute()
    mark = directory / MARK
    if directory.exists() and any(directory.iterdir()):
        if not mark.exists():
            raise DirectoryNotOurs(
                f"{directory} holds something else; allowed is an empty one, or one of an earlier demo"
            )
        with mark.open() as file:
            _lock(file, directory)
    fresh_directory(directory)
    with mark.open("w") as file:
        _lock(file, directory)
        yield directory


def _lock(file: IO[str], directory: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DirectoryNotOurs(
            f"another demo is running in {directory}; give this one a --directory"
        ) from None


@contextmanager
def _stopping() -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the demo in good order; later ones do not disturb that."""

    def stop(number: int, _: FrameType | None) -> None:
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(main(sys.argv[1:]))
