"""What there is to watch is watched, rings when it should, reaches people, and has a runbook entry."""

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from campaign_jobs import catalog
from campaign_jobs.email.sending import LONGEST_CLAIM
from campaign_jobs.reward.decisions import RETRY_JITTER, RETRY_SCHEDULE
from campaign_jobs.worker.queues import MAX_DELAY_SECONDS
from campaign_jobs.worker.settle import backoff
from infra import environments
from tests.infrastructure.synthesis import REPOSITORY, Synthesis
from tests.infrastructure.watching import (
    HOUR,
    LANES,
    MINUTE,
    SILENCE,
    Alarm,
    alarms_of,
    resources,
    synthesise_watching,
)
from tests.integration.invocations import settings_of

RUNBOOK = (REPOSITORY / "docs" / "runbook.md").read_text()

# What is watched.


def test_there_is_an_alarm_for_all_there_is_and_no_other(synthesis: Synthesis) -> None:
    """By what the stack holds: a function, a queue or a mapping that is new wants its alarms."""
    prefix = synthesis.environment.resource_name("")
    functions = {
        function["Properties"]["FunctionName"].removeprefix(prefix)
        for function in synthesis.resources("AWS::Lambda::Function").values()
        if "FunctionName" in function["Properties"]
    }
    # The deployment that calls it fails with it.
    functions.remove(catalog.MIGRATIONS.name)
    queues = {
        logical_id: queue["Properties"]["QueueName"].removeprefix(prefix)
        for logical_id, queue in synthesis.resources("AWS::SQS::Queue").items()
    }
    mappings = [
        mapping["Properties"] for mapping in synthesis.resources("AWS::Lambda::EventSourceMapping").values()
    ]
    polled = {
        queues[mapping["EventSourceArn"]["Fn::GetAtt"][0]] for mapping in mappings if "Topics" not in mapping
    }
    groups = {
        mapping["AmazonManagedKafkaEventSourceConfig"]["ConsumerGroupId"]
        for mapping in mappings
        if "Topics" in mapping
    }
    kept = set(queues.values()) - polled
    alarms = alarms_of(synthesis.template, synthesis.environment)
    assert set(alarms) == {
        *(f"errors-{function}" for function in functions),
        *(f"throttles-{function}" for function in functions),
        *(f"queue-age-{queue}" for queue in polled),
        *(
            f"{kind}-{queue.removesuffix(f'-{kind}')}"
            for queue in kept
            for kind in ("dead-letters", "failed-runs")
            if queue.endswith(kind)
        ),
        *(f"heartbeat-age-{lane}" for lane in LANES),
        *(f"retry-age-{lane}" for lane in LANES),
        *(f"watermark-age-{job_type}" for job_type in ("analytics", "fraud")),
        *(f"batch-stopped-{fed}" for fed in {*(job_type.name for job_type in LANES.values()), "feedback"}),
        "outbox-age",
        "bounce-rate",
        "complaint-rate",
    }
    assert len(kept) == len([name for name in alarms if name.startswith(("dead-letters", "failed-runs"))])
    assert groups == {
        alarm.dimensions["consumer_group"] for alarm in alarms.values() if alarm.kind == "heartbeat-age"
    }
    for alarm in alarms.values():
        if alarm.properties["Namespace"] == "AWS/SQS":
            assert alarm.dimensions["QueueName"].removeprefix(prefix) in queues.values()
        if alarm.properties["Namespace"] == "AWS/Lambda":
            assert alarm.dimensions == {"FunctionName": f"{prefix}{alarm.which}"}


def test_each_alarm_carries_the_environment_and_costs_one_metric(synthesis: Synthesis) -> None:
    prefix = f"campaign-jobs-{synthesis.environment.name}-"
    for alarm in synthesis.resources("AWS::CloudWatch::Alarm").values():
        assert alarm["Properties"]["AlarmName"].startswith(prefix)
        # Each metric of an expression would cost as much as an alarm.
        assert "MetricName" in alarm["Properties"] and "Metrics" not in alarm["Properties"]


def test_going_bad_and_getting_well_go_to_the_topic(synthesis: Synthesis) -> None:
    topic, _ = synthesis.named("AWS::SNS::Topic", "TopicName", "alarms")
    for alarm in synthesis.resources("AWS::CloudWatch::Alarm").values():
        assert alarm["Properties"]["AlarmActions"] == alarm["Properties"]["OKActions"] == [{"Ref": topic}]
        assert alarm["Properties"].get("ActionsEnabled", True) is True
    outputs = [output["Value"] for output in synthesis.template["Outputs"].values()]
    assert {"Ref": topic} in outputs


def test_an_alarm_on_silence_waits_for_what_ends_it(dev: Synthesis) -> None:
    """Else a first deployment, whose cluster takes half an hour, would ring all along."""
    rule, _ = dev.named("AWS::Events::Rule", "Name", "relay")
    for alarm in alarms_of(dev.template, dev.environment).values():
        assert (rule in alarm.depends_on) is (SILENCE[alarm.kind] == "breaching")


def test_relay_knows_the_groups_and_may_read_the_rules_that_it_reports_of(synthesis: Synthesis) -> None:
    _, relay = synthesis.function("relay")
    given = relay["Properties"]["Environment"]["Variables"]
    assert given["KAFKA_JOB_CONSUMER_GROUP"] == synthesis.environment.kafka_job_consumer_group
    rules = {
        job_type: synthesis.named("AWS::Events::Rule", "Name", job_type.name)
        for job_type in catalog.JOB_TYPES_WITH_WATERMARK
    }
    for job_type, (_, rule) in rules.items():
        assert given[job_type.rule_name_setting] == rule["Properties"]["Name"]
    assert synthesis.granted("relay", "events:DescribeRule") == [
        {"Fn::GetAtt": [logical_id, "Arn"]} for logical_id, _ in rules.values()
    ]


# When it rings.


def test_silence_means_what_it_means_for_each_kind(alarms: dict[str, Alarm]) -> None:
    assert {alarm.kind: alarm.properties["TreatMissingData"] for alarm in alarms.values()} == SILENCE
    for alarm in alarms.values():
        assert alarm.properties["TreatMissingData"] == SILENCE[alarm.kind]


def test_one_late_minute_rings_nothing(alarms: dict[str, Alarm]) -> None:
    reported = [alarm for alarm in alarms.values() if SILENCE[alarm.kind] == "breaching"]
    # What relay reports each minute is looked at each minute, so that silence is noticed soon.
    assert {alarm.periods for alarm in reported} == {(MINUTE, 5, 5)}


def test_bulk_mail_may_wait_for_the_send_rate_and_nobody_else(alarms: dict[str, Alarm]) -> None:
    behind = {
        alarm.which: alarm.properties["Threshold"]
        for alarm in alarms.values()
        if alarm.kind == "heartbeat-age"
    }
    assert behind.pop("email-bulk") == 2 * HOUR
    assert set(behind.values()) == {5 * MINUTE}
    # Batches that wait for the rate fail, and are errors of the function.
    for kind in ("errors", "batch-stopped"):
        period, bad, of = alarms[f"{kind}-email"].periods
        assert period * of == 2 * HOUR and bad < of
        assert alarms[f"{kind}-position"].periods == (5 * MINUTE, 3, 5)
    assert alarms["throttles-email"].periods == (5 * MINUTE, 3, 5)


def test_an_error_that_nothing_follows_rings_at_once(alarms: dict[str, Alarm]) -> None:
    at_once = {
        alarm.which for alarm in alarms.values() if alarm.kind == "errors" and alarm.periods[1:] == (1, 1)
    }
    assert at_once == {"analytics", "fraud", "unsubscribe"}


def test_no_retry_that_goes_its_way_rings(alarms: dict[str, Alarm]) -> None:
    for lane, job_type in LANES.items():
        alarm = alarms[f"retry-age-{lane}"]
        settings = settings_of(job_type)
        waits = [
            max(backoff(spent, settings.retry_first_delay), LONGEST_CLAIM)
            for spent in range(job_type.max_attempts - 1)
        ]
        if job_type is catalog.REWARD:
            waits = [wait * (1 + RETRY_JITTER) for wait in RETRY_SCHEDULE]
            assert len(waits) == job_type.max_attempts - 1
        longest = (sum(waits, timedelta()) + settings.missing_row_patience).total_seconds()
        assert longest < alarm.properties["Threshold"] < 3 * longest + HOUR
        # While an event waits, a message comes every quarter of an hour; in between it must not seem well.
        period, bad, of = alarm.periods
        assert bad == 1 and period * (of - 1) >= MAX_DELAY_SECONDS
        assert alarms[f"queue-age-{lane}-retry"].properties["Threshold"] > MAX_DELAY_SECONDS


def test_no_run_that_takes_its_time_rings(alarms: dict[str, Alarm]) -> None:
    for job_type in catalog.JOB_TYPES_WITH_WATERMARK:
        threshold = alarms[f"watermark-age-{job_type.name}"].properties["Threshold"]
        assert 2 * job_type.timeout_seconds + MINUTE < threshold < HOUR


def test_a_single_dead_letter_rings_and_so_does_a_failed_run(alarms: dict[str, Alarm]) -> None:
    for alarm in alarms.values():
        if alarm.kind in ("dead-letters", "failed-runs"):
            assert alarm.properties["MetricName"] == "ApproximateNumberOfMessagesVisible"
            assert (alarm.properties["Threshold"], *alarm.periods[1:]) == (0, 1, 1)


def test_reputation_rings_before_ses_looks_into_it(alarms: dict[str, Alarm]) -> None:
    for kind, metric, review in (
        ("bounce-rate", "Reputation.BounceRate", 0.05),
        ("complaint-rate", "Reputation.ComplaintRate", 0.001),
    ):
        properties = alarms[kind].properties
        assert (properties["Namespace"], properties["MetricName"]) == ("AWS/SES", metric)
        # The account's: of a configuration set, SES keeps another.
        assert "Dimensions" not in properties
        assert 0.5 * review < properties["Threshold"] < review


def test_the_oldest_counts_and_every_error_and_too_much_is_above(alarms: dict[str, Alarm]) -> None:
    counted = {"errors": "Sum", "throttles": "Sum", "batch-stopped": "Sum"}
    counted |= {"bounce-rate": "Average", "complaint-rate": "Average"}
    for alarm in alarms.values():
        assert alarm.properties["Statistic"] == counted.get(alarm.kind, "Maximum")
        assert alarm.properties["ComparisonOperator"] == "GreaterThanThreshold"
        if counted.get(alarm.kind) == "Sum":
            assert alarm.properties["Threshold"] == 0


# Whom it reaches.


def test_recipients_get_mail() -> None:
    two = replace(environments.DEV, alarm_recipients=("one@example.com", "two@example.com"))
    subscriptions = resources(synthesise_watching(two), "AWS::SNS::Subscription")
    assert {
        (subscription["Properties"]["Protocol"], subscription["Properties"]["Endpoint"])
        for subscription in subscriptions
    } == {("email", "one@example.com"), ("email", "two@example.com")}


def test_without_recipients_there_is_the_topic_and_nobody_who_subscribes(
    watching: dict[str, Any], alarms: dict[str, Alarm]
) -> None:
    assert not environments.DEV.alarm_recipients
    assert not resources(watching, "AWS::SNS::Subscription")
    (topic,) = resources(watching, "AWS::SNS::Topic")
    assert topic["Properties"]["TopicName"] == "campaign-jobs-dev-alarms"
    assert alarms


def test_the_topic_is_encrypted_with_a_key_that_cloudwatch_may_use(watching: dict[str, Any]) -> None:
    (topic,) = resources(watching, "AWS::SNS::Topic")
    ((key_id, key),) = (
        (logical_id, resource)
        for logical_id, resource in watching["Resources"].items()
        if resource["Type"] == "AWS::KMS::Key"
    )
    assert topic["Properties"]["KmsMasterKeyId"] == {"Fn::GetAtt": [key_id, "Arn"]}
    assert key["Properties"]["EnableKeyRotation"] is True
    allowed = of_cloudwatch(key["Properties"]["KeyPolicy"])
    assert allowed["Action"] == ["kms:Decrypt", "kms:GenerateDataKey*"]
    only_for_our_alarms(allowed)


def test_cloudwatch_may_publish_and_nobody_without_tls(watching: dict[str, Any]) -> None:
    (policy,) = resources(watching, "AWS::SNS::TopicPolicy")
    document = policy["Properties"]["PolicyDocument"]
    (refused,) = (statement for statement in document["Statement"] if statement["Effect"] == "Deny")
    assert refused["Action"] == "sns:Publish" and refused["Principal"] == "*"
    assert refused["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    allowed = of_cloudwatch(document)
    assert allowed["Action"] == "sns:Publish"
    only_for_our_alarms(allowed)


def of_cloudwatch(document: dict[str, Any]) -> dict[str, Any]:
    ((statement),) = (
        statement
        for statement in document["Statement"]
        if statement["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
    )
    assert statement["Effect"] == "Allow"
    return dict(statement)


def only_for_our_alarms(statement: dict[str, Any]) -> None:
    condition = statement["Condition"]
    assert condition["StringEquals"] == {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}
    assert condition["ArnLike"]["aws:SourceArn"]["Fn::Join"][1][-1] == ":alarm:campaign-jobs-dev-*"


# What to do then.


def test_every_alarm_has_a_runbook_entry_and_every_entry_an_alarm(alarms: dict[str, Alarm]) -> None:
    entries = re.findall(r"^## (.+)$", RUNBOOK, flags=re.MULTILINE)
    assert len(entries) == len(set(entries))
    assert {alarm.kind for alarm in alarms.values()} == set(entries)
    for alarm in alarms.values():
        assert alarm.properties["AlarmDescription"].endswith(f" docs/runbook.md#{alarm.kind}")


@pytest.mark.parametrize("part", ["Means", "Users notice", "Look first", "Do", "Goes away"])
def test_every_entry_says_all_there_is_to_say(part: str) -> None:
    entries = re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)[1:]
    assert [entry.split("\n")[0] for entry in entries if entry.count(f"\n- **{part}") != 1] == []
