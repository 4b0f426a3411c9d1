"""Functions, queues and rules, as the catalog and the functions' settings have them."""

from collections import Counter

import pytest

from campaign_jobs import catalog, settings
from tests.infrastructure.synthesis import Synthesis

EVENT_JOB_TYPES = {job_type.name: job_type for job_type in catalog.EVENT_JOB_TYPES}
SCHEDULED_JOB_TYPES = {job_type.name: job_type for job_type in catalog.SCHEDULED_JOB_TYPES}
QUEUE_JOB_TYPES = {job_type.name: job_type for job_type in catalog.QUEUE_JOB_TYPES}
WEB_FUNCTIONS = {function.name: function for function in catalog.WEB_FUNCTIONS}
DEPLOYMENT_FUNCTIONS = {catalog.MIGRATIONS.name: catalog.MIGRATIONS}
FUNCTIONS = {
    **EVENT_JOB_TYPES,
    **SCHEDULED_JOB_TYPES,
    **QUEUE_JOB_TYPES,
    **WEB_FUNCTIONS,
    **DEPLOYMENT_FUNCTIONS,
}
DAYS_14 = 14 * 24 * 60 * 60


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_gets_exactly_what_its_settings_read(synthesis: Synthesis, name: str) -> None:
    _, function = synthesis.function(name)
    given = set(function["Properties"]["Environment"]["Variables"])
    read = settings.BY_FUNCTION[name].environment_names()
    required = {variable for variable, must_be_there in read.items() if must_be_there}
    assert required <= given <= set(read)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_each_function_gets_can_be_loaded(synthesis: Synthesis, name: str) -> None:
    settings.BY_FUNCTION[name].load(synthesis.environ(name))


def test_every_function_of_the_settings_is_deployed_and_no_other(synthesis: Synthesis) -> None:
    prefix = synthesis.environment.resource_name("")
    deployed = [
        function["Properties"]["FunctionName"].removeprefix(prefix)
        for function in synthesis.resources("AWS::Lambda::Function").values()
        # CDK brings functions of its own for custom resources; they have no name.
        if "FunctionName" in function["Properties"]
    ]
    assert sorted(deployed) == sorted(settings.BY_FUNCTION) == sorted(FUNCTIONS)


def test_outgoing_requests_are_never_exempted_from_the_guard(synthesis: Synthesis) -> None:
    assert "WEBHOOK_TEST" not in str(synthesis.template)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_runs_as_the_catalog_has_it(synthesis: Synthesis, name: str) -> None:
    job_type = FUNCTIONS[name]
    _, function = synthesis.function(name)
    properties = function["Properties"]
    assert properties["Runtime"] == "python3.13"
    assert properties["Architectures"] == ["arm64"]
    assert properties["Handler"] == "handler.handler"
    assert properties["Timeout"] == job_type.timeout_seconds
    assert properties["MemorySize"] == job_type.memory_mb
    assert len(properties["Layers"]) == 2
    # A new account's quota of ten leaves nothing to reserve.
    assert "ReservedConcurrentExecutions" not in properties


def test_no_two_functions_share_a_role_or_a_security_group(synthesis: Synthesis) -> None:
    functions = [synthesis.function(name)[1]["Properties"] for name in FUNCTIONS]
    roles = {function["Role"]["Fn::GetAtt"][0] for function in functions}
    groups = {str(function["VpcConfig"]["SecurityGroupIds"]) for function in functions}
    assert len(roles) == len(groups) == len(FUNCTIONS)


@pytest.mark.parametrize("job_type", EVENT_JOB_TYPES.values(), ids=EVENT_JOB_TYPES)
def test_each_lane_has_a_retry_queue_that_delivers_one_at_a_time(
    synthesis: Synthesis, job_type: catalog.EventJobType
) -> None:
    dead_letters, _ = synthesis.queue(f"{job_type.name}-dead-letters")
    for lane in job_type.lanes:
        queue_id, queue = synthesis.queue(f"{lane.name}-retry")
        assert queue["Properties"]["RedrivePolicy"] == {
            "deadLetterTargetArn": {"Fn::GetAtt": [dead_letters, "Arn"]},
            "maxReceiveCount": 1000,
        }
        visibility = queue["Properties"]["VisibilityTimeout"]
        assert job_type.timeout_seconds < visibility <= job_type.timeout_seconds + 60
        (mapping,) = (
            mapping["Properties"]
            for mapping in synthesis.resources("AWS::Lambda::EventSourceMapping").values()
            if mapping["Properties"]["EventSourceArn"] == {"Fn::GetAtt": [queue_id, "Arn"]}
        )
        assert mapping == {
            "BatchSize": 1,
            "EventSourceArn": {"Fn::GetAtt": [queue_id, "Arn"]},
            "FunctionName": synthesis.alias(job_type.name, lane.name),
            "ScalingConfig": {"MaximumConcurrency": 2},
        }


def test_both_mappings_of_a_lane_invoke_the_alias_that_says_so(synthesis: Synthesis) -> None:
    without_lanes = [{"Ref": synthesis.function(name)[0]} for name in QUEUE_JOB_TYPES]
    invoked = [
        str(mapping["Properties"]["FunctionName"])
        for mapping in synthesis.resources("AWS::Lambda::EventSourceMapping").values()
        if mapping["Properties"]["FunctionName"] not in without_lanes
    ]
    # From Kafka and from the retry queue.
    assert Counter(invoked) == {
        str(synthesis.alias(job_type.name, lane.name)): 2
        for job_type in catalog.EVENT_JOB_TYPES
        for lane in job_type.lanes
    }
    versions = [
        alias["Properties"]["FunctionVersion"] for alias in synthesis.resources("AWS::Lambda::Alias").values()
    ]
    assert versions == ["$LATEST"] * (len(invoked) // 2)


def test_the_queues_are_those_of_the_catalog(synthesis: Synthesis) -> None:
    prefix = synthesis.environment.resource_name("")
    names = [
        queue["Properties"]["QueueName"].removeprefix(prefix)
        for queue in synthesis.resources("AWS::SQS::Queue").values()
    ]
    assert sorted(names) == sorted(
        [
            *(f"{job_type.name}-dead-letters" for job_type in catalog.EVENT_JOB_TYPES),
            *(f"{lane.name}-retry" for job_type in catalog.EVENT_JOB_TYPES for lane in job_type.lanes),
            *(f"{job_type.name}-failed-runs" for job_type in catalog.SCHEDULED_JOB_TYPES),
            *(
                name
                for job_type in catalog.QUEUE_JOB_TYPES
                for name in (job_type.name, f"{job_type.name}-dead-letters")
            ),
        ]
    )


def test_queues_are_encrypted_patient_and_take_the_largest_messages(synthesis: Synthesis) -> None:
    for queue in synthesis.resources("AWS::SQS::Queue").values():
        assert queue["Properties"]["SqsManagedSseEnabled"] is True
        assert queue["Properties"]["MessageRetentionPeriod"] == DAYS_14
        assert queue["Properties"]["MaximumMessageSize"] == 1024 * 1024


def test_queues_refuse_whoever_comes_without_tls(synthesis: Synthesis) -> None:
    refusing = {
        queue["Ref"]
        for policy in synthesis.resources("AWS::SQS::QueuePolicy").values()
        for queue in policy["Properties"]["Queues"]
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Deny"
        and statement["Action"] == "sqs:*"
        and statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        and statement["Principal"] == {"AWS": "*"}
    }
    assert refusing == set(synthesis.resources("AWS::SQS::Queue"))


@pytest.mark.parametrize(
    ("name", "expression"),
    [("analytics", "rate(1 hour)"), ("fraud", "rate(15 minutes)"), ("relay", "rate(1 minute)")],
)
def test_each_scheduled_job_has_a_rule_to_tune_in_the_console(
    synthesis: Synthesis, name: str, expression: str
) -> None:
    _, rule = synthesis.named("AWS::Events::Rule", "Name", name)
    assert rule["Properties"]["Name"] == f"campaign-jobs-{synthesis.environment.name}-{name}"
    assert rule["Properties"]["ScheduleExpression"] == expression
    assert rule["Properties"]["State"] == "ENABLED"
    function, _ = synthesis.function(name)
    (target,) = rule["Properties"]["Targets"]
    assert target["Arn"] == {"Fn::GetAtt": [function, "Arn"]}


def test_there_is_no_rule_besides_the_scheduled_jobs_and_the_one_for_ses(synthesis: Synthesis) -> None:
    assert len(synthesis.resources("AWS::Events::Rule")) == len(SCHEDULED_JOB_TYPES) + 1


@pytest.mark.parametrize("name", SCHEDULED_JOB_TYPES)
def test_a_run_that_fails_is_tried_again_and_then_kept(synthesis: Synthesis, name: str) -> None:
    failed_runs, _ = synthesis.queue(f"{name}-failed-runs")
    queue_arn = {"Fn::GetAtt": [failed_runs, "Arn"]}
    _, rule = synthesis.named("AWS::Events::Rule", "Name", name)
    # EventBridge's own part: handing the event to Lambda.
    (target,) = rule["Properties"]["Targets"]
    assert target["DeadLetterConfig"] == {"Arn": queue_arn}
    # Lambda's part: running the function.
    function, _ = synthesis.function(name)
    (asynchronous,) = (
        configuration["Properties"]
        for configuration in synthesis.resources("AWS::Lambda::EventInvokeConfig").values()
        if configuration["Properties"]["FunctionName"] == {"Ref": function}
    )
    assert asynchronous["DestinationConfig"] == {"OnFailure": {"Destination": queue_arn}}
    assert asynchronous["MaximumRetryAttempts"] == target["RetryPolicy"]["MaximumRetryAttempts"] == 2
    for age in (asynchronous["MaximumEventAgeInSeconds"], target["RetryPolicy"]["MaximumEventAgeInSeconds"]):
        assert age == SCHEDULED_JOB_TYPES[name].max_tick_age_seconds
