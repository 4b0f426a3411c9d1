"""The only reader of the process's environment.

Each function has a settings class below. A field's name in capitals is the variable's name. Loading reports every
missing or wrong variable at once, one line each, and never repeats a value that may be a secret.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

from campaign_jobs import catalog
from campaign_jobs.errors import SettingsError

MIN_KEY_BYTES: Final = 32
"""The length of HMAC-SHA256's digest; RFC 2104, section 3, advises against shorter keys."""
MOST_DAYS: Final = 36_500


def setting(parse: Callable[[str], Any], default: Any = MISSING, *, secret: bool = False) -> Any:
    metadata = {"parse": parse, "secret": secret}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings classes: loading, and the names that the stack and the local system must provide."""

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings from `environ` (the process's environment unless given).

        Raises SettingsError with a line for each variable that is missing or wrong.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        problems: list[str] = []
        for item in fields(cls):
            name = item.name.upper()
            text = environ.get(name, "").strip()
            if not text:
                if item.default is MISSING:
                    problems.append(f"{name} is missing: {_expected(item.metadata['parse'])}")
                continue
            try:
                values[item.name] = item.metadata["parse"](text)
            except ValueError as error:
                shown = "(not shown)" if item.metadata["secret"] else repr(text)
                problems.append(f"{name}={shown}: {error}")
        given = {name for name in cls.environment_names() if environ.get(name, "").strip()}
        problems += cls.problems_between(given)
        if problems:
            raise SettingsError(problems)
        return cls(**values)

    @classmethod
    def environment_names(cls) -> dict[str, bool]:
        """Each variable that this class reads, and whether it must be there."""
        return {item.name.upper(): item.default is MISSING for item in fields(cls)}

    @classmethod
    def problems_between(cls, given: Collection[str]) -> list[str]:  # noqa: ARG003  Here nothing is related.
        """What is wrong with the variables that are given, taken together; one line each."""
        return []


def function_name() -> str | None:
    """The name that Lambda runs this process under, which carries its environment's; None outside of Lambda."""
    return os.environ.get("AWS_LAMBDA_FUNCTION_NAME")


# Parsers: each takes the text and raises a ValueError that says what is allowed. The docstring's first line is what a
# missing variable's message shows.


def _expected(parse: Callable[[str], Any]) -> str:
    return (parse.__doc__ or "a value").splitlines()[0]


def text(value: str) -> str:
    """any text"""
    return value


def brokers(value: str) -> str:
    """a comma-separated list of host:port"""
    entries = [entry.strip() for entry in value.split(",")]
    for entry in entries:
        host, _, port = entry.rpartition(":")
        if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise ValueError(f"{entry!r} is not host:port; allowed is {_expected(brokers)}")
    return ",".join(entries)


def topic_name(value: str) -> str:
    """a Kafka name: 1 to 249 letters, digits, '.', '_' or '-'"""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", value):
        raise ValueError(f"allowed is {_expected(topic_name)}")
    return value


def kafka_auth(value: str) -> str:
    """none or iam"""
    if value not in ("none", "iam"):
        raise ValueError(f"allowed is {_expected(kafka_auth)}")
    return value


def pool_size(value: str) -> int:
    """a whole number from 1 to 100"""
    if not re.fullmatch("[0-9]{1,3}", value) or not 1 <= int(value) <= 100:
        raise ValueError(f"allowed is {_expected(pool_size)}")
    return int(value)


def share(value: str) -> float:
    """a number above 0, at most 1"""
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", value) or not 0 < float(value) <= 1:
        raise ValueError(f"allowed is {_expected(share)}")
    return float(value)


def duration(value: str) -> timedelta:
    """a positive Go duration such as 1h, 15m or 90s"""
    # Only a duration needs this library, and only some functions have one.
    import durationpy

    if not re.fullmatch(r"([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+", value):
        raise ValueError(f"allowed is {_expected(duration)}")
    try:
        parsed: timedelta = durationpy.from_str(value)
    except (ValueError, OverflowError):
        parsed = timedelta()
    if parsed <= timedelta():
        raise ValueError(f"allowed is {_expected(duration)}")
    return parsed


def schedule_interval(value: str) -> timedelta:
    """a Go duration of whole minutes, at least 1m (EventBridge's floor), such as 1h or 15m"""
    try:
        parsed = duration(value)
    except ValueError:
        raise ValueError(f"allowed is {_expected(schedule_interval)}") from None
    if parsed < timedelta(minutes=1) or parsed % timedelta(minutes=1) or parsed > timedelta(days=365):
        raise ValueError(f"allowed is {_expected(schedule_interval)}")
    return parsed


def days(least: int) -> Callable[[str], timedelta]:
    """A parser of a number of days, at least so many."""

    def parse(value: str) -> timedelta:
        if not re.fullmatch("[0-9]{1,5}", value) or not least <= int(value) <= MOST_DAYS:
            raise ValueError(f"allowed is {_expected(parse)}")
        return timedelta(days=int(value))

    parse.__doc__ = f"a whole number of days from {least} to {MOST_DAYS}"
    return parse


def rule_name(value: str) -> str:
    """the name of an EventBridge rule: 1 to 64 letters, digits, '.', '_' or '-'"""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
        raise ValueError(f"allowed is {_expected(rule_name)}")
    return value


def postgresql_url(value: str) -> str:
    """a URL such as postgresql://user:password@host:5432/name"""
    if not value.startswith(("postgresql://", "postgres://")):
        raise ValueError(f"allowed is {_expected(postgresql_url)}")
    return value


def secret_arn(value: str) -> str:
    """the ARN of a Secrets Manager secret"""
    if not value.startswith("arn:"):
        raise ValueError(f"allowed is {_expected(secret_arn)}")
    return value


def http_url(value: str) -> str:
    """an http or https URL"""
    try:
        parts = urlsplit(value)
    except ValueError:
        raise ValueError(f"allowed is {_expected(http_url)}") from None
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"allowed is {_expected(http_url)}")
    return value.rstrip("/")


def email_address(value: str) -> str:
    """an email address"""
    if not re.fullmatch(r"[^\s@<>\x00-\x1f]+@[^\s@<>\x00-\x1f]+", value):
        raise ValueError(f"allowed is {_expected(email_address)}")
    return value


def signing_keys(value: str) -> tuple[bytes, ...]:
    """comma-separated keys of at least 32 bytes each; the first one signs"""
    try:
        keys = tuple(key.strip().encode() for key in value.split(","))
    except UnicodeEncodeError:
        # Its own text would show a part of the key.
        keys = (b"",)
    if any(len(key) < MIN_KEY_BYTES for key in keys):
        raise ValueError(f"allowed is {_expected(signing_keys)}")
    return keys


def host_ports(value: str) -> frozenset[tuple[str, int]]:
    """a comma-separated list of exact host:port"""
    targets = set()
    for entry in brokers(value).split(","):
        host, _, port = entry.rpartition(":")
        targets.add((host.strip("[]").lower(), int(port)))
    return frozenset(targets)


def existing_file(value: str) -> Path:
    """the path of a file that exists"""
    try:
        exists = Path(value).is_file()
    except (OSError, ValueError):  # A name that no file can have.
        exists = False
    if not exists:
        raise ValueError(f"allowed is {_expected(existing_file)}")
    return Path(value)


# Groups of settings, and one class for each function.


def _not_exactly_one(given: Collection[str], one: str, other: str) -> list[str]:
    if (one in given) != (other in given):
        return []
    found = "both are" if one in given else "neither is"
    return [f"{one} and {other}: {found} set; allowed is exactly one of them"]


@dataclass(frozen=True, kw_only=True)
class DatabaseSettings(Settings):
    """Where PostgreSQL is: a URL, or a secret with host, port, username, password and dbname."""

    database_url: str | None = setting(postgresql_url, None, secret=True)
    database_secret_arn: str | None = setting(secret_arn, None)
    # Who signed the server's certificate, where the secret says which server it is; Amazon RDS unless given.
    database_ca_file: Path | None = setting(existing_file, None)

    @classmethod
    def problems_between(cls, given: Collection[str]) -> list[str]:
        return super().problems_between(given) + _not_exactly_one(
            given, "DATABASE_URL", "DATABASE_SECRET_ARN"
        )


@dataclass(frozen=True, kw_only=True)
class UnsubscribeKeySettings(Settings):
    """The keys of unsubscribe links: themselves, or a secret that holds them."""

    unsubscribe_keys: tuple[bytes, ...] | None = setting(signing_keys, None, secret=True)
    unsubscribe_keys_secret_arn: str | None = setting(secret_arn, None)

    @classmethod
    def problems_between(cls, given: Collection[str]) -> list[str]:
        return super().problems_between(given) + _not_exactly_one(
            given, "UNSUBSCRIBE_KEYS", "UNSUBSCRIBE_KEYS_SECRET_ARN"
        )


@dataclass(frozen=True, kw_only=True)
class KafkaSettings(Settings):
    """Where events are published."""

    kafka_brokers: str = setting(brokers)
    kafka_job_topic: str = setting(topic_name, catalog.DEFAULT_TOPIC)
    kafka_auth: str = setting(kafka_auth, "none")


@dataclass(frozen=True, kw_only=True)
class EventJobSettings(Settings):
    """What every function of an event job type reads besides its queues' URLs."""

    kafka_job_consumer_group: str = setting(topic_name, catalog.DEFAULT_CONSUMER_GROUP)
    # The delay before the second attempt; each later one waits twice as long.
    retry_first_delay: timedelta = setting(duration, timedelta(seconds=5))
    # How long a user, campaign or reward that is not there yet is waited for: services publish before they commit.
    missing_row_patience: timedelta = setting(duration, timedelta(minutes=10))

    def retry_queue_url(self, lane: catalog.Lane) -> str:
        return str(getattr(self, lane.retry_queue_setting.lower()))

    def dead_letter_queue_url(self, job_type: catalog.EventJobType) -> str:
        return str(getattr(self, job_type.dead_letter_queue_setting.lower()))


@dataclass(frozen=True, kw_only=True)
class EmailSettings(DatabaseSettings, UnsubscribeKeySettings, EventJobSettings):
    retry_queue_url_email: str = setting(http_url)
    retry_queue_url_email_bulk: str = setting(http_url)
    dead_letter_queue_url_email: str = setting(http_url)
    kafka_worker_pool_size: int = setting(pool_size, 10)
    # Used where a campaign names no sender of its own.
    default_sender: str = setting(email_address)
    # Used where a campaign names no public_base_url of its own; links in mails begin with it.
    default_public_base_url: str | None = setting(http_url, None)
    ses_configuration_set: str | None = setting(text, None)
    # The part of the account's sending rate that all functions of this environment together may use.
    ses_rate_share: float = setting(share, 1.0)
    # Unsubscribe links begin with it.
    unsubscribe_url: str = setting(http_url)


@dataclass(frozen=True, kw_only=True)
class PositionSettings(DatabaseSettings, EventJobSettings):
    retry_queue_url_position: str = setting(http_url)
    dead_letter_queue_url_position: str = setting(http_url)


@dataclass(frozen=True, kw_only=True)
class RewardSettings(DatabaseSettings, EventJobSettings):
    retry_queue_url_reward: str = setting(http_url)
    dead_letter_queue_url_reward: str = setting(http_url)
    kafka_worker_pool_size: int = setting(pool_size, 10)
    # Receivers on this machine that the guard of outgoing requests lets pass, for local runs and tests only.
    webhook_test_targets: frozenset[tuple[str, int]] = setting(host_ports, frozenset())
    webhook_test_ca_file: Path | None = setting(existing_file, None)

    @classmethod
    def problems_between(cls, given: Collection[str]) -> list[str]:
        problems = super().problems_between(given)
        if ("WEBHOOK_TEST_TARGETS" in given) != ("WEBHOOK_TEST_CA_FILE" in given):
            problems.append(
                "WEBHOOK_TEST_TARGETS and WEBHOOK_TEST_CA_FILE: only one is set; allowed are both or none"
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class UnroutableSettings(DatabaseSettings, EventJobSettings):
    retry_queue_url_unroutable: str = setting(http_url)
    dead_letter_queue_url_unroutable: str = setting(http_url)
    # A redriven record that has an owner by now goes to that owner's retry queue.
    retry_queue_url_email: str = setting(http_url)
    retry_queue_url_email_bulk: str = setting(http_url)
    retry_queue_url_position: str = setting(http_url)
    retry_queue_url_reward: str = setting(http_url)


@dataclass(frozen=True, kw_only=True)
class RetentionSettings(Settings):
    """How long the rows of each table are kept that grows with time; decision 0013."""

    # An event may be in the topic for seven days, then in a retry queue and as a dead letter for fourteen each, and
    # once more so when it is redriven: 63 days. As long as its mail's row is there, what became of it is known.
    email_message_retention_days: timedelta = setting(days(70), timedelta(days=400))
    # A message of the feedback queue, and a dead letter of it, live fourteen days each.
    email_event_retention_days: timedelta = setting(days(35), timedelta(days=90))
    outbox_retention_days: timedelta = setting(days(7), timedelta(days=30))
    webhook_attempt_retention_days: timedelta = setting(days(7), timedelta(days=90))
    fraud_case_retention_days: timedelta = setting(days(30), timedelta(days=730))
    # Analytics counts hours of the last days again.
    campaign_metric_retention_days: timedelta = setting(days(30), timedelta(days=1_100))


@dataclass(frozen=True, kw_only=True)
class AnalyticsSettings(DatabaseSettings, RetentionSettings):
    analytics_interval: timedelta = setting(schedule_interval, timedelta(hours=1))


@dataclass(frozen=True, kw_only=True)
class FraudSettings(DatabaseSettings):
    fraud_detection_interval: timedelta = setting(schedule_interval, timedelta(minutes=15))


@dataclass(frozen=True, kw_only=True)
class RelaySettings(DatabaseSettings, KafkaSettings):
    kafka_job_consumer_group: str = setting(topic_name, catalog.DEFAULT_CONSUMER_GROUP)
    # The rules whose present schedules the age of the watermarks is relative to.
    analytics_rule_name: str | None = setting(rule_name, None)
    fraud_rule_name: str | None = setting(rule_name, None)
    # In their place where there is no EventBridge.
    analytics_interval: timedelta = setting(schedule_interval, timedelta(hours=1))
    fraud_detection_interval: timedelta = setting(schedule_interval, timedelta(minutes=15))

    def rule_of(self, job_type: catalog.ScheduledJobType) -> str | None:
        name: str | None = getattr(self, job_type.rule_name_setting.lower())
        return name

    def interval_of(self, job_type: catalog.ScheduledJobType) -> timedelta:
        interval: timedelta = getattr(self, job_type.interval_setting.lower())
        return interval


@dataclass(frozen=True, kw_only=True)
class FeedbackSettings(DatabaseSettings):
    pass


@dataclass(frozen=True, kw_only=True)
class UnsubscribeSettings(DatabaseSettings, UnsubscribeKeySettings):
    pass


@dataclass(frozen=True, kw_only=True)
class MigrationsSettings(DatabaseSettings):
    pass


BY_FUNCTION: Final[dict[str, type[Settings]]] = {
    "email": EmailSettings,
    "position": PositionSettings,
    "reward": RewardSettings,
    "unroutable": UnroutableSettings,
    "analytics": AnalyticsSettings,
    "fraud": FraudSettings,
    "relay": RelaySettings,
    "feedback": FeedbackSettings,
    "unsubscribe": UnsubscribeSettings,
    "migrations": MigrationsSettings,
}
