"""PostgreSQL, Apache Kafka, and the stand-ins of SES and SQS; each is ours, or one that somebody else runs."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import boto3
import psycopg

from local.aws import AwsStandIn
from local.kafka import KafkaBroker
from local.postgres import PostgresServer
from local.settings import LocalSettings

REGION: Final = "us-east-1"
KAFKA_PORT: Final = 9092
POSTGRES_PORT: Final = 5432
AWS_PORT: Final = 4566
DATABASE_NAME: Final = "campaign_jobs"

Progress = Callable[[str], None]


class Servers:
    """Starts those that the settings name no address of, and says where each is."""

    def __init__(
        self,
        directory: Path,
        settings: LocalSettings,
        *,
        mail_directory: Path,
        log_directory: Path,
        progress: Progress,
        durable: bool,
        customary_ports: bool,
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._mail_directory = mail_directory
        self._log_directory = log_directory
        self._progress = progress
        self._durable = durable
        self._customary_ports = customary_ports
        # None where another server takes the place.
        self.postgres: PostgresServer | None = None
        self.kafka: KafkaBroker | None = None
        self.aws: AwsStandIn | None = None
        self.database_url = ""
        self.kafka_brokers = ""
        self.aws_endpoint_url = ""

    def start(self) -> None:
        """Start side by side, since the three know nothing of each other. Raises StartError."""
        with ThreadPoolExecutor(3) as pool:
            for started in [
                pool.submit(self._start_postgres),
                pool.submit(self._start_kafka),
                pool.submit(self._start_aws),
            ]:
                started.result()

    def stop(self) -> None:
        for server in (self.aws, self.kafka, self.postgres):
            if server is not None:
                server.stop()

    def client(self, service: str) -> Any:
        """A boto3 client for the stand-in, or for what AWS_ENDPOINT_URL names."""
        keys = {}
        if self.aws is not None:
            keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
        return boto3.client(
            service,  # type: ignore[call-overload]
            endpoint_url=self.aws_endpoint_url,
            region_name=REGION,
            **keys,
        )

    def _start_postgres(self) -> None:
        if self._settings.database_url is not None:
            self.database_url = self._settings.database_url
            self._progress("PostgreSQL: yours, from DATABASE_URL")
            return
        with self._timed("PostgreSQL"):
            self.postgres = PostgresServer(
                self._directory / "postgres",
                preferred_port=self._preferred(POSTGRES_PORT),
                durable=self._durable,
            )
            self.postgres.start()
        try:
            self.database_url = self.postgres.create_database(DATABASE_NAME)
        except psycopg.errors.DuplicateDatabase:
            self.database_url = self.postgres.url(DATABASE_NAME)

    def _start_kafka(self) -> None:
        if self._settings.kafka_brokers is not None:
            self.kafka_brokers = self._settings.kafka_brokers
            self._progress(f"Kafka: yours, {self.kafka_brokers}")
            return
        with self._timed("Apache Kafka"):
            self.kafka = KafkaBroker(
                self._directory / "kafka",
                preferred_port=self._preferred(KAFKA_PORT),
                progress=self._download_progress,
            )
            self.kafka.start()
        self.kafka_brokers = self.kafka.bootstrap_servers

    def _start_aws(self) -> None:
        if self._settings.aws_endpoint_url is not None:
            self.aws_endpoint_url = self._settings.aws_endpoint_url
            self._progress(f"SES and SQS: yours, {self.aws_endpoint_url}")
            return
        with self._timed("SES and SQS stand-ins"):
            self.aws = AwsStandIn(
                self._mail_directory,
                preferred_port=self._preferred(AWS_PORT),
                log_file=self._log_directory / "aws.log",
            )
            self.aws.start()
        self.aws_endpoint_url = self.aws.endpoint_url

    def _preferred(self, port: int) -> int | None:
        return port if self._customary_ports else None

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._progress(f"{what}: started in {time.monotonic() - started:.1f} s")

    def _download_progress(self, message: str, done: int, total: int) -> None:
        if total and (done == total or done % 10 == 0):
            self._progress(f"{message} ({done} of {total})")
