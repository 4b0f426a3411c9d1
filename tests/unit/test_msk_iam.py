"""Tokens for MSK with IAM, signed as they are on AWS; signing needs no network."""

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from campaign_jobs.errors import NotAuthorized, SettingsError
from campaign_jobs.kafka_connection import iam_settings, iam_token, region_of
from campaign_jobs.producer import JobProducer

BROKERS = "b-1.jobs.abc123.c2.kafka.eu-west-1.amazonaws.com:9098"


@pytest.mark.parametrize(
    ("brokers", "region"),
    [
        ("b-1.jobs.abc123.c2.kafka.eu-west-1.amazonaws.com:9098", "eu-west-1"),
        ("boot-abc123.c1.kafka-serverless.us-east-2.amazonaws.com:9098", "us-east-2"),
        ("b-1.jobs.abc123.c2.kafka.cn-north-1.amazonaws.com.cn:9098,other:1", "cn-north-1"),
    ],
)
def test_the_region_is_in_the_brokers_names(brokers: str, region: str) -> None:
    assert region_of(brokers) == region


def test_brokers_that_do_not_tell_their_region_need_it_said() -> None:
    with pytest.raises(SettingsError, match="region is missing: KAFKA_AUTH=iam"):
        JobProducer(brokers="localhost:9098", auth="iam").publish([(None, b"{}")])


def without_credentials(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(directory / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(directory / "config"))


def test_a_service_without_credentials_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_credentials(monkeypatch, tmp_path)
    with pytest.raises(NotAuthorized, match=r"no token for .*: give this process AWS credentials") as refused:
        JobProducer(brokers=BROKERS, auth="iam").publish([(None, b"{}")])
    assert refused.value.unacknowledged == (0,)


def test_a_service_without_the_library_that_signs_is_told_which_extra_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "aws_msk_iam_sasl_signer", None)
    with pytest.raises(SettingsError, match=r"aws_msk_iam_sasl_signer is installed.*extra \[iam\]"):
        JobProducer(brokers=BROKERS, auth="iam").publish([(None, b"{}")])


def test_kafka_s_client_gets_the_token_that_there_is_and_then_asks_for_others() -> None:
    given = iter([("first", 1.0), ("second", 2.0), ("third", 3.0)])
    ask = iam_settings(BROKERS, None, lambda region: next(given) if region == "eu-west-1" else ("", 0.0))[
        "oauth_cb"
    ]
    assert [ask("") for _ in range(3)] == [("first", 1.0), ("second", 2.0), ("third", 3.0)]


def test_a_token_expires_in_seconds_as_kafka_s_client_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not a real one")
    token, expires_at = iam_token("eu-west-1")
    assert token
    # In milliseconds it would be thousands of years ahead.
    assert time.time() < expires_at < time.time() + 3600
    assert datetime.fromtimestamp(expires_at, UTC) > datetime.now(UTC)
