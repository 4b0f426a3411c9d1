"""`python -m local chaos`: thousands of events while everything around them breaks, and one table of what it did."""

import argparse
import json
import logging
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import psycopg
from rich.console import Console

from campaign_jobs.email.sending import POOLFUL_SECONDS
from campaign_jobs.errors import CampaignJobsError
from campaign_jobs.position.job import RUN_RESERVE_SECONDS
from campaign_jobs.reward.job import RECORDING_SECONDS
from campaign_jobs.reward.webhooks.client import TOTAL_SECONDS as WEBHOOK_SECONDS
from campaign_jobs.worker.pipeline import SETTLING_SECONDS
from local.chaos.faults import Breaker
from local.chaos.judge import Judge, KilledBy, Verdict
from local.chaos.plan import STEPS_PER_SECOND, Plan, Step, make_plan
from local.chaos.publishing import Publisher
from local.chaos.receiver import ChaosReceiver
from local.chaos.report import show
from local.chaos.services import Services
from local.functions import FunctionFailed
from local.settings import LocalSettings
from local.system import LocalSystem, Tuning, fresh_directory

# What handler.py logs.
ENDED_BY_A_RECORD: Final = "ended by a record"
QUIET_SECONDS: Final = 900
SHOWN_FINDINGS: Final = 20
# Not much longer than the least that each job needs, because a claim of a killed process lasts as long as its
# invocation could have, and so does the visibility of its message.
_SECONDS_TO_WORK: Final = 10
TUNING: Final = Tuning(
    timeout_seconds={
        "email": SETTLING_SECONDS + POOLFUL_SECONDS + _SECONDS_TO_WORK,
        "reward": SETTLING_SECONDS + WEBHOOK_SECONDS + RECORDING_SECONDS + _SECONDS_TO_WORK,
        "position": SETTLING_SECONDS + RUN_RESERVE_SECONDS + _SECONDS_TO_WORK,
        "unroutable": 10,
        "feedback": 30,
    },
    concurrency={"email": 4, "reward": 3, "position": 3, "unroutable": 2},
    members=2,
    # More batches to be killed in, and a batch that a killer was in is handed on well within the shortest time-out.
    max_batch_size=100,
    relay_interval=timedelta(seconds=10),
    feedback_repeated=0.1,
    handler=lambda function: Path(__file__).with_name("handler.py"),
)
FUNCTION_SETTINGS: Final = {"MISSING_ROW_PATIENCE": "40s", "RETRY_FIRST_DELAY": "1s"}
_PARKED: Final = """
SELECT (SELECT count(*) FROM campaign_jobs.email_messages WHERE status = 'parked')
     + (SELECT count(*) FROM campaign_jobs.user_rewards WHERE parked_at IS NOT NULL)
"""


def main(arguments: list[str]) -> int:
    """Returns 0 when nothing was lost or doubled, 1 when something was or did not work, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m local chaos",
        description="Publish events while processes, the broker and the database are killed, SES throttles and pauses, "
        "webhooks fail and hang; then look what became of each event. The data, their order and the plan of faults "
        "follow from --seed and --events; what a fault hits is up to the machine.",
    )
    parser.add_argument("--events", type=int, default=20_000, help="how many (default: 20000)")
    parser.add_argument("--seed", type=int, default=1, help="another crowd, other faults (default: 1)")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="where data, logs and mails go and stay; emptied first (default: a temporary directory, kept on failure)",
    )
    options = parser.parse_args(arguments)
    if options.events < 100:
        parser.error("--events: allowed are at least 100")
    directory = (
        fresh_directory(options.keep)
        if options.keep
        else Path(tempfile.mkdtemp(prefix="campaign-jobs-chaos-"))
    )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 100
    # The stand-ins report every failed batch, which is what is going on here all the time.
    logging.getLogger("local").setLevel(logging.ERROR)
    try:
        verdict = _Run(options.events, options.seed, directory, console).run()
    except (CampaignJobsError, TimeoutError) as error:
        print(f"{error}\nData and logs are in {directory}.", file=sys.stderr)
        return 1
    for title, findings in (
        ("Lost", verdict.lost),
        ("Doubled", verdict.doubled),
        ("Wrong", verdict.wrong),
    ):
        for finding in findings[:SHOWN_FINDINGS]:
            console.print(f"{title}: {finding}", markup=False, soft_wrap=True)
        if len(findings) > SHOWN_FINDINGS:
            console.print(f"{title}: and {len(findings) - SHOWN_FINDINGS} more")
    if verdict.is_right and options.keep is None:
        shutil.rmtree(directory)
    else:
        console.print(f"Data and logs are in {directory}.")
    return 0 if verdict.is_right else 1


class _Run:
    def __init__(self, events: int, seed: int, directory: Path, console: Console) -> None:
        self._events, self._seed = events, seed
        self._directory = directory.absolute()
        self._console = console
        self._began = time.monotonic()
        self._killed: list[KilledBy] = []

    def run(self) -> Verdict:
        plan = make_plan(events=self._events, seed=self._seed, started_at=datetime.now(UTC))
        self._say(
            f"{len(plan.events)} events, seed {self._seed}, {len(plan.steps) / STEPS_PER_SECOND:.0f} s of faults"
        )
        with ChaosReceiver(self._directory) as receiver:
            system = LocalSystem(
                self._directory,
                LocalSettings(),
                function_settings={
                    **FUNCTION_SETTINGS,
                    "WEBHOOK_TEST_TARGETS": receiver.target,
                    "WEBHOOK_TEST_CA_FILE": str(receiver.ca_file),
                },
                progress=self._say,
                on_log_line=self._on_log_line,
                customary_ports=False,
                tuning=TUNING,
            )
            with system:
                services = Services(system.servers.database_url, plan)
                services.set_up(receiver.urls)
                publisher = Publisher(system.servers.kafka_brokers, system.settings.kafka_job_topic)
                breaker = Breaker(system, self._say)
                play = _Play(plan, system, services, publisher, breaker)
                play.run(on_resume=receiver.back.set, say=self._say)
                receiver.calm.set()
                self._say("Nothing breaks any more; waiting until nothing is under way")
                self._settle(system, services)
                system.schedules["analytics"].fire()
                verdict = Judge(
                    plan,
                    system,
                    receiver,
                    breaker,
                    publisher.published,
                    killed=self._killed,
                    email_processes=TUNING.concurrency["email"],
                ).look()
        show(self._console, verdict, breaker, seed=self._seed, seconds=time.monotonic() - self._began)
        return verdict

    def _on_log_line(self, _: str, line: str) -> None:
        if ENDED_BY_A_RECORD in line:
            entry = json.loads(line)
            self._killed.append(KilledBy(entry["event_id"], entry["alone"]))

    def _settle(self, system: LocalSystem, services: Services) -> None:
        """Wait until nothing is under way and nothing parked, which a late answer of an endpoint may still cause."""
        deadline = time.monotonic() + QUIET_SECONDS
        looked = time.monotonic()

        def on_look(unfinished: dict[str, int]) -> None:
            nonlocal looked
            if time.monotonic() - looked > 10:
                looked = time.monotonic()
                self._say(", ".join(f"{name} {count}" for name, count in unfinished.items()) or "quiet")

        while True:
            services.enable_endpoints()
            system.wait_until_quiet(timeout_seconds=deadline - time.monotonic(), on_look=on_look)
            with psycopg.connect(system.servers.database_url) as connection:
                row = connection.execute(_PARKED).fetchone()
            assert row is not None
            if row[0] == 0:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{row[0]} mails or rewards are parked for ever")
            time.sleep(1)

    def _say(self, message: str) -> None:
        self._console.print(
            f"{time.monotonic() - self._began:6.1f} s  {message}", markup=False, soft_wrap=True
        )


@dataclass(frozen=True)
class _Play:
    """The plan, step by step."""

    plan: Plan
    system: LocalSystem
    services: Services
    publisher: Publisher
    breaker: Breaker

    def run(self, *, on_resume: Callable[[], None], say: Callable[[str], None]) -> None:
        """Returns once all is published and everything is up again. Raises NotPublished."""
        began = time.monotonic()
        runs: list[threading.Thread] = []
        for number, step in enumerate(self.plan.steps):
            time.sleep(max(0.0, began + number / STEPS_PER_SECOND - time.monotonic()))
            for fault in step.faults:
                self.breaker.begin(fault)
            self._write_and_publish(step, on_resume)
            if step.run_schedules:
                runs += [_aside(self.system, name) for name in ("analytics", "fraud")]
            if number % (10 * STEPS_PER_SECOND) == 0:
                say(f"{len(self.publisher.published)} records published")
        self.publisher.flush()
        self.breaker.join()
        for run in runs:
            run.join()

    def _write_and_publish(self, step: Step, on_resume: Callable[[], None]) -> None:
        if step.verified_referrals:
            self.services.verify_referrals(step.verified_referrals)
        self.publisher.publish(step.records)
        if step.late_people:
            self.services.add_people(step.late_people)
        if step.late_rewards:
            self.services.add_user_rewards(step.late_rewards)
        if step.resume:
            on_resume()
            self.services.resume()
            self.services.enable_endpoints()


def _aside(system: LocalSystem, name: str) -> threading.Thread:
    """A tick of a schedule, which may well be killed: the next one makes up for it."""

    def fire() -> None:
        try:
            system.schedules[name].fire()
        except FunctionFailed as error:
            logging.getLogger(__name__).info("%s failed: %s", name, error)

    thread = threading.Thread(target=fire, name=f"run of {name}", daemon=True)
    thread.start()
    return thread


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(main(sys.argv[1:]))
