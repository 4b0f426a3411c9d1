"""What the local system reads from the environment: the functions' own settings, all with defaults for one machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from campaign_jobs import catalog
from campaign_jobs.settings import (
    Settings,
    brokers,
    email_address,
    http_url,
    pool_size,
    postgresql_url,
    schedule_interval,
    setting,
    topic_name,
)

# Settings that the functions alone understand are handed through as they are.
PASSED_ON = (
    "DEFAULT_PUBLIC_BASE_URL",
    "MISSING_ROW_PATIENCE",
    "RETRY_FIRST_DELAY",
    "SES_CONFIGURATION_SET",
    "SES_RATE_SHARE",
    "WEBHOOK_TEST_CA_FILE",
    "WEBHOOK_TEST_TARGETS",
)


@dataclass(frozen=True, kw_only=True)
class LocalSettings(Settings):
    """Any part is replaced by a real one through its setting; a part that has none is embedded."""

    kafka_brokers: str | None = setting(brokers, None)
    database_url: str | None = setting(postgresql_url, None, secret=True)
    aws_endpoint_url: str | None = setting(http_url, None)
    kafka_job_topic: str = setting(topic_name, catalog.DEFAULT_TOPIC)
    kafka_job_consumer_group: str = setting(topic_name, catalog.DEFAULT_CONSUMER_GROUP)
    kafka_worker_pool_size: int = setting(pool_size, 10)
    analytics_interval: timedelta = setting(schedule_interval, timedelta(hours=1))
    fraud_detection_interval: timedelta = setting(schedule_interval, timedelta(minutes=15))
    default_sender: str = setting(email_address, "hello@example.com")


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings that are not ours but the functions', where they are set."""
    return {"DEFAULT_PUBLIC_BASE_URL": "https://example.com"} | {
        name: environ[name] for name in PASSED_ON if environ.get(name)
    }


def go_duration(duration: timedelta) -> str:
    """As Go prints it: 1h0m0s."""
    seconds = int(duration.total_seconds())
    hours, minutes, seconds = seconds // 3600, seconds % 3600 // 60, seconds % 60
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
