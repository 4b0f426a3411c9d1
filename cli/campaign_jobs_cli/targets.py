"""The environment that a command works on: the local system, or a deployed one, by the same means."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.rows import DictRow, dict_row

from campaign_jobs.database.connection import conninfo_of
from campaign_jobs.errors import CampaignJobsError
from campaign_jobs.settings import (
    DatabaseSettings,
    KafkaSettings,
    Settings,
    existing_file,
    kafka_auth,
    setting,
)
from campaign_jobs_cli.errors import NotFound, Unreachable

LOCAL: Final = "local"
STATEMENT_SECONDS: Final = 60
"""A command's own statements end sooner than somebody's patience."""

Connection = psycopg.Connection[DictRow]
# Those of the local system that its control answers for (local/control.py); moto plays the others.
_CONTROLLED: Final = ("lambda", "events")


@dataclass(frozen=True, kw_only=True)
class OperatorSettings(Settings):
    """Where a deployed environment is not as the stack makes it: a cluster or database that was there before."""

    kafka_auth: str = setting(kafka_auth, "iam")
    database_ca_file: Path | None = setting(existing_file, None)


@dataclass(frozen=True)
class Target:
    """Where the parts of one environment are. Nothing is connected to before it is asked for."""

    name: str
    region: str
    kafka: KafkaSettings
    consumer_group: str
    """What the groups of all lanes derive from."""
    default_sender: str
    conninfo: Callable[[], str]
    make_client: Callable[[str], Any]

    def resource_name(self, part: str) -> str:
        """The name of a queue, function or rule in the account."""
        return f"campaign-jobs-{self.name}-{part}"

    @property
    def command(self) -> str:
        """How a hint begins that says what to type next: what is copied must not go to another environment."""
        return "campaign-jobs" if self.name == LOCAL else f"campaign-jobs --env {self.name}"

    def client(self, service: str) -> Any:
        """A boto3 client."""
        return self.make_client(service)

    @cached_property
    def _queue_urls(self) -> dict[str, str]:
        return {}

    def queue_url(self, part: str) -> str:
        """The URL of a queue, such as `email-retry` or `email-dead-letters`. Raises NotFound."""
        if part not in self._queue_urls:
            sqs, name = self.client("sqs"), self.resource_name(part)
            try:
                self._queue_urls[part] = sqs.get_queue_url(QueueName=name)["QueueUrl"]
            except sqs.exceptions.QueueDoesNotExist as error:
                raise NotFound(f"there is no queue {name} in {self.region}") from error
        return self._queue_urls[part]

    @contextmanager
    def database(self, *, statement_seconds: float = STATEMENT_SECONDS) -> Iterator[Connection]:
        """A connection whose rows are dictionaries; each statement is a transaction unless one is begun.

        Raises Unreachable.
        """
        try:
            connection = psycopg.connect(
                self.conninfo(),
                autocommit=True,
                connect_timeout=10,
                application_name="campaign-jobs command line",
                options=f"-c statement_timeout={round(statement_seconds * 1000)} -c lock_timeout=5000",
                row_factory=dict_row,
            )
        except (psycopg.OperationalError, CampaignJobsError) as error:
            first_line = str(error).strip().partition("\n")[0]
            raise Unreachable(f"PostgreSQL of {self.name} does not answer: {first_line}") from error
        with connection:
            yield connection


def find(name: str, *, directory: Path) -> Target:
    """The environment of that name; `directory` is where the local system keeps its files.

    Raises NotFound where it is not running, or not deployed.
    """
    return _local(directory) if name == LOCAL else _deployed(name)


def _local(directory: Path) -> Target:
    file = directory / "endpoints.json"
    try:
        endpoints = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(
            f"no local system is running: {file} is not there. Start one with `make local`, name its directory with "
            "--directory, or a deployed environment with --env"
        ) from error
    except (OSError, ValueError) as error:
        raise NotFound(f"{file} cannot be read ({error}); stop the local system and start it anew") from error

    @cache
    def client(service: str) -> Any:
        import boto3

        # Stand-ins take any credentials, and real ones must not be sent to them.
        keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
        controlled = service in _CONTROLLED
        return boto3.client(
            service,  # type: ignore[call-overload]
            endpoint_url=endpoints["control_url" if controlled else "aws_endpoint_url"],
            region_name=endpoints["region"],
            **(keys if controlled or endpoints["is_stand_in"] else {}),
        )

    return Target(
        name=LOCAL,
        region=endpoints["region"],
        kafka=KafkaSettings(kafka_brokers=endpoints["kafka"], kafka_job_topic=endpoints["topic"]),
        consumer_group=endpoints["consumer_group"],
        default_sender=endpoints["default_sender"],
        conninfo=lambda: str(endpoints["database_url"]),
        make_client=client,
    )


def _deployed(name: str) -> Target:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = cache(boto3.client)
    path = f"/campaign-jobs/{name}/"
    try:
        ssm = client("ssm")
        pages = ssm.get_paginator("get_parameters_by_path").paginate(Path=path)
        found = {
            each["Name"].removeprefix(path): each["Value"] for page in pages for each in page["Parameters"]
        }
    except (BotoCoreError, ClientError) as error:
        raise Unreachable(f"the parameters below {path} cannot be read: {error}") from error
    region = ssm.meta.region_name
    if "brokers" not in found:
        raise NotFound(
            f"no environment {name!r} in {region} of this account: nothing is below {path} in SSM. Check --env, "
            "AWS_REGION and AWS_PROFILE"
        )
    differing = OperatorSettings.load()
    database = DatabaseSettings(
        database_secret_arn=found["database-secret-arn"], database_ca_file=differing.database_ca_file
    )
    return Target(
        name=name,
        region=region,
        kafka=KafkaSettings(
            kafka_brokers=found["brokers"], kafka_job_topic=found["topic"], kafka_auth=differing.kafka_auth
        ),
        consumer_group=found["consumer-group"],
        default_sender=found["default-sender"],
        conninfo=lambda: conninfo_of(database),
        make_client=client,
    )
