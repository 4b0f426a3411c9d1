"""The environments that can be deployed, each a typed and checked set of settings."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from campaign_jobs import catalog, settings
from campaign_jobs.errors import SettingsError

_LOG_RETENTION_DAYS: Final = (7, 14, 30, 60, 90, 180, 365)
_BROKER = re.compile(r"kafka\.(t3\.small|m7g\.(large|((2|4|8|12|16)?xlarge)))")
_KAFKA_VERSION = re.compile(r"[34]\.[0-9]+\.(x|[0-9]+)(\.kraft)?")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What differs between environments. Instances are unchecked; `load` returns checked ones."""

    name: str
    """Becomes part of every name in the account."""

    availability_zones: int
    nat_gateways: int

    kafka_version: str
    kafka_instance_type: str
    kafka_brokers: int
    """A multiple of `availability_zones`, as MSK wants it."""
    kafka_volume_gib: int
    """Storage of each broker, in GiB."""

    database_min_capacity: float
    database_max_capacity: float
    """Aurora capacity units, of about 2 GiB of memory each."""
    database_reader: bool
    """Whether an instance in another zone stands by to take over."""

    sender_domain: str
    """The domain that mail is sent from; its DNS must carry the DKIM records that SES asks for."""
    default_sender: str
    """The address used where a campaign names no sender of its own."""
    owns_email_identity: bool
    """Whether this environment's stack holds the account's SES identity of the domain. Exactly one does."""
    ses_rate_share: float
    """The part of the account's SES sending rate that this environment may use."""

    retain_data: bool
    """Whether cluster, topic, database and the network they stand in outlive the stack."""
    log_retention_days: int

    kafka_job_topic: str = catalog.DEFAULT_TOPIC
    kafka_job_consumer_group: str = catalog.DEFAULT_CONSUMER_GROUP
    kafka_worker_pool_size: int = 10
    analytics_interval: str = catalog.ANALYTICS.default_interval
    fraud_detection_interval: str = catalog.FRAUD.default_interval
    public_base_url: str | None = None
    """Where links in mails begin when a campaign names no base of its own."""

    @property
    def replication_factor(self) -> int:
        return min(3, self.kafka_brokers)

    @property
    def min_insync_replicas(self) -> int:
        """One fewer than the copies, so that a broker's restart stops no producer."""
        return max(1, self.replication_factor - 1)

    def resource_name(self, part: str) -> str:
        return f"campaign-jobs-{self.name}-{part}"

    def interval(self, job_type: catalog.ScheduledJobType) -> str:
        """The interval of a scheduled job type's rule, in Go duration syntax."""
        if not job_type.interval_setting:
            return job_type.default_interval
        return str(getattr(self, job_type.interval_setting.lower()))

    def schedule(self, job_type: catalog.ScheduledJobType) -> timedelta:
        """The interval of a scheduled job type's rule: whole minutes, at least one."""
        parsed: timedelta = settings.schedule_interval(self.interval(job_type))
        return parsed

    def problems(self) -> list[str]:
        """What is wrong here: one line each, naming the setting, its value and what is allowed."""
        return [
            f"{self.name}: {setting}={value!r}: allowed is {allowed}"
            for setting, value, allowed in self._wrong()
        ]

    def _wrong(self) -> Iterator[tuple[str, object, str]]:
        checks: list[tuple[str, bool, str]] = [
            ("name", _matches(r"[a-z][a-z0-9]{0,15}", self.name), "1 to 16 lower-case letters and digits"),
            ("availability_zones", _whole(self.availability_zones, 2, 3), "2 or 3"),
            ("nat_gateways", _whole(self.nat_gateways, 1, 3), "1 to 3"),
            (
                "kafka_version",
                _matches(_KAFKA_VERSION, self.kafka_version),
                "a version of MSK such as 3.9.x.kraft",
            ),
            (
                "kafka_instance_type",
                _matches(_BROKER, self.kafka_instance_type),
                "kafka.t3.small or kafka.m7g.*",
            ),
            ("kafka_brokers", _whole(self.kafka_brokers, 2, 30), "2 to 30"),
            ("kafka_volume_gib", _whole(self.kafka_volume_gib, 1, 16_384), "1 to 16384"),
            # At 0 the database would pause, and the relay would wake it each minute, 15 to 30 seconds late.
            ("database_min_capacity", _half_steps(self.database_min_capacity), "0.5 to 256 in steps of 0.5"),
            ("database_max_capacity", _half_steps(self.database_max_capacity), "0.5 to 256 in steps of 0.5"),
            ("sender_domain", _matches(r"([a-z0-9-]+\.)+[a-z]{2,}", self.sender_domain), "a domain name"),
            ("ses_rate_share", _share(self.ses_rate_share), "a number above 0, at most 1"),
            (
                "log_retention_days",
                self.log_retention_days in _LOG_RETENTION_DAYS,
                f"one of {_LOG_RETENTION_DAYS}",
            ),
            ("kafka_worker_pool_size", _whole(self.kafka_worker_pool_size, 1, 100), "1 to 100"),
        ]
        wrong = [(setting, getattr(self, setting), allowed) for setting, fine, allowed in checks if not fine]
        yield from wrong or self._wrong_together()
        for setting, parse in _PARSED_BY_THE_FUNCTIONS.items():
            value = getattr(self, setting)
            if value is not None and not _parses(parse, value):
                yield setting, value, (parse.__doc__ or "").strip()

    def _wrong_together(self) -> Iterator[tuple[str, object, str]]:
        """What is wrong between settings that are each right."""
        if self.nat_gateways > self.availability_zones:
            yield "nat_gateways", self.nat_gateways, f"at most one in each of {self.availability_zones} zones"
        if self.kafka_brokers % self.availability_zones:
            yield (
                "kafka_brokers",
                self.kafka_brokers,
                f"a multiple of availability_zones={self.availability_zones}",
            )
        # https://docs.aws.amazon.com/msk/latest/developerguide/metadata-management.html
        uses_kraft = self.kafka_version.endswith(".kraft") or self.kafka_version.startswith("4.")
        if uses_kraft and self.kafka_instance_type == "kafka.t3.small":
            yield (
                "kafka_version",
                self.kafka_version,
                "a version without KRaft, such as 3.9.x, on kafka.t3.small",
            )
        if self.database_max_capacity < self.database_min_capacity:
            yield "database_max_capacity", self.database_max_capacity, "at least database_min_capacity"
        if not self.default_sender.endswith(f"@{self.sender_domain}"):
            yield "default_sender", self.default_sender, f"an address at sender_domain={self.sender_domain}"


_PARSED_BY_THE_FUNCTIONS: Final[Mapping[str, Callable[[str], object]]] = {
    "kafka_job_topic": settings.topic_name,
    "kafka_job_consumer_group": settings.topic_name,
    "analytics_interval": settings.schedule_interval,
    "fraud_detection_interval": settings.schedule_interval,
    "default_sender": settings.email_address,
    "public_base_url": settings.http_url,
}

# Replace sender_domain and default_sender by your own before the first deployment.
DEV: Final = Environment(
    name="dev",
    availability_zones=2,
    nat_gateways=1,
    # The smallest brokers cannot run KRaft.
    kafka_version="3.9.x",
    kafka_instance_type="kafka.t3.small",
    kafka_brokers=2,
    kafka_volume_gib=10,
    database_min_capacity=0.5,
    database_max_capacity=2,
    database_reader=False,
    sender_domain="example.com",
    default_sender="dev@example.com",
    owns_email_identity=False,
    ses_rate_share=0.1,
    retain_data=False,
    log_retention_days=7,
)

STAGING: Final = replace(
    DEV,
    name="staging",
    kafka_version="3.9.x.kraft",
    kafka_instance_type="kafka.m7g.large",
    kafka_volume_gib=100,
    database_max_capacity=8,
    default_sender="staging@example.com",
    retain_data=True,
    log_retention_days=30,
)

PROD: Final = replace(
    STAGING,
    name="prod",
    availability_zones=3,
    # One in each zone, so that a zone that is lost takes no other with it.
    nat_gateways=3,
    kafka_brokers=3,
    kafka_volume_gib=500,
    database_max_capacity=32,
    database_reader=True,
    default_sender="no-reply@example.com",
    owns_email_identity=True,
    ses_rate_share=0.8,
    log_retention_days=90,
)

ENVIRONMENTS: Final = (DEV, STAGING, PROD)


def load(name: object, environments: tuple[Environment, ...] = ENVIRONMENTS) -> Environment:
    """The environment of that name, as given by `-c env=`.

    Raises SettingsError where the name is unknown or any environment is wrong: they share an account, so one
    environment's mistake is the others' concern.
    """
    by_name = {environment.name: environment for environment in environments}
    problems = [problem for environment in environments for problem in environment.problems()]
    problems += _wrong_in_one_account(environments)
    if not isinstance(name, str) or name not in by_name:
        given = "is missing" if name is None else f"={name!r}"
        problems.insert(
            0, f"env{' ' if name is None else ''}{given}: allowed is -c env= with one of {', '.join(by_name)}"
        )
    if problems:
        raise SettingsError(problems)
    return by_name[str(name)]


def _wrong_in_one_account(environments: tuple[Environment, ...]) -> Iterator[str]:
    for domain in sorted({environment.sender_domain for environment in environments}):
        owners = [e.name for e in environments if e.sender_domain == domain and e.owns_email_identity]
        if len(owners) != 1:
            yield f"owns_email_identity={owners!r} for {domain}: allowed is True in exactly one environment"
    shares = {environment.name: environment.ses_rate_share for environment in environments}
    # Rounded because 0.1 + 0.1 + 0.8 is a little more than 1 in binary.
    if all(_share(share) for share in shares.values()) and round(sum(shares.values()), 6) > 1:
        yield f"ses_rate_share={shares!r}: allowed is a sum of at most 1"


def _matches(pattern: str | re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _half_steps(value: object) -> bool:
    return isinstance(value, int | float) and 0.5 <= value <= 256 and (value * 2) % 1 == 0


def _share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def _parses(parse: Callable[[str], object], value: object) -> bool:
    try:
        parse(str(value))
    except ValueError:
        return False
    return isinstance(value, str)
