"""The doctor finds what is wrong, and says what to do about it."""

import dataclasses
import json
from collections.abc import Iterator
from datetime import timedelta

import boto3
import psycopg
import pytest

from campaign_jobs import catalog
from campaign_jobs.settings import KafkaSettings
from campaign_jobs_cli import targets
from campaign_jobs_cli.app import run
from campaign_jobs_cli.doctor import CHECKS, Finding, Health
from campaign_jobs_cli.targets import Target
from local.aws import AccountSettings, AwsStandIn
from local.aws.preparation import catalog_queues, prepare
from local.control import Control
from local.kafka import KafkaBroker
from local.schedules import Schedule


class Nothing:
    def invoke(self, event: object) -> None:  # noqa: ARG002
        raise AssertionError("nobody invokes it")


@pytest.fixture
def target(aws: AwsStandIn, database_url: str, kafka_broker: KafkaBroker, topic: str) -> Iterator[Target]:
    prepare(boto3.client("sesv2"), boto3.client("sqs"), ["example.com"], catalog_queues())
    rules = [
        Schedule(f"campaign-jobs-local-{each.name}", timedelta(hours=1), Nothing())
        for each in catalog.SCHEDULED_JOB_TYPES
    ]
    with Control([], [], rules) as control:

        def client(service: str) -> object:
            endpoint = control.url if service in ("lambda", "events") else aws.endpoint_url
            return boto3.client(service, endpoint_url=endpoint)  # type: ignore[call-overload]

        yield Target(
            name="local",
            region="eu-central-1",
            kafka=KafkaSettings(kafka_brokers=kafka_broker.bootstrap_servers, kafka_job_topic=topic),
            consumer_group=f"group-of-{topic}",
            default_sender="hello@example.com",
            conninfo=lambda: database_url,
            make_client=client,
        )


def findings(target: Target, check: str) -> dict[str, Finding]:
    return {finding.part: finding for finding in CHECKS[check](target)}


def test_a_database_that_is_up_to_date_is_fine(target: Target) -> None:
    found = findings(target, "PostgreSQL")
    assert {finding.health for finding in found.values()} == {Health.FINE}
    assert {"PostgreSQL", "schema", "outbox"} <= found.keys()


def test_a_missing_migration_and_an_outbox_that_nobody_empties(
    target: Target, connection: psycopg.Connection[tuple[object, ...]]
) -> None:
    connection.execute("DELETE FROM _yoyo_migration WHERE migration_id LIKE '0002%'")
    connection.execute(
        "INSERT INTO campaign_jobs.outbox (event_id, partition_key, event, created_at)"
        " VALUES ('1', 'k', %s, now() - interval '1 hour')",
        [json.dumps({"id": "1"})],
    )
    connection.commit()
    found = findings(target, "PostgreSQL")
    assert found["schema"].health is Health.BROKEN and "0002" in found["schema"].found
    assert found["outbox"].health is Health.BROKEN and "1 events wait" in found["outbox"].found
    assert found["outbox"].what_to_do is not None and "relay" in found["outbox"].what_to_do


def test_what_was_found_before_something_fails_is_told(
    target: Target,
    connection: psycopg.Connection[tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    connection.execute("DELETE FROM _yoyo_migration WHERE migration_id LIKE '0004%'")
    connection.execute("DROP TABLE campaign_jobs.outbox CASCADE")
    connection.commit()
    monkeypatch.setattr(targets, "find", lambda name, *, directory: target)
    assert run(["doctor", "--output", "json"]) == 1
    found = [(row["part"], row["what_to_do"]) for row in json.loads(capsys.readouterr().out)]
    assert ("schema", "deploy the stack of this release") in found
    assert ("PostgreSQL", "look at the network, and at what you may do") in found


def test_groups_without_members_are_broken(target: Target) -> None:
    found = findings(target, "Kafka")
    assert found["Kafka"].health is Health.FINE
    groups = [finding for part, finding in found.items() if part.startswith("group")]
    assert len(groups) == 5
    assert {finding.health for finding in groups} == {Health.BROKEN}


def test_mappings_that_are_not_there_are_broken(target: Target) -> None:
    assert {finding.health for finding in findings(target, "mappings").values()} == {Health.BROKEN}


def test_a_disabled_rule_is_a_warning_but_for_relay(target: Target) -> None:
    assert {finding.health for finding in findings(target, "rules").values()} == {Health.FINE}
    for job_type in ("fraud", "relay"):
        target.client("events").disable_rule(Name=target.resource_name(job_type))
    found = findings(target, "rules")
    assert found["rule of fraud"].health is Health.WARNING
    assert found["rule of relay"].health is Health.BROKEN
    assert found["rule of relay"].what_to_do == "campaign-jobs resume relay"


def test_what_to_do_names_the_environment(target: Target) -> None:
    sqs = target.client("sqs")
    deployed = dataclasses.replace(target, name="elsewhere")
    prepare(target.client("sesv2"), sqs, [], catalog_queues(prefix="campaign-jobs-elsewhere"))
    sqs.send_message(QueueUrl=deployed.queue_url("email-dead-letters"), MessageBody="{}")
    what = findings(deployed, "dead letters")["email-dead-letters"].what_to_do
    assert what == "campaign-jobs --env elsewhere dead-letters list"


def test_dead_letters_are_a_warning(target: Target) -> None:
    sqs = target.client("sqs")
    sqs.purge_queue(QueueUrl=target.queue_url("reward-dead-letters"))
    assert findings(target, "dead letters")["reward-dead-letters"].health is Health.FINE
    sqs.send_message(QueueUrl=target.queue_url("reward-dead-letters"), MessageBody="{}")
    found = findings(target, "dead letters")["reward-dead-letters"]
    assert (found.health, found.found) == (Health.WARNING, "1 messages")


def test_failed_runs_are_a_warning(target: Target) -> None:
    queue_url = target.queue_url("fraud-failed-runs")
    target.client("sqs").send_message(QueueUrl=queue_url, MessageBody="{}")
    found = {part: finding for part, finding in findings(target, "dead letters").items() if "failed" in part}
    assert found.keys() == {"analytics-failed-runs", "fraud-failed-runs", "relay-failed-runs"}
    assert found["analytics-failed-runs"].health is Health.FINE
    assert found["fraud-failed-runs"].health is Health.WARNING
    assert found["fraud-failed-runs"].what_to_do == "look at the log of fraud"


def test_a_paused_account_is_broken(target: Target, aws: AwsStandIn) -> None:
    assert {finding.health for finding in findings(target, "SES").values()} == {Health.FINE}
    aws.set_account(AccountSettings(sending_enabled=False))
    assert findings(target, "SES")["SES"].health is Health.BROKEN


def test_a_group_whose_heartbeats_stay_away_is_broken(
    target: Target, connection: psycopg.Connection[tuple[object, ...]]
) -> None:
    group = f"{target.consumer_group}-email"
    connection.execute(
        "INSERT INTO campaign_jobs.heartbeats (consumer_group, topic, partition, published_at)"
        " VALUES (%(group)s, 't', 0, now()), (%(group)s, 't', 1, now() - interval '1 hour')",
        {"group": group},
    )
    connection.commit()
    found = findings(target, "heartbeats")
    assert found[f"heartbeat {group}"].health is Health.BROKEN
    assert found[f"heartbeat {target.consumer_group}-reward"].health is Health.WARNING
