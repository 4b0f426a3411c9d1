"""What an environment is made of: typed settings, each with the check of what is allowed."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Final, Literal

from campaign_jobs import catalog, settings
from infra.allowed import (
    Wrong,
    all_match,
    checked,
    half_steps,
    is_share,
    matches,
    parses,
    private_sixteen,
    whole,
)

LOG_RETENTION_DAYS: Final = (7, 14, 30, 60, 90, 180, 365)

_BROKER = re.compile(r"kafka\.(t3\.small|m7g\.(large|((2|4|8|12|16)?xlarge)))")
_KAFKA_VERSION = re.compile(r"[34]\.[0-9]+\.(x|[0-9]+)(\.kraft)?")
_DOMAIN = r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,}"
_SECURITY_GROUP = r"sg-[0-9a-f]{8,17}"
_WHOLE_ARN = r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:.+-[A-Za-z0-9]{6}"


@dataclass(frozen=True, kw_only=True)
class NewNetwork:
    """A VPC of the stack's own."""

    availability_zones: int
    nat: Literal["gateway", "instance"]
    """What lets the functions out, to webhooks and AWS services. An instance costs a tenth of a gateway, and is gone
    while it is replaced; retries make up for that."""
    nats: int
    """How many: one, or one in each zone, so that a zone that is lost takes no other with it."""
    cidr: str = "10.40.0.0/16"
    """Must not overlap with networks that are to be peered with this one."""
    logs_rejected_traffic: bool = False
    """Whether what security groups turn away is logged (VPC flow logs), to see why somebody cannot connect."""

    def wrong(self) -> Wrong:
        yield from checked(
            self,
            availability_zones=(whole(self.availability_zones, 2, 3), "2 or 3"),
            nat=(self.nat in ("gateway", "instance"), "gateway or instance"),
            nats=(whole(self.nats, 1, 3), "1 to 3"),
            cidr=(private_sixteen(self.cidr), "a private /16 such as 10.40.0.0/16"),
            logs_rejected_traffic=(isinstance(self.logs_rejected_traffic, bool), "True or False"),
        )
        if whole(self.availability_zones, 2, 3) and whole(self.nats, self.availability_zones + 1, 3):
            yield "nats", self.nats, f"at most one in each of {self.availability_zones} zones"


@dataclass(frozen=True, kw_only=True)
class ExistingNetwork:
    """A VPC that is there. Its ids are written down, since looking them up would tie a synth to an account."""

    vpc_id: str
    availability_zones: tuple[str, ...]
    private_subnet_ids: tuple[str, ...]
    """With a way out through NAT; one in each zone, in the order of the zones."""
    private_route_table_ids: tuple[str, ...]
    """Of those subnets, in the same order."""
    database_subnet_ids: tuple[str, ...] = ()
    """For a new database; need no way out. The private ones where none are named."""

    def wrong(self) -> Wrong:
        zones = len(self.availability_zones)
        subnets = r"subnet-[0-9a-f]{8,17}"
        yield from checked(
            self,
            vpc_id=(matches(r"vpc-[0-9a-f]{8,17}", self.vpc_id), "a VPC's id"),
            availability_zones=(
                2 <= zones <= 3 and all_match(r"[a-z]{2}(-[a-z]+)+-[0-9][a-z]", self.availability_zones),
                "the names of 2 or 3 zones, such as eu-central-1a",
            ),
            private_subnet_ids=(
                len(self.private_subnet_ids) == zones and all_match(subnets, self.private_subnet_ids),
                f"the ids of {zones} subnets, one for each zone",
            ),
            private_route_table_ids=(
                len(self.private_route_table_ids) == zones
                and all_match(r"rtb-[0-9a-f]{8,17}", self.private_route_table_ids),
                f"the ids of {zones} route tables, one for each private subnet",
            ),
            database_subnet_ids=(
                len(self.database_subnet_ids) in (0, zones) and all_match(subnets, self.database_subnet_ids),
                f"the ids of {zones} subnets, one for each zone, or none",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class NewKafka:
    """A provisioned MSK cluster of the stack's own: TLS and IAM only."""

    version: str
    instance_type: str
    brokers: int
    """A multiple of the network's zones, as MSK wants it."""
    volume_gib: int
    """Storage of each broker, in GiB."""

    @property
    def replication_factor(self) -> int:
        return min(3, self.brokers)

    @property
    def min_insync_replicas(self) -> int:
        """One fewer than the copies, so that a broker's restart stops no producer."""
        return max(1, self.replication_factor - 1)

    def wrong(self) -> Wrong:
        yield from checked(
            self,
            version=(matches(_KAFKA_VERSION, self.version), "a version of MSK such as 3.9.x.kraft"),
            instance_type=(matches(_BROKER, self.instance_type), "kafka.t3.small or kafka.m7g.*"),
            brokers=(whole(self.brokers, 2, 30), "2 to 30"),
            volume_gib=(whole(self.volume_gib, 1, 16_384), "1 to 16384"),
        )
        # https://docs.aws.amazon.com/msk/latest/developerguide/metadata-management.html
        uses_kraft = str(self.version).endswith(".kraft") or str(self.version).startswith("4.")
        if uses_kraft and self.instance_type == "kafka.t3.small":
            yield "version", self.version, "a version without KRaft, such as 3.9.x, on kafka.t3.small"


@dataclass(frozen=True, kw_only=True)
class ExistingKafka:
    """An MSK cluster that is there, with IAM authentication, in a network that the functions reach."""

    cluster_arn: str
    security_group_id: str
    """The brokers' own. Pollers of event-source mappings take it, so it must let itself in on port 9098."""
    creates_topic: bool
    """Whether the stack creates the topic (provisioned clusters, Kafka 3.6 or newer); otherwise it is there already,
    with 10 partitions."""
    topic_replication_factor: int = 3

    def wrong(self) -> Wrong:
        yield from checked(
            self,
            cluster_arn=(
                matches(
                    r"arn:aws[a-z-]*:kafka:[a-z0-9-]+:[0-9]{12}:cluster/[A-Za-z0-9-]+/[A-Za-z0-9-]+",
                    self.cluster_arn,
                ),
                "the ARN of an MSK cluster",
            ),
            security_group_id=(matches(_SECURITY_GROUP, self.security_group_id), "a security group's id"),
            creates_topic=(isinstance(self.creates_topic, bool), "True or False"),
            topic_replication_factor=(whole(self.topic_replication_factor, 1, 3), "1 to 3"),
        )


@dataclass(frozen=True, kw_only=True)
class NewDatabase:
    """An Aurora Serverless v2 cluster of the stack's own."""

    min_capacity: float
    """In Aurora capacity units, of about 2 GiB of memory each. At 0 the database would pause, and the relay would wake
    it each minute, 15 to 30 seconds late."""
    max_capacity: float
    reader: bool
    """Whether an instance in another zone stands by to take over."""

    def wrong(self) -> Wrong:
        capacity = "0.5 to 256 in steps of 0.5"
        yield from checked(
            self,
            min_capacity=(half_steps(self.min_capacity), capacity),
            max_capacity=(half_steps(self.max_capacity), capacity),
            reader=(isinstance(self.reader, bool), "True or False"),
        )
        both = half_steps(self.min_capacity) and half_steps(self.max_capacity)
        if both and self.max_capacity < self.min_capacity:
            yield "max_capacity", self.max_capacity, "at least min_capacity"


@dataclass(frozen=True, kw_only=True)
class ExistingDatabase:
    """A PostgreSQL database that is there, from version 15 on, in a network that the functions reach."""

    secret_arn: str
    """The whole ARN, with its random ending, of a secret with host, port, username, password and dbname, under Secrets
    Manager's own key. The user must be allowed to create the schema campaign_jobs."""
    security_group_id: str
    port: int = 5432

    def wrong(self) -> Wrong:
        yield from checked(
            self,
            secret_arn=(
                matches(_WHOLE_ARN, self.secret_arn),
                "the whole ARN of a Secrets Manager secret",
            ),
            security_group_id=(matches(_SECURITY_GROUP, self.security_group_id), "a security group's id"),
            port=(whole(self.port, 1, 65_535), "1 to 65535"),
        )


@dataclass(frozen=True, kw_only=True)
class Sending:
    """Whose mail it is, and how fast it may leave."""

    domain: str
    """Mail is sent from it; its DNS must carry the records that the stack puts out."""
    default_sender: str
    """The address used where a campaign names no sender of its own."""
    owns_identity: bool
    """Whether this environment's stack holds the account's SES identity of the domain. At most one does; where none
    does, the identity is there already."""
    rate_share: float
    """The part of the account's SES sending rate that this environment may use."""
    mail_from: str = "bounce"
    """The MAIL FROM domain is this below `domain`, so that SPF is ours as well. Only the owner sets it."""
    further_domains: tuple[str, ...] = ()
    """Of campaigns with a `from_email` of their own; their identities are there already."""

    def wrong(self) -> Wrong:
        yield from checked(
            self,
            domain=(matches(_DOMAIN, self.domain), "a domain name"),
            default_sender=(parses(settings.email_address, self.default_sender), "an email address"),
            owns_identity=(isinstance(self.owns_identity, bool), "True or False"),
            rate_share=(is_share(self.rate_share), "a number above 0, at most 1"),
            mail_from=(matches(r"[a-z0-9-]{1,63}", self.mail_from), "one label of a domain name"),
            further_domains=(all_match(_DOMAIN, self.further_domains), "domain names"),
        )
        if not str(self.default_sender).endswith(f"@{self.domain}"):
            yield "default_sender", self.default_sender, f"an address at domain={self.domain}"


@dataclass(frozen=True, kw_only=True)
class CustomDomain:
    """A domain of one's own for unsubscribe links, in the place of the function's URL."""

    name: str
    certificate_arn: str
    """Of a certificate in the stack's region that covers the name."""

    def wrong(self) -> Wrong:
        yield from checked(
            self,
            name=(matches(_DOMAIN, self.name), "a domain name"),
            certificate_arn=(
                matches(
                    r"arn:aws[a-z-]*:acm:[a-z0-9-]+:[0-9]{12}:certificate/[0-9a-f-]{36}", self.certificate_arn
                ),
                "the ARN of an ACM certificate",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Retention:
    """For how many days rows are kept, where that is not the default of `campaign_jobs.settings.RetentionSettings`."""

    email_message_retention_days: int | None = None
    email_event_retention_days: int | None = None
    outbox_retention_days: int | None = None
    webhook_attempt_retention_days: int | None = None
    fraud_case_retention_days: int | None = None
    campaign_metric_retention_days: int | None = None

    def variables(self) -> dict[str, str]:
        """Those that differ, as the functions read them."""
        given = {item.name.upper(): getattr(self, item.name) for item in fields(self)}
        return {name: str(value) for name, value in given.items() if value is not None}

    def wrong(self) -> Wrong:
        for item in fields(settings.RetentionSettings):
            value, parse = getattr(self, item.name), item.metadata["parse"]
            is_fine = value is None or (whole(value, 0, settings.MOST_DAYS) and parses(parse, str(value)))
            yield from checked(self, **{item.name: (is_fine, (parse.__doc__ or "").strip())})


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What differs between environments. Instances are unchecked; `environments.load` returns checked ones."""

    name: str
    """Becomes part of every name in the account."""
    network: NewNetwork | ExistingNetwork
    kafka: NewKafka | ExistingKafka
    database: NewDatabase | ExistingDatabase
    sending: Sending
    retain_data: bool
    """Whether cluster, topic, database and the network they stand in outlive the stack."""
    log_retention_days: int
    alarm_recipients: tuple[str, ...] = ()
    """Addresses that alarms are mailed to; each confirms once, by a link. Alarms also go to the topic that the stack
    puts out, for whoever subscribes to it."""
    retention: Retention = Retention()
    unsubscribe_domain: CustomDomain | None = None
    unsubscribe_keys_secret_arn: str | None = None
    """The whole ARN of a secret with keys of unsubscribe links that is there, such as a stack before this one left; a
    new one is made up where none is named."""

    kafka_job_topic: str = catalog.DEFAULT_TOPIC
    kafka_job_consumer_group: str = catalog.DEFAULT_CONSUMER_GROUP
    kafka_worker_pool_size: int = 10
    """Concurrent sends inside one invocation, and the most mails that a crash can double."""
    analytics_interval: str = catalog.ANALYTICS.default_interval
    """Go duration syntax. It is where the rule starts from; what the EventBridge console says later holds."""
    fraud_detection_interval: str = catalog.FRAUD.default_interval
    public_base_url: str | None = None
    """Where links in mails begin when a campaign names no base of its own."""

    @property
    def stack_name(self) -> str:
        return f"campaign-jobs-{self.name}"

    def resource_name(self, part: str) -> str:
        return f"{self.stack_name}-{part}"

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

    def _wrong(self) -> Wrong:
        yield from checked(
            self,
            name=(matches(r"[a-z][a-z0-9]{0,15}", self.name), "1 to 16 lower-case letters and digits"),
            log_retention_days=(
                self.log_retention_days in LOG_RETENTION_DAYS,
                f"one of {LOG_RETENTION_DAYS}",
            ),
            alarm_recipients=(
                all(parses(settings.email_address, address) for address in self.alarm_recipients),
                "email addresses",
            ),
            kafka_worker_pool_size=(whole(self.kafka_worker_pool_size, 1, 100), "1 to 100"),
            retain_data=(isinstance(self.retain_data, bool), "True or False"),
            unsubscribe_keys_secret_arn=(
                self.unsubscribe_keys_secret_arn is None
                or matches(_WHOLE_ARN, self.unsubscribe_keys_secret_arn),
                "the whole ARN of a Secrets Manager secret",
            ),
        )
        for part in ("network", "kafka", "database", "sending", "retention", "unsubscribe_domain"):
            value = getattr(self, part)
            if value is not None:
                yield from ((f"{part}.{setting}", *rest) for setting, *rest in value.wrong())
        for setting, parse in _PARSED_BY_THE_FUNCTIONS.items():
            value = getattr(self, setting)
            if value is not None and not parses(parse, value):
                yield setting, value, (parse.__doc__ or "").strip()
        yield from self._wrong_together()

    def _wrong_together(self) -> Wrong:
        """What is wrong between settings that are each right."""
        kafka, network = self.kafka, self.network
        if isinstance(kafka, NewKafka) and whole(kafka.brokers, 2, 30):
            zones = network.availability_zones
            count = zones if isinstance(zones, int) else len(zones)
            if count > 0 and kafka.brokers % count:
                yield "kafka.brokers", kafka.brokers, f"a multiple of the {count} zones of the network"


_PARSED_BY_THE_FUNCTIONS: Final[Mapping[str, Callable[[str], object]]] = {
    "kafka_job_topic": settings.topic_name,
    "kafka_job_consumer_group": settings.topic_name,
    "analytics_interval": settings.schedule_interval,
    "fraud_detection_interval": settings.schedule_interval,
    "public_base_url": settings.http_url,
}
