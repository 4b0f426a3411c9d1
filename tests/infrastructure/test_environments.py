"""A bad setting stops `cdk synth` with one line that names it, its value and what is allowed."""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from campaign_jobs import catalog
from campaign_jobs.errors import SettingsError
from infra import environments
from infra.environment_settings import Environment
from infra.environments import DEV, PROD, STAGING
from tests.infrastructure.existing import CUSTOM_DOMAIN, EXISTING_DATABASE, EXISTING_KAFKA, EXISTING_NETWORK


@pytest.mark.parametrize("environment", environments.ENVIRONMENTS, ids=lambda environment: environment.name)
def test_the_environments_that_are_checked_in_are_right(environment: Environment) -> None:
    assert environments.load(environment.name) == environment


# Each part in a right form, so that a case below is wrong in one place only.
EXISTING = replace(DEV, network=EXISTING_NETWORK, kafka=EXISTING_KAFKA, database=EXISTING_DATABASE)


def with_setting(environment: Environment, setting: str, value: Any) -> Environment:
    """The environment with one setting changed, named as a problem names it: `kafka.brokers`, or `name`."""
    part, _, inner = setting.rpartition(".")
    changed: dict[str, Any] = (
        {part: replace(getattr(environment, part), **{inner: value})} if part else {inner: value}
    )
    return replace(environment, **changed)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("name", "Prod"),
        ("name", ""),
        ("name", "a" * 17),
        ("network.availability_zones", 1),
        ("network.availability_zones", 4),
        ("network.availability_zones", "2"),
        ("network.nat", "none"),
        ("network.nats", 0),
        ("network.nats", True),
        ("network.nats", 3),  # in two zones
        ("network.cidr", "10.40.0.0/24"),
        ("network.cidr", "10.400.0.0/16"),
        ("network.cidr", "10.40.0.0/255.255.0.0"),
        ("network.cidr", "8.8.0.0/16"),
        ("kafka.version", "3.9.x.kraft"),  # on kafka.t3.small
        ("kafka.version", "4.0.x"),
        ("kafka.version", "latest"),
        ("kafka.instance_type", "m7g.large"),
        ("kafka.instance_type", "kafka.m7g.small"),
        ("kafka.brokers", 3),  # in two zones
        ("kafka.brokers", 0),
        ("kafka.brokers", "2"),
        ("kafka.volume_gib", 0),
        ("database.min_capacity", 0),
        ("database.max_capacity", 2.25),
        ("database.max_capacity", 0),
        ("database.reader", 1),
        ("sending.domain", "not a domain"),
        ("sending.default_sender", "jobs@elsewhere.example"),
        ("sending.default_sender", "nobody"),
        ("sending.owns_identity", "yes"),
        ("sending.rate_share", 0),
        ("sending.rate_share", 1.5),
        ("sending.rate_share", True),
        ("sending.mail_from", "bounce.example.com"),
        ("retain_data", None),
        ("log_retention_days", 8),
        ("alarm_recipients", ("nobody",)),
        ("alarm_recipients", "operators@example.com"),  # a text, not a tuple of them
        ("kafka_job_topic", "job events"),
        ("kafka_job_consumer_group", ""),
        ("kafka_worker_pool_size", 0),
        ("kafka_worker_pool_size", "10"),
        ("public_base_url", "jobs.example.com"),
        ("retention.email_message_retention_days", 69),
        ("retention.outbox_retention_days", "30"),
        ("retention.campaign_metric_retention_days", True),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(setting: str, value: Any) -> None:
    assert DEV.problems() == []
    problems = with_setting(DEV, setting, value).problems()
    name = value if setting == "name" else "dev"
    assert any(problem.startswith(f"{name}: {setting}={value!r}: allowed is ") for problem in problems)
    assert all("\n" not in problem for problem in problems)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("network.vpc_id", "main"),
        ("network.availability_zones", ("eu-central-1a",)),
        ("network.availability_zones", ("eu-central-1a", "b")),
        ("network.availability_zones", "eu-central-1a"),
        ("network.private_subnet_ids", ("subnet-0a1b2c3d",)),
        ("network.private_subnet_ids", ("subnet-0a1b2c3d", "private-b")),
        ("network.private_route_table_ids", ()),
        ("network.private_route_table_ids", ("rtb-0a1b2c3d", "subnet-0a1b2c3d")),
        ("network.database_subnet_ids", ("subnet-0a1b2c3d",)),
        ("kafka.cluster_arn", "campaign-jobs"),
        ("kafka.cluster_arn", "arn:aws:kafka:eu-central-1:111122223333:cluster/events"),
        ("kafka.security_group_id", "brokers"),
        ("kafka.creates_topic", "yes"),
        ("kafka.topic_replication_factor", 4),
        ("database.secret_arn", "database"),
        # Without its random ending, an ARN names no secret that a policy could allow.
        ("database.secret_arn", "arn:aws:secretsmanager:eu-central-1:111122223333:secret:main"),
        ("database.security_group_id", "database"),
        ("database.port", 0),
        ("database.port", "5432"),
        ("unsubscribe_domain.name", "https://mail.example.com"),
        ("unsubscribe_domain.certificate_arn", "arn:aws:acm:eu-central-1:111122223333:certificate/mine"),
    ],
)
def test_a_bad_value_of_something_that_is_there_is_named_with_what_is_allowed(
    setting: str, value: Any
) -> None:
    environment = replace(EXISTING, unsubscribe_domain=CUSTOM_DOMAIN)
    assert environment.problems() == []
    problems = with_setting(environment, setting, value).problems()
    assert any(problem.startswith(f"dev: {setting}={value!r}: allowed is ") for problem in problems)
    assert all("\n" not in problem for problem in problems)


def test_brokers_are_counted_against_the_zones_of_a_network_that_is_there_too() -> None:
    (problem,) = with_setting(replace(DEV, network=EXISTING_NETWORK), "kafka.brokers", 3).problems()
    assert problem == "dev: kafka.brokers=3: allowed is a multiple of the 2 zones of the network"


def test_the_database_s_capacities_are_compared() -> None:
    database = replace(DEV.database, min_capacity=4, max_capacity=2)
    (problem,) = replace(DEV, database=database).problems()
    assert problem == "dev: database.max_capacity=2: allowed is at least min_capacity"


@pytest.mark.parametrize("setting", ["analytics_interval", "fraud_detection_interval"])
@pytest.mark.parametrize("value", ["90s", "30s", "1m30s", "0", "0s", "-15m", "1d", "15", "", "1.5m", "often"])
def test_an_interval_that_eventbridge_cannot_keep_is_an_error(setting: str, value: str) -> None:
    changed: dict[str, Any] = {setting: value}
    (problem,) = replace(DEV, **changed).problems()
    assert problem.startswith(f"dev: {setting}={value!r}: allowed is ")
    assert "whole minutes" in problem


@pytest.mark.parametrize(
    ("value", "minutes"), [("1m", 1), ("60s", 1), ("15m", 15), ("1h30m", 90), ("1.5h", 90), ("24h", 1440)]
)
def test_an_interval_in_whole_minutes_is_taken(value: str, minutes: int) -> None:
    environment = replace(DEV, analytics_interval=value)
    assert environment.problems() == []
    assert environment.schedule(catalog.ANALYTICS) == timedelta(minutes=minutes)


def test_every_wrong_setting_is_reported_at_once() -> None:
    dev = replace(with_setting(DEV, "kafka.brokers", 0), analytics_interval="90s")
    with pytest.raises(SettingsError) as raised:
        environments.load("dev", (dev, STAGING, PROD))
    assert [problem.split("=")[0] for problem in raised.value.problems] == [
        "dev: kafka.brokers",
        "dev: analytics_interval",
    ]


def test_another_environment_s_mistake_stops_this_one_too() -> None:
    prod = with_setting(PROD, "kafka.volume_gib", 0)
    with pytest.raises(SettingsError, match=r"^prod: kafka\.volume_gib=0: allowed is 1 to 16384$"):
        environments.load("dev", (DEV, STAGING, prod))


def owned_by(*owners: str) -> tuple[Environment, ...]:
    return tuple(
        with_setting(environment, "sending.owns_identity", environment.name in owners)
        for environment in environments.ENVIRONMENTS
    )


def test_two_environments_cannot_own_the_email_identity() -> None:
    with pytest.raises(SettingsError) as raised:
        environments.load("dev", owned_by("dev", "prod"))
    assert raised.value.problems == [
        "sending.owns_identity=['dev', 'prod'] for example.com: allowed is True in at most one environment"
    ]


@pytest.mark.parametrize("owners", [(), ("dev",)])
def test_one_environment_or_none_owns_the_email_identity(owners: tuple[str, ...]) -> None:
    assert environments.load("dev", owned_by(*owners)).name == "dev"


def test_environments_that_send_from_domains_of_their_own_each_own_theirs() -> None:
    dev = replace(
        DEV,
        sending=replace(
            DEV.sending, domain="example.org", default_sender="dev@example.org", owns_identity=True
        ),
    )
    assert environments.load("dev", (dev, STAGING, PROD)) == dev


def test_a_name_is_given_once() -> None:
    with pytest.raises(SettingsError, match=r"^name='dev': allowed is once$"):
        environments.load("dev", (DEV, replace(DEV, sending=replace(DEV.sending, rate_share=0.05)), PROD))


def test_the_shares_of_the_sending_rate_fit_into_the_account_s() -> None:
    dev = with_setting(DEV, "sending.rate_share", 0.2)
    with pytest.raises(SettingsError, match=r"^sending\.rate_share=.*: allowed is a sum of at most 1$"):
        environments.load("dev", (dev, STAGING, PROD))


def test_without_a_name_it_is_dev() -> None:
    assert environments.load(None) == DEV


@pytest.mark.parametrize("name", ["production", "", 3])
def test_an_unknown_environment_is_named_with_the_known_ones(name: object) -> None:
    with pytest.raises(SettingsError) as raised:
        environments.load(name)
    assert raised.value.problems == [
        f"env={name!r}: allowed is -c env= with one of dev, staging, prod",
    ]


def test_the_app_ends_with_the_line_and_no_traceback(repository: Path, tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "app.py"],
        cwd=repository,
        env={
            **os.environ,
            "PYTHONPATH": "layers/campaign_jobs/python",
            "CDK_OUTDIR": str(tmp_path),
            "CDK_CONTEXT_JSON": '{"env": "qa"}',
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert finished.stderr.endswith("env='qa': allowed is -c env= with one of dev, staging, prod\n")
    assert "Traceback" not in finished.stderr
    assert list(tmp_path.iterdir()) == []
