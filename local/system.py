"""The whole system on one machine: embedded servers, stand-ins for what Lambda does, and the real handlers."""

import functools
import json
import logging
import os
import secrets
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psycopg
from botocore.exceptions import BotoCoreError

from campaign_jobs import catalog
from campaign_jobs.database import migrations
from campaign_jobs.database.connection import Database
from campaign_jobs.errors import DatabaseUnavailable
from campaign_jobs.relay.lease import Lease
from campaign_jobs.settings import BY_FUNCTION, duration
from local.aws import FeedbackSettings
from local.aws.preparation import catalog_queues, prepare
from local.control import Control
from local.function_urls import FunctionUrl, url_at
from local.functions import REPOSITORY, Function, FunctionConfiguration
from local.kafka import create_topic
from local.mappings.kafka import KafkaMapping
from local.mappings.of_catalog import catalog_mappings
from local.mappings.registered import RegisteredMapping
from local.mappings.sqs import SqsMapping
from local.processes import pick_port
from local.schedules import Schedule
from local.servers import REGION, Progress, Servers
from local.settings import LocalSettings, go_duration, passed_on

ENVIRONMENT: Final = "local"
UNSUBSCRIBE_PORT: Final = 8480
CONTROL_PORT: Final = 4567
# How many execution environments a function may have at once; each is a process.
MAX_CONCURRENCY: Final = {"email": 3}
DEFAULT_CONCURRENCY: Final = 2

# As long as the slowest lane takes to get a heartbeat through, and more.
HEARTBEAT_PATIENCE_SECONDS: Final = 30

log = logging.getLogger(__name__)


def deployed_handler(function: str) -> Path:
    """The handler that the stack deploys for a function."""
    return REPOSITORY / "functions" / function / "handler.py"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Where one run differs from the catalog and from what fits a laptop; nothing, unless it says so."""

    timeout_seconds: Mapping[str, float] = field(default_factory=dict)
    """By function; the visibility of its queues follows."""
    concurrency: Mapping[str, int] = field(default_factory=lambda: MAX_CONCURRENCY)
    """Execution environments by function; DEFAULT_CONCURRENCY for the others."""
    members: int = 1
    """Consumers in each lane's group."""
    max_batch_size: int | None = None
    """Of Kafka's batches, in every lane; None leaves each lane its own."""
    relay_interval: timedelta | None = None
    feedback_repeated: float = 0
    """The share of SES's events that comes twice."""
    handler: Callable[[str], Path] = deployed_handler
    """The handler's file, by function."""


class LocalSystem:
    """Starts everything, knows when everything is quiet, and stops everything in good order."""

    def __init__(
        self,
        directory: Path,
        settings: LocalSettings,
        *,
        function_settings: Mapping[str, str] | None = None,
        progress: Progress = lambda message: None,
        on_log_line: Callable[[str, str], None] | None = None,
        durable: bool = True,
        customary_ports: bool = True,
        tuning: Tuning | None = None,
    ) -> None:
        """`directory` holds data, logs and mails; `function_settings` go to the functions besides those of ours.

        `durable=False` spares the embedded PostgreSQL its fsync, for data that nobody keeps. Without `customary_ports`,
        the servers take any that are free: whoever looked for another system's server finds none of this one's.
        """
        self.directory = directory.absolute()
        self.settings = settings
        self.mail_directory = self.directory / "mail"
        self.log_directory = self.directory / "logs"
        self._function_settings = dict(passed_on(os.environ)) | dict(function_settings or {})
        self._progress = progress
        self._on_log_line = on_log_line
        self._customary_ports = customary_ports
        self._tuning = tuning or Tuning()
        self.servers = Servers(
            self.directory,
            settings,
            mail_directory=self.mail_directory,
            log_directory=self.log_directory,
            progress=progress,
            durable=durable,
            customary_ports=customary_ports,
        )
        self.queue_urls: dict[str, str] = {}
        self.functions: dict[str, Function] = {}
        self._unsubscribe_port = 0
        self._unsubscribe_url: FunctionUrl | None = None
        self.mappings: list[RegisteredMapping] = []
        self._control: Control | None = None
        self.schedules: dict[str, Schedule] = {}
        self._relay_start: threading.Thread | None = None

    @property
    def kafka_mappings(self) -> list[KafkaMapping]:
        """The pollers of the topic's mappings that are enabled."""
        return [
            each for mapping in self.mappings for each in mapping.running if isinstance(each, KafkaMapping)
        ]

    @property
    def sqs_mappings(self) -> list[SqsMapping]:
        """Those of the queues' mappings that are enabled."""
        return [each for mapping in self.mappings for each in mapping.running if isinstance(each, SqsMapping)]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Starting

    def start(self) -> None:
        """Start everything. Raises StartError or another CampaignJobsError that says what did not work."""
        self.log_directory.mkdir(parents=True, exist_ok=True)
        self.servers.start()
        applied = migrations.apply(self.servers.database_url)
        self._progress(
            f"Database schema: {len(applied)} migrations applied"
            if applied
            else "Database schema: up to date"
        )
        create_topic(
            self.servers.kafka_brokers, self.settings.kafka_job_topic, partitions=catalog.TOPIC_PARTITIONS
        )
        sender_domain = self.settings.default_sender.rpartition("@")[2]
        self.queue_urls = prepare(
            self.servers.client("sesv2"),
            self.servers.client("sqs"),
            [sender_domain, self.settings.default_sender],
            catalog_queues(timeout_seconds=self._tuning.timeout_seconds),
        )
        if self.servers.aws is not None:
            self.servers.aws.report(
                FeedbackSettings(
                    self.queue_urls[catalog.FEEDBACK.queue_setting],
                    REGION,
                    repeated=self._tuning.feedback_repeated,
                )
            )
        self._make_functions()
        self._start_function_urls()
        self._start_mappings()
        self._start_schedules()
        self._start_control()
        self._write_endpoints()

    def _pick_port(self, customary: int) -> int:
        return pick_port(customary if self._customary_ports else None)

    def _make_functions(self) -> None:
        self._unsubscribe_port = self._pick_port(UNSUBSCRIBE_PORT)
        values = {
            **self._function_settings,
            **self.queue_urls,
            "DATABASE_URL": self.servers.database_url,
            "KAFKA_BROKERS": self.servers.kafka_brokers,
            "KAFKA_JOB_TOPIC": self.settings.kafka_job_topic,
            "KAFKA_JOB_CONSUMER_GROUP": self.settings.kafka_job_consumer_group,
            "KAFKA_WORKER_POOL_SIZE": str(self.settings.kafka_worker_pool_size),
            "ANALYTICS_INTERVAL": go_duration(self.settings.analytics_interval),
            "FRAUD_DETECTION_INTERVAL": go_duration(self.settings.fraud_detection_interval),
            "DEFAULT_SENDER": self.settings.default_sender,
            "UNSUBSCRIBE_URL": self.unsubscribe_url,
            "UNSUBSCRIBE_KEYS": self._unsubscribe_keys(),
        }
        functions = (
            *catalog.EVENT_JOB_TYPES,
            *catalog.SCHEDULED_JOB_TYPES,
            *catalog.QUEUE_JOB_TYPES,
            *catalog.WEB_FUNCTIONS,
        )
        for job_type in functions:
            wanted = BY_FUNCTION[job_type.name].environment_names()
            self.functions[job_type.name] = Function(
                FunctionConfiguration(
                    name=self.function_name(job_type.name),
                    handler=self._tuning.handler(job_type.name),
                    environment={name: values[name] for name in wanted if name in values},
                    timeout_seconds=self._tuning.timeout_seconds.get(job_type.name, job_type.timeout_seconds),
                    memory_mb=job_type.memory_mb,
                    log_dir=self.log_directory,
                    aws_endpoint_url=self.servers.aws_endpoint_url,
                    region=REGION,
                    on_log_line=self._on_log_line,
                ),
                max_concurrency=self._tuning.concurrency.get(job_type.name, DEFAULT_CONCURRENCY),
            )

    @property
    def unsubscribe_url(self) -> str:
        """Where unsubscribe links begin."""
        return url_at(self._unsubscribe_port)

    def _unsubscribe_keys(self) -> str:
        """A key that is made up once, so that the links of earlier runs' mails go on working."""
        file = self.directory / "unsubscribe-keys"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(secrets.token_urlsafe(48), encoding="ascii")
        return file.read_text(encoding="ascii")

    def _start_function_urls(self) -> None:
        self._unsubscribe_url = FunctionUrl(
            self.functions[catalog.UNSUBSCRIBE.name], port=self._unsubscribe_port
        )
        self._unsubscribe_url.start()

    def _start_mappings(self) -> None:
        self.mappings = catalog_mappings(
            self.functions,
            function_name=self.function_name,
            bootstrap_servers=self.servers.kafka_brokers,
            topic=self.settings.kafka_job_topic,
            consumer_group=self.settings.kafka_job_consumer_group,
            members=self._tuning.members,
            max_batch_size=self._tuning.max_batch_size,
            sqs=lambda: self.servers.client("sqs"),
            queue_urls=self.queue_urls,
        )
        for mapping in self.mappings:
            mapping.start()

    def _start_schedules(self) -> None:
        intervals = {
            catalog.ANALYTICS.name: self.settings.analytics_interval,
            catalog.FRAUD.name: self.settings.fraud_detection_interval,
            catalog.RELAY.name: self._tuning.relay_interval or duration(catalog.RELAY.default_interval),
        }
        sqs = self.servers.client("sqs")
        for name, interval in intervals.items():
            queue_url = sqs.get_queue_url(QueueName=f"{self.function_name(name)}-failed-runs")["QueueUrl"]
            keep = functools.partial(self._keep_failed_run, sqs, queue_url)
            schedule = Schedule(self.function_name(name), interval, self.functions[name], keep)
            self.schedules[name] = schedule
            schedule.start()
        # The relay's rule would start it only in a minute; follow-up events should not wait for that.
        self._relay_start = threading.Thread(target=self._run_relay, name="first run of relay", daemon=True)
        self._relay_start.start()

    def _start_control(self) -> None:
        self._control = Control(
            [(self.function_name(name), function) for name, function in self.functions.items()],
            self.mappings,
            self.schedules.values(),
            port=self._pick_port(CONTROL_PORT),
        )
        self._control.start()

    @staticmethod
    def _keep_failed_run(sqs: Any, queue_url: str, record: str) -> None:
        try:
            sqs.send_message(QueueUrl=queue_url, MessageBody=record)
        except BotoCoreError:
            # The stand-in is stopped before the runs have all ended.
            log.debug("a failed run is kept nowhere", exc_info=True)

    @staticmethod
    def function_name(job_type: str) -> str:
        return f"campaign-jobs-{ENVIRONMENT}-{job_type}"

    def _run_relay(self) -> None:
        try:
            self.schedules[catalog.RELAY.name].fire()
        except Exception:
            # The schedule has logged it, and the next tick makes up for it.
            log.debug("the first run of relay failed", exc_info=True)

    # Looking

    def unfinished(self) -> dict[str, int]:
        """What is still under way, each with a number; empty when everything that was published is settled.

        Parked mails, held rewards and retries that are not due count as under way only while they are in a queue.
        """
        found: dict[str, int] = {}
        behind = sum(not mapping.caught_up() for mapping in self.kafka_mappings)
        found["mappings behind"] = behind
        if self.servers.aws is not None:
            # Before the queues, where they arrive.
            found["events of SES"] = self.servers.aws.pending_reports()
        for mapping in self.sqs_mappings:
            depth = mapping.depth()
            found[mapping.queue_name] = depth.visible + depth.in_flight + depth.delayed
        with psycopg.connect(self.servers.database_url, autocommit=True) as connection:
            for name, statement in _WAITING.items():
                row = connection.execute(statement).fetchone()
                assert row is not None
                found[name] = row[0]
        return {name: count for name, count in found.items() if count}

    def wait_until_quiet(
        self, *, timeout_seconds: float, on_look: Callable[[dict[str, int]], None] = lambda unfinished: None
    ) -> None:
        """Wait until nothing is under way, seen twice in a row, since one part may be handing over to the next.

        Raises TimeoutError that names what is still under way.
        """
        deadline = time.monotonic() + timeout_seconds
        quiet = 0
        while True:
            unfinished = self.unfinished()
            on_look(unfinished)
            quiet = 0 if unfinished else quiet + 1
            if quiet == 2:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout_seconds:g} s still under way: {unfinished}")
            time.sleep(0.5)

    def left_under_way(self) -> dict[str, int]:
        """What is still under way after a moment's patience: a heartbeat is, each minute."""
        try:
            self.wait_until_quiet(timeout_seconds=HEARTBEAT_PATIENCE_SECONDS)
        except TimeoutError:
            return self.unfinished()
        return {}

    def summary(self) -> str:
        """The start-up summary: what runs, how, and where to look."""
        settings = self.settings
        return "\n".join(
            [
                "Kafka job worker server configuration:",
                f"  - Event-driven jobs: {settings.kafka_worker_pool_size} concurrent workers",
                f"  - Kafka brokers: [{self.servers.kafka_brokers}]",
                f"  - Kafka topic: {settings.kafka_job_topic}",
                f"  - Consumer group: {settings.kafka_job_consumer_group}",
                f"  - Analytics aggregation: every {go_duration(settings.analytics_interval)}",
                f"  - Fraud detection: every {go_duration(settings.fraud_detection_interval)}",
                "",
                "Where to look:",
                f"  - PostgreSQL     {_without_password(self.servers.database_url)}",
                f"  - SES and SQS    {self.servers.aws_endpoint_url}",
                f"  - Lambda's API   {self._control.url if self._control else ''}",
                f"  - Unsubscribing  {self.unsubscribe_url}",
                f"  - Mails          {self._shown(self.mail_directory / 'index.html')}",
                f"  - Logs           {self._shown(self.log_directory)}",
                f"  - Addresses      {self._shown(self.directory / 'endpoints.json')}",
                f"  - For your shell {self._shown(self.directory / 'env')}",
            ]
        )

    def _shown(self, path: Path) -> str:
        try:
            return str(path.relative_to(Path.cwd()))
        except ValueError:
            return str(path)

    # Stopping

    def stop(self) -> None:
        """Stop polling, let what is in flight finish, commit, then end everything that was started."""
        for name in ("endpoints.json", "env"):
            (self.directory / name).unlink(missing_ok=True)
        if self._control is not None:
            self._control.stop()
        waiting: list[Callable[[], object]] = [
            *(mapping.stop for mapping in self.mappings),
            *(
                schedule.stop
                for name, schedule in self.schedules.items()
                if name != catalog.RELAY.name or self._relay_start is None
            ),
        ]
        if self._relay_start is not None:
            waiting.append(self._stop_relay)
        if self._unsubscribe_url is not None:
            waiting.append(self._unsubscribe_url.stop)
        if waiting:
            self._progress("Stopping: polling ends, batches in flight finish, offsets are committed ...")
            with ThreadPoolExecutor(len(waiting)) as pool:
                for stopped in [pool.submit(stop) for stop in waiting]:
                    stopped.result()
        for function in self.functions.values():
            function.close()
        self.servers.stop()

    def _stop_relay(self) -> None:
        """Wait for the relay's runs, and ask each to yield, so that a stop need not wait for the end of its minute.

        Asked again and again, because a run that has only begun does not hold the lease yet.
        """
        assert self._relay_start is not None
        with ThreadPoolExecutor(2) as pool:
            ending: list[Future[Any]] = [
                pool.submit(self.schedules[catalog.RELAY.name].stop),
                pool.submit(self._relay_start.join),
            ]
            database = Database(self.servers.database_url)
            try:
                lease = Lease(database, catalog.RELAY.name)
                while not all(ended.done() for ended in ending):
                    if lease.take():
                        lease.give_back()
                    time.sleep(0.2)
            except DatabaseUnavailable:
                # Then the relay's run fails as well, and that ends it.
                log.debug("the relay cannot be asked to yield", exc_info=True)
            finally:
                database.close()

    # Telling

    def _write_endpoints(self) -> None:
        endpoints = {
            "kafka": self.servers.kafka_brokers,
            "database_url": self.servers.database_url,
            "aws_endpoint_url": self.servers.aws_endpoint_url,
            "control_url": self._control.url if self._control is not None else "",
            "region": REGION,
            "is_stand_in": self.servers.aws is not None,
            "unsubscribe_url": self.unsubscribe_url,
            "topic": self.settings.kafka_job_topic,
            "consumer_group": self.settings.kafka_job_consumer_group,
            "default_sender": self.settings.default_sender,
        }
        # Whoever waits for the file to be there finds it whole.
        draft = self.directory / "endpoints.json.new"
        draft.write_text(json.dumps(endpoints, indent=2) + "\n", encoding="utf-8")
        draft.replace(self.directory / "endpoints.json")
        variables = {
            "KAFKA_BROKERS": self.servers.kafka_brokers,
            "KAFKA_JOB_TOPIC": self.settings.kafka_job_topic,
            "DATABASE_URL": self.servers.database_url,
            "AWS_ENDPOINT_URL": self.servers.aws_endpoint_url,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            **({"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"} if self.servers.aws else {}),
            **self.queue_urls,
        }
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        (self.directory / "env").write_text("\n".join(lines) + "\n", encoding="utf-8")


# Rows that somebody still has to do something about.
_WAITING: Final = {
    "outbox": "SELECT count(*) FROM campaign_jobs.outbox WHERE published_at IS NULL",
    "position requests": "SELECT count(*) FROM campaign_jobs.position_requests",
    "mails being sent": "SELECT count(*) FROM campaign_jobs.email_messages WHERE status = 'claimed'",
    "rewards being delivered": "SELECT count(*) FROM campaign_jobs.user_rewards WHERE status = 'delivering'",
}


def fresh_directory(directory: Path) -> Path:
    """`directory`, emptied."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    return directory


def _without_password(url: str) -> str:
    before, at, after = url.rpartition("@")
    scheme, slashes, user = before.partition("://")
    return f"{scheme}{slashes}{user.partition(':')[0]}{at}{after}" if at else url
