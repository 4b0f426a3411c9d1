"""`campaign-jobs doctor`: every part of an environment, one line each, and what to do about a red one."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

import psycopg
import typer
from botocore.exceptions import BotoCoreError, ClientError
from confluent_kafka import ConsumerGroupState, KafkaException
from rich.text import Text

from campaign_jobs import catalog
from campaign_jobs.database import migrations
from campaign_jobs_cli import kafka, session
from campaign_jobs_cli.errors import CommandError, ExitCode
from campaign_jobs_cli.lag.command import LATE_SECONDS
from campaign_jobs_cli.mappings import mappings_of
from campaign_jobs_cli.output import duration
from campaign_jobs_cli.targets import Connection, Target


class Health(StrEnum):
    FINE = "fine"
    WARNING = "warning"
    BROKEN = "broken"


_STYLES: Final = {Health.FINE: "green", Health.WARNING: "yellow", Health.BROKEN: "bold red"}


@dataclass(frozen=True)
class Finding:
    part: str
    health: Health
    found: str
    what_to_do: str | None = None


def doctor(context: typer.Context) -> None:
    """Look at every part of the environment, and say what to do about what is not as it should be.

    Exit code 1 if anything is broken.
    """
    opened = session.of(context)
    target, output = opened.target, opened.output
    with output.progress(f"Looking at {target.name}", len(CHECKS)) as advance:
        findings = []
        for part, check in CHECKS.items():
            findings += _checked(part, check, target)
            advance()
    rows = [asdict(finding) for finding in findings]
    if output.format == "table":
        rows = [
            {**row, "health": Text(finding.health, style=_STYLES[finding.health])}
            for row, finding in zip(rows, findings, strict=True)
        ]
    output.rows(rows, columns=("part", "health", "found", "what_to_do"))
    if any(finding.health is Health.BROKEN for finding in findings):
        raise typer.Exit(ExitCode.FAILED)


def _checked(part: str, check: Callable[[Target], Iterator[Finding]], target: Target) -> list[Finding]:
    found: list[Finding] = []
    try:
        # Into a list that is there before: what was found until something fails may be its cause.
        found.extend(check(target))
    except CommandError as error:
        found.append(Finding(part, Health.BROKEN, str(error), "look at the network, and at who you are"))
    except (BotoCoreError, ClientError, KafkaException, psycopg.Error) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        found.append(Finding(part, Health.BROKEN, first_line, "look at the network, and at what you may do"))
    return found


def check_database(target: Target) -> Iterator[Finding]:
    with target.database() as connection:
        row = connection.execute("SELECT current_setting('server_version') AS version").fetchone()
        assert row is not None
        yield Finding("PostgreSQL", Health.FINE, f"version {row['version']}")
        yield _schema(connection)
        yield from _waiting(connection)
        yield from _watermarks(connection, target)


def _schema(connection: Connection) -> Finding:
    row = connection.execute("SELECT to_regclass('_yoyo_migration') IS NOT NULL AS there").fetchone()
    applied: set[str] = set()
    if row is not None and row["there"]:
        rows = connection.execute("SELECT migration_id FROM _yoyo_migration").fetchall()
        applied = {row["migration_id"] for row in rows}
    ours = migrations.names()
    if missing := [name for name in ours if name not in applied]:
        text = f"{len(missing)} of {len(ours)} migrations are missing, the first is {missing[0]}"
        return Finding("schema", Health.BROKEN, text, "deploy the stack of this release")
    if newer := applied - set(ours):
        return Finding(
            "schema",
            Health.WARNING,
            f"{len(newer)} migrations are newer than this command",
            "use the command of the release that is deployed",
        )
    return Finding("schema", Health.FINE, f"all {len(ours)} migrations")


def _waiting(connection: Connection) -> Iterator[Finding]:
    row = connection.execute(
        "SELECT count(*) AS waiting, extract(epoch FROM now() - min(created_at))::float8 AS age,"
        " (SELECT count(*) FROM campaign_jobs.outbox WHERE refused IS NOT NULL) AS refused"
        " FROM campaign_jobs.outbox WHERE published_at IS NULL AND refused IS NULL"
    ).fetchone()
    assert row is not None
    if row["waiting"] and row["age"] > LATE_SECONDS:
        found = f"{row['waiting']} events wait, the oldest for {duration(row['age'])}"
        yield Finding("outbox", Health.BROKEN, found, "look at relay: its rule, its log, Kafka")
    else:
        yield Finding("outbox", Health.FINE, f"{row['waiting']} events wait")
    if row["refused"]:
        found = f"{row['refused']} events can never be published"
        yield Finding(
            "outbox", Health.WARNING, found, "see outbox.refused; whoever wrote them must shorten them"
        )


def _watermarks(connection: Connection, target: Target) -> Iterator[Finding]:
    from campaign_jobs.relay.schedules import DISABLED, JobProgress

    rows = connection.execute(
        "SELECT known.job_type, known.schedule, known.since, progress.watermark, progress.updated_at AS ran_at,"
        " clock_timestamp() AS now FROM campaign_jobs.job_schedules AS known"
        " LEFT JOIN campaign_jobs.job_watermarks AS progress USING (job_type) ORDER BY known.job_type"
    ).fetchall()
    for row in rows:
        progress = JobProgress(row["schedule"], row["since"], row["watermark"], row["ran_at"], row["now"])
        late = progress.age().total_seconds()
        found = (
            f"{row['schedule']}, watermark {row['watermark'] and row['watermark'].isoformat('T', 'seconds')}"
        )
        part = f"schedule of {row['job_type']}"
        if row["schedule"] == DISABLED:
            yield Finding(part, Health.WARNING, "disabled", f"{target.command} resume {row['job_type']}")
        elif late > LATE_SECONDS:
            what = f"look at the log of {row['job_type']}, and at its failed runs"
            yield Finding(part, Health.BROKEN, f"{found}, {duration(late)} late", what)
        else:
            yield Finding(part, Health.FINE, found)


def check_kafka(target: Target) -> Iterator[Finding]:
    client = kafka.admin(target)
    partitions = kafka.partitions(target, client)
    topic = f"topic {target.kafka.kafka_job_topic} with {len(partitions)} partitions"
    if len(partitions) < catalog.TOPIC_PARTITIONS:
        what = f"make them {catalog.TOPIC_PARTITIONS}: they cap how many batches run at a time"
        yield Finding("Kafka", Health.WARNING, topic, what)
    else:
        yield Finding("Kafka", Health.FINE, topic)
    groups = {
        lane.consumer_group(target.consumer_group): job_type
        for lane, job_type in catalog.JOB_TYPE_BY_LANE.items()
    }
    for group, answer in client.describe_consumer_groups(list(groups), request_timeout=15).items():
        state, members = answer.result().state, len(answer.result().members)
        found = f"{state.name.lower().replace('_', ' ')}, {members} members"
        # A mapping that scales takes its members along, for some seconds.
        health = (
            Health.BROKEN if state in (ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD) else Health.FINE
        )
        what = f"see its mapping below; {target.command} resume {groups[group].name}"
        yield Finding(f"group {group}", health, found, None if health is Health.FINE else what)


def check_heartbeats(target: Target) -> Iterator[Finding]:
    with target.database() as connection:
        rows = connection.execute(
            "SELECT consumer_group, extract(epoch FROM clock_timestamp()"
            " - min(coalesce(published_at, awaited_since)))::float8 AS age"
            " FROM campaign_jobs.heartbeats GROUP BY consumer_group"
        ).fetchall()
    ages = {row["consumer_group"]: row["age"] for row in rows}
    for job_type in catalog.EVENT_JOB_TYPES:
        for lane in job_type.lanes:
            group = lane.consumer_group(target.consumer_group)
            if group not in ages:
                what = "look at relay: its rule, its log, Kafka"
                yield Finding(f"heartbeat {group}", Health.WARNING, "none so far", what)
            elif ages[group] > LATE_SECONDS:
                what = f"{target.command} lag; then the log of {job_type.name}"
                found = f"{duration(ages[group])} ago"
                yield Finding(f"heartbeat {group}", Health.BROKEN, found, what)
            else:
                yield Finding(f"heartbeat {group}", Health.FINE, f"{duration(ages[group])} ago")


def check_queues(target: Target) -> Iterator[Finding]:
    for job_type in (*catalog.EVENT_JOB_TYPES, *catalog.QUEUE_JOB_TYPES):
        yield _empty(target, f"{job_type.name}-dead-letters", f"{target.command} dead-letters list")
    for scheduled in catalog.SCHEDULED_JOB_TYPES:
        yield _empty(target, f"{scheduled.name}-failed-runs", f"look at the log of {scheduled.name}")


def _empty(target: Target, name: str, what_to_do: str) -> Finding:
    sqs = target.client("sqs")
    attributes = sqs.get_queue_attributes(
        QueueUrl=target.queue_url(name), AttributeNames=["ApproximateNumberOfMessages"]
    )["Attributes"]
    if count := int(attributes["ApproximateNumberOfMessages"]):
        return Finding(name, Health.WARNING, f"{count} messages", what_to_do)
    return Finding(name, Health.FINE, "no messages")


def check_ses(target: Target) -> Iterator[Finding]:
    account = target.client("sesv2").get_account()
    quota = account["SendQuota"]
    found = (
        f"{quota['MaxSendRate']:g} mails a second, {quota['SentLast24Hours']:,.0f} of "
        f"{quota['Max24HourSend']:,.0f} sent in 24 hours"
    )
    if not account["SendingEnabled"] or account.get("EnforcementStatus") not in (None, "HEALTHY"):
        found = f"sending {'on' if account['SendingEnabled'] else 'off'}, {account.get('EnforcementStatus')}"
        yield Finding(
            "SES", Health.BROKEN, found, "SES console, account dashboard; mail waits in Kafka meanwhile"
        )
    elif quota["Max24HourSend"] > 0 and quota["SentLast24Hours"] > 0.8 * quota["Max24HourSend"]:
        yield Finding("SES", Health.WARNING, found, "ask for a higher quota before it is used up")
    elif not account.get("ProductionAccessEnabled", True):
        what = "ask for production access: until then mail goes to verified addresses only"
        yield Finding("SES", Health.WARNING, f"sandbox, {found}", what)
    else:
        yield Finding("SES", Health.FINE, found)
    yield _identity(target)


def _identity(target: Target) -> Finding:
    ses, domain = target.client("sesv2"), target.default_sender.rpartition("@")[2]
    part = f"SES identity {domain}"
    try:
        identity = ses.get_email_identity(EmailIdentity=domain)
    except ses.exceptions.NotFoundException:
        return Finding(part, Health.BROKEN, "is not there", "let one environment own it, or create it")
    if identity.get("VerifiedForSendingStatus"):
        return Finding(part, Health.FINE, "verified")
    return Finding(
        part, Health.BROKEN, "not verified", "put the stack's Dkim1 to Dkim3 into the domain's DNS"
    )


def check_mappings(target: Target) -> Iterator[Finding]:
    for name in (each.name for each in (*catalog.EVENT_JOB_TYPES, *catalog.QUEUE_JOB_TYPES)):
        mappings = mappings_of(target, name)
        off = [mapping.source for mapping in mappings if mapping.state != "Enabled"]
        part = f"mappings of {name}"
        if not mappings:
            yield Finding(part, Health.BROKEN, "there are none", "deploy the stack")
        elif off:
            found = f"not enabled: {', '.join(off)}"
            yield Finding(part, Health.WARNING, found, f"{target.command} resume {name}")
        else:
            yield Finding(part, Health.FINE, f"all {len(mappings)} enabled")


def check_rules(target: Target) -> Iterator[Finding]:
    events = target.client("events")
    for job_type in catalog.SCHEDULED_JOB_TYPES:
        rule: dict[str, Any] = events.describe_rule(Name=target.resource_name(job_type.name))
        found = f"{rule['ScheduleExpression']}, {rule['State'].lower()}"
        if rule["State"] == "DISABLED":
            health = Health.BROKEN if job_type is catalog.RELAY else Health.WARNING
            what = f"{target.command} resume {job_type.name}"
            yield Finding(f"rule of {job_type.name}", health, found, what)
        else:
            yield Finding(f"rule of {job_type.name}", Health.FINE, found)


CHECKS: Final[dict[str, Callable[[Target], Iterator[Finding]]]] = {
    "PostgreSQL": check_database,
    "Kafka": check_kafka,
    "heartbeats": check_heartbeats,
    "mappings": check_mappings,
    "rules": check_rules,
    "dead letters": check_queues,
    "SES": check_ses,
}
