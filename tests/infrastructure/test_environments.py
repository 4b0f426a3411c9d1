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
from infra.environments import DEV, PROD, STAGING


@pytest.mark.parametrize("environment", environments.ENVIRONMENTS, ids=lambda environment: environment.name)
def test_the_environments_that_are_checked_in_are_right(environment: environments.Environment) -> None:
    assert environments.load(environment.name) == environment


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("name", "Prod"),
        ("name", ""),
        ("availability_zones", 1),
        ("availability_zones", 4),
        ("availability_zones", "2"),
        ("nat_gateways", 0),
        ("nat_gateways", True),
        ("nat_gateways", 3),  # in two zones
        ("kafka_version", "3.9.x.kraft"),  # on kafka.t3.small
        ("kafka_version", "4.0.x"),
        ("kafka_version", "latest"),
        ("kafka_instance_type", "m7g.large"),
        ("kafka_instance_type", "kafka.m7g.2large"),
        ("kafka_brokers", 3),  # in two zones
        ("kafka_brokers", 0),
        ("kafka_volume_gib", 0),
        ("database_min_capacity", 0),
        ("database_max_capacity", 2.25),
        ("database_max_capacity", 0),
        ("sender_domain", "not a domain"),
        ("default_sender", "jobs@elsewhere.example"),
        ("default_sender", "nobody"),
        ("ses_rate_share", 0),
        ("ses_rate_share", 1.5),
        ("log_retention_days", 8),
        ("kafka_job_topic", "job events"),
        ("kafka_job_consumer_group", ""),
        ("kafka_worker_pool_size", 0),
        ("kafka_worker_pool_size", "10"),
        ("public_base_url", "jobs.example.com"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(setting: str, value: Any) -> None:
    problems = replace(DEV, **{setting: value}).problems()
    assert any(f"{setting}={value!r}: allowed is " in problem for problem in problems)
    assert all("\n" not in problem for problem in problems)


def test_the_database_s_capacities_are_compared() -> None:
    (problem,) = replace(DEV, database_min_capacity=4, database_max_capacity=2).problems()
    assert problem == "dev: database_max_capacity=2: allowed is at least database_min_capacity"


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
    with pytest.raises(SettingsError) as raised:
        environments.load("dev", (replace(DEV, kafka_brokers=0, analytics_interval="90s"), STAGING, PROD))
    assert [problem.split("=")[0] for problem in raised.value.problems] == [
        "dev: kafka_brokers",
        "dev: analytics_interval",
    ]


def test_another_environment_s_mistake_stops_this_one_too() -> None:
    with pytest.raises(SettingsError, match=r"^prod: kafka_volume_gib=0: allowed is 1 to 16384$"):
        environments.load("dev", (DEV, STAGING, replace(PROD, kafka_volume_gib=0)))


@pytest.mark.parametrize("owners", [(), ("dev", "prod")])
def test_exactly_one_environment_owns_the_email_identity(owners: tuple[str, ...]) -> None:
    account = tuple(replace(e, owns_email_identity=e.name in owners) for e in environments.ENVIRONMENTS)
    with pytest.raises(
        SettingsError, match=r"^owns_email_identity=.*example.com: allowed is True in exactly one"
    ):
        environments.load("dev", account)


def test_the_shares_of_the_sending_rate_fit_into_the_account_s() -> None:
    with pytest.raises(SettingsError, match=r"^ses_rate_share=.*: allowed is a sum of at most 1$"):
        environments.load("dev", (replace(DEV, ses_rate_share=0.2), STAGING, PROD))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("production", "env='production': allowed is -c env= with one of dev, staging, prod"),
        ("", "env='': allowed is -c env= with one of dev, staging, prod"),
        (None, "env is missing: allowed is -c env= with one of dev, staging, prod"),
    ],
)
def test_an_unknown_environment_is_named_with_the_known_ones(name: str | None, message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        environments.load(name)
    assert raised.value.problems == [message]


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
