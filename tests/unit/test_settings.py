"""What is wrong with the environment is said at once, one line each, and never with a secret."""

from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from campaign_jobs import catalog, settings
from campaign_jobs.errors import SettingsError
from campaign_jobs.settings import (
    AnalyticsSettings,
    EmailSettings,
    FraudSettings,
    RelaySettings,
    RetentionSettings,
    RewardSettings,
    UnroutableSettings,
    UnsubscribeSettings,
)

QUEUE = "https://sqs.eu-central-1.amazonaws.com/000000000000/queue"
EMAIL = {
    "DATABASE_URL": "postgresql://worker:hunter2@db.example.com:5432/jobs",
    "RETRY_QUEUE_URL_EMAIL": f"{QUEUE}-email",
    "RETRY_QUEUE_URL_EMAIL_BULK": f"{QUEUE}-bulk",
    "DEAD_LETTER_QUEUE_URL_EMAIL": f"{QUEUE}-dead",
    "DEFAULT_SENDER": "hello@mail.example.com",
    "UNSUBSCRIBE_URL": "https://mail.example.com",
    "UNSUBSCRIBE_KEYS": "a key of thirty-two bytes at least",
}
REWARD = {
    "DATABASE_URL": EMAIL["DATABASE_URL"],
    "RETRY_QUEUE_URL_REWARD": QUEUE,
    "DEAD_LETTER_QUEUE_URL_REWARD": QUEUE,
}
ANALYTICS = {"DATABASE_URL": EMAIL["DATABASE_URL"]}


def problems(of: type[settings.Settings], environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        of.load(environ)
    assert str(caught.value).splitlines() == caught.value.problems
    return caught.value.problems


def test_a_share_is_above_0_and_at_most_1() -> None:
    assert EmailSettings.load(EMAIL).ses_rate_share == 1
    for text, value in (("0.1", 0.1), ("1", 1.0), (".25", 0.25), ("1.0", 1.0)):
        assert EmailSettings.load({**EMAIL, "SES_RATE_SHARE": text}).ses_rate_share == value
    for text in ("0", "0.0", "1.1", "-0.5", "nan", "1e-1", "half", "1."):
        expected = f"SES_RATE_SHARE={text!r}: allowed is a number above 0, at most 1"
        assert problems(EmailSettings, {**EMAIL, "SES_RATE_SHARE": text}) == [expected]


def test_what_is_given_is_read_and_the_rest_has_the_documented_defaults() -> None:
    loaded = EmailSettings.load(
        {**EMAIL, "KAFKA_WORKER_POOL_SIZE": " 25 ", "DEFAULT_PUBLIC_BASE_URL": "https://x.io/"}
    )
    assert loaded.kafka_worker_pool_size == 25
    assert loaded.default_public_base_url == "https://x.io"
    assert loaded.kafka_job_consumer_group == "job-workers"
    assert loaded.retry_first_delay == timedelta(seconds=5)
    assert loaded.missing_row_patience == timedelta(minutes=10)
    assert EmailSettings.load(EMAIL).kafka_worker_pool_size == 10
    assert AnalyticsSettings.load(ANALYTICS).analytics_interval == timedelta(hours=1)
    assert FraudSettings.load(ANALYTICS).fraud_detection_interval == timedelta(minutes=15)
    relay = RelaySettings.load({**ANALYTICS, "KAFKA_BROKERS": "b-1:9092, b-2:9092"})
    assert (relay.kafka_brokers, relay.kafka_job_topic, relay.kafka_auth) == (
        "b-1:9092,b-2:9092",
        "job-events",
        "none",
    )


def test_each_lane_has_its_queue() -> None:
    loaded = EmailSettings.load(EMAIL)
    assert [loaded.retry_queue_url(lane) for lane in catalog.EMAIL.lanes] == [
        f"{QUEUE}-email",
        f"{QUEUE}-bulk",
    ]
    assert loaded.dead_letter_queue_url(catalog.EMAIL) == f"{QUEUE}-dead"
    # unroutable must reach every lane's retry queue.
    names = UnroutableSettings.environment_names()
    for job_type in catalog.EVENT_JOB_TYPES:
        for lane in job_type.lanes:
            assert names[lane.retry_queue_setting]


@pytest.mark.parametrize("name", sorted(EMAIL.keys() - {"DATABASE_URL", "UNSUBSCRIBE_KEYS"}))
@pytest.mark.parametrize("empty", [None, "", "  "])
def test_a_missing_setting_is_named_with_what_is_allowed(name: str, empty: str | None) -> None:
    environ = {key: value for key, value in EMAIL.items() if key != name}
    (problem,) = problems(EmailSettings, environ if empty is None else {**environ, name: empty})
    allowed = "an email address" if name == "DEFAULT_SENDER" else "an http or https URL"
    assert problem == f"{name} is missing: {allowed}"


def test_everything_wrong_is_said_at_once_one_line_each() -> None:
    found = problems(
        EmailSettings, {"KAFKA_WORKER_POOL_SIZE": "0", "DEFAULT_SENDER": "two\nlines@example.com"}
    )
    assert {line.split("=")[0].split(" ")[0] for line in found} == {*EMAIL, "KAFKA_WORKER_POOL_SIZE"}
    assert len(found) == 8
    assert all("\n" not in line for line in found)


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, "neither is"),
        (
            {"DATABASE_URL": EMAIL["DATABASE_URL"], "DATABASE_SECRET_ARN": "arn:aws:secretsmanager:x"},
            "both are",
        ),
    ],
)
def test_the_database_is_named_in_exactly_one_way(environ: dict[str, str], found: str) -> None:
    assert problems(AnalyticsSettings, environ) == [
        f"DATABASE_URL and DATABASE_SECRET_ARN: {found} set; allowed is exactly one of them"
    ]
    assert AnalyticsSettings.load({"DATABASE_SECRET_ARN": "arn:aws:secretsmanager:x"}).database_url is None


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ((), "neither is"),
        (("UNSUBSCRIBE_KEYS", "UNSUBSCRIBE_KEYS_SECRET_ARN"), "both are"),
    ],
)
def test_the_unsubscribe_keys_are_named_in_exactly_one_way(given: tuple[str, ...], found: str) -> None:
    possible = {"UNSUBSCRIBE_KEYS": EMAIL["UNSUBSCRIBE_KEYS"], "UNSUBSCRIBE_KEYS_SECRET_ARN": "arn:aws:x"}
    for of, environ in (
        (EmailSettings, {key: value for key, value in EMAIL.items() if key not in possible}),
        (UnsubscribeSettings, ANALYTICS),
    ):
        assert problems(of, environ | {name: possible[name] for name in given}) == [
            f"UNSUBSCRIBE_KEYS and UNSUBSCRIBE_KEYS_SECRET_ARN: {found} set; allowed is exactly one of them"
        ]


@pytest.mark.parametrize(
    "value",
    [
        "short",
        "k" * 31,
        "k" * 32 + ",",
        "k" * 32 + ",short",
        ",".join(["k" * 31] * 2),
        " " * 40 + "k",
        "\udc80" * 40,
    ],
)
def test_unsubscribe_keys_have_at_least_32_bytes_each_and_are_never_repeated(value: str) -> None:
    assert problems(UnsubscribeSettings, {**ANALYTICS, "UNSUBSCRIBE_KEYS": value}) == [
        "UNSUBSCRIBE_KEYS=(not shown): allowed is comma-separated keys of at least 32 bytes each; the first one signs"
    ]


def test_unsubscribe_keys_keep_their_order() -> None:
    given = {**ANALYTICS, "UNSUBSCRIBE_KEYS": f"{'n' * 32} , {'ö' * 16}\n"}
    assert UnsubscribeSettings.load(given).unsubscribe_keys == (b"n" * 32, "ö".encode() * 16)


def test_a_secret_is_never_repeated() -> None:
    (problem,) = problems(AnalyticsSettings, {"DATABASE_URL": "mysql://worker:hunter2@db.example.com/jobs"})
    assert problem == (
        "DATABASE_URL=(not shown): allowed is a URL such as postgresql://user:password@host:5432/name"
    )
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    "value", ["90s", "0", "0m", "-15m", "1d", "15", "61s", "1m30s", "59s", "1h0.5s", "9" * 30 + "h", "x"]
)
def test_a_schedule_takes_whole_minutes_only(value: str) -> None:
    (problem,) = problems(FraudSettings, {**ANALYTICS, "FRAUD_DETECTION_INTERVAL": value})
    assert problem == (
        f"FRAUD_DETECTION_INTERVAL={value!r}: allowed is a Go duration of whole minutes, at least 1m"
        " (EventBridge's floor), such as 1h or 15m"
    )


@pytest.mark.parametrize(
    ("value", "minutes"), [("1m", 1), ("60s", 1), ("90m", 90), ("1h30m", 90), ("1.5h", 90)]
)
def test_go_durations_are_understood(value: str, minutes: int) -> None:
    loaded = AnalyticsSettings.load({**ANALYTICS, "ANALYTICS_INTERVAL": value})
    assert loaded.analytics_interval == timedelta(minutes=minutes)


LEAST_DAYS = {
    # In the topic for seven days, then twice in a retry queue and twice as a dead letter.
    "email_message_retention_days": 7 + 4 * catalog.QUEUE_RETENTION_DAYS + 7,
    # As a message of the feedback queue, and as its dead letter.
    "email_event_retention_days": 2 * catalog.QUEUE_RETENTION_DAYS + 7,
    "outbox_retention_days": 7,
    "webhook_attempt_retention_days": 7,
    "fraud_case_retention_days": 30,
    "campaign_metric_retention_days": 30,
}


@pytest.mark.parametrize("name", [item.name for item in fields(RetentionSettings)])
def test_a_retention_is_a_whole_number_of_days_and_outlives_what_may_come_again(name: str) -> None:
    least, variable = LEAST_DAYS[name], name.upper()
    for value in ("0", str(least - 1), "-70", "400d", "9600h", "400.5", "36501", "9" * 30, "x"):
        assert problems(RetentionSettings, {variable: value}) == [
            f"{variable}={value!r}: allowed is a whole number of days from {least} to 36500"
        ]
    for value in (str(least), "36500"):
        loaded = RetentionSettings.load({variable: value})
        assert getattr(loaded, name) == timedelta(days=int(value))


@pytest.mark.parametrize("value", ["0s", "-5s", "1d", "5", "1ns", "9" * 30 + "h", "5 s"])
def test_a_delay_is_a_positive_go_duration(value: str) -> None:
    (problem,) = problems(EmailSettings, {**EMAIL, "RETRY_FIRST_DELAY": value})
    assert problem == f"RETRY_FIRST_DELAY={value!r}: allowed is a positive Go duration such as 1h, 15m or 90s"
    assert EmailSettings.load({**EMAIL, "RETRY_FIRST_DELAY": "90s"}).retry_first_delay == timedelta(
        seconds=90
    )


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("KAFKA_WORKER_POOL_SIZE", "101", "a whole number from 1 to 100"),
        ("KAFKA_WORKER_POOL_SIZE", "²", "a whole number from 1 to 100"),
        ("KAFKA_WORKER_POOL_SIZE", "9" * 5000, "a whole number from 1 to 100"),
        (
            "KAFKA_JOB_CONSUMER_GROUP",
            "job workers",
            "a Kafka name: 1 to 249 letters, digits, '.', '_' or '-'",
        ),
        ("DEFAULT_SENDER", "Launch <hello@example.com>", "an email address"),
        ("DEFAULT_PUBLIC_BASE_URL", "example.com", "an http or https URL"),
        ("DEFAULT_PUBLIC_BASE_URL", "http://[", "an http or https URL"),
        ("DATABASE_SECRET_ARN", "my-secret", "the ARN of a Secrets Manager secret"),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_allowed(name: str, value: str, allowed: str) -> None:
    environ = {**EMAIL, name: value}
    if name == "DATABASE_SECRET_ARN":
        del environ["DATABASE_URL"]
    assert problems(EmailSettings, environ) == [f"{name}={value!r}: allowed is {allowed}"]


@pytest.mark.parametrize(
    "value", ["broker", "broker:0", "broker:65536", ":9092", "a:1,,b:2", "broker:²", "a:" + "9" * 5000]
)
def test_brokers_are_a_list_of_host_and_port(value: str) -> None:
    (problem,) = problems(RelaySettings, {**ANALYTICS, "KAFKA_BROKERS": value})
    assert problem.startswith(f"KAFKA_BROKERS={value!r}: ")
    assert problem.endswith("is not host:port; allowed is a comma-separated list of host:port")


def test_kafka_auth_is_none_or_iam() -> None:
    environ = {**ANALYTICS, "KAFKA_BROKERS": "broker:9092", "KAFKA_AUTH": "scram"}
    assert problems(RelaySettings, environ) == ["KAFKA_AUTH='scram': allowed is none or iam"]


@pytest.mark.parametrize("given", ["WEBHOOK_TEST_TARGETS", "WEBHOOK_TEST_CA_FILE"])
def test_test_receivers_and_their_authority_go_together(given: str, tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.touch()
    both: dict[str, Any] = {
        "WEBHOOK_TEST_TARGETS": "LOCALHOST:8443,[::1]:8443",
        "WEBHOOK_TEST_CA_FILE": str(authority),
    }
    loaded = RewardSettings.load({**REWARD, **both})
    assert loaded.webhook_test_targets == {("localhost", 8443), ("::1", 8443)}
    assert problems(RewardSettings, {**REWARD, given: both[given]}) == [
        "WEBHOOK_TEST_TARGETS and WEBHOOK_TEST_CA_FILE: only one is set; allowed are both or none"
    ]
    assert problems(
        RewardSettings, {**REWARD, **both, "WEBHOOK_TEST_CA_FILE": str(tmp_path / "none.pem")}
    ) == [f"WEBHOOK_TEST_CA_FILE={str(tmp_path / 'none.pem')!r}: allowed is the path of a file that exists"]


def test_every_function_of_the_catalog_has_settings() -> None:
    functions = (
        *catalog.EVENT_JOB_TYPES,
        *catalog.SCHEDULED_JOB_TYPES,
        *catalog.QUEUE_JOB_TYPES,
        *catalog.WEB_FUNCTIONS,
    )
    names = {function.name for function in functions}
    assert names <= settings.BY_FUNCTION.keys()
