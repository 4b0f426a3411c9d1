"""Tokens for MSK with IAM, signed as they are on AWS; signing needs no network."""

import time
from datetime import UTC, datetime

import pytest

from campaign_jobs.errors import SettingsError
from campaign_jobs.kafka_connection import iam_token, region_of
from campaign_jobs.producer import JobProducer


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


def test_a_token_expires_in_seconds_as_kafka_s_client_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not a real one")
    token, expires_at = iam_token("eu-west-1")
    assert token
    # In milliseconds it would be thousands of years ahead.
    assert time.time() < expires_at < time.time() + 3600
    assert datetime.fromtimestamp(expires_at, UTC) > datetime.now(UTC)
