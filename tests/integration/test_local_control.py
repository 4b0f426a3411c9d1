"""The local system answers what operators ask of Lambda and EventBridge, and AWS's own SDK understands it."""

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import boto3
import pytest

from local.aws import AwsStandIn
from local.control import Control
from local.functions import FunctionFailed
from local.mappings.registered import RegisteredMapping
from local.mappings.sqs import SqsMapping
from local.schedules import Schedule

FUNCTION = "campaign-jobs-local-email"
RULE = "campaign-jobs-local-fraud"


class Recorder:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.invoked = threading.Event()

    def invoke(self, event: dict[str, Any]) -> Any:
        self.events.append(event)
        self.invoked.set()
        if "fail" in event:
            raise FunctionFailed("RuntimeError", "on purpose")
        return {"seen": len(self.events)}


@pytest.fixture
def function() -> Recorder:
    return Recorder()


@pytest.fixture
def mapping(aws: AwsStandIn, function: Recorder) -> Iterator[RegisteredMapping]:
    sqs = boto3.client("sqs")
    name = f"queue-{uuid.uuid4().hex}"
    url = sqs.create_queue(QueueName=name)["QueueUrl"]
    registered = RegisteredMapping(
        lambda: SqsMapping(sqs=sqs, queue_url=url, function=function, batch_size=1),
        function_name=FUNCTION,
        alias="email-bulk",
        queue_name=name,
        batch_size=1,
        batching_window_seconds=0,
    )
    with registered:
        yield registered


@pytest.fixture
def schedule(function: Recorder) -> Schedule:
    return Schedule(RULE, timedelta(milliseconds=5), function)


@pytest.fixture
def client(
    mapping: RegisteredMapping, schedule: Schedule, function: Recorder
) -> Iterator[Callable[[str], Any]]:
    with Control([(FUNCTION, function)], [mapping], [schedule]) as control:
        yield lambda service: boto3.client(
            service,  # type: ignore[call-overload]
            endpoint_url=control.url,
            region_name="us-east-1",
        )


def send(mapping: RegisteredMapping, body: str) -> None:
    sqs = boto3.client("sqs")
    url = sqs.get_queue_url(QueueName=mapping.event_source_arn.rpartition(":")[2])["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody=body)


def test_a_mapping_is_found_by_what_it_invokes(
    client: Callable[[str], Any], mapping: RegisteredMapping
) -> None:
    lambda_ = client("lambda")
    (found,) = lambda_.list_event_source_mappings(FunctionName=f"{FUNCTION}:email-bulk")[
        "EventSourceMappings"
    ]
    assert (found["UUID"], found["State"], found["BatchSize"]) == (mapping.uuid, "Enabled", 1)
    assert found["FunctionArn"].endswith(f":function:{FUNCTION}:email-bulk")
    assert lambda_.list_event_source_mappings(FunctionName=FUNCTION)["EventSourceMappings"] == []
    with pytest.raises(lambda_.exceptions.ResourceNotFoundException):
        lambda_.get_event_source_mapping(UUID=str(uuid.uuid4()))


def test_what_comes_while_it_is_disabled_waits(
    client: Callable[[str], Any], mapping: RegisteredMapping, function: Recorder
) -> None:
    lambda_ = client("lambda")
    assert lambda_.update_event_source_mapping(UUID=mapping.uuid, Enabled=False)["State"] == "Disabled"
    send(mapping, "while it was off")
    assert not mapping.running and function.events == []
    assert lambda_.get_event_source_mapping(UUID=mapping.uuid)["State"] == "Disabled"
    assert lambda_.update_event_source_mapping(UUID=mapping.uuid, Enabled=True)["State"] == "Enabled"
    assert function.invoked.wait(60)
    assert [event["Records"][0]["body"] for event in function.events] == ["while it was off"]


def test_a_function_is_invoked_and_tells_what_it_did(
    client: Callable[[str], Any], function: Recorder
) -> None:
    lambda_ = client("lambda")
    answer = lambda_.invoke(FunctionName=FUNCTION, Payload=json.dumps({"begin": 1}))
    assert json.loads(answer["Payload"].read()) == {"seen": 1}
    assert "FunctionError" not in answer and function.events == [{"begin": 1}]
    failed = lambda_.invoke(FunctionName=FUNCTION, Payload=json.dumps({"fail": True}))
    assert failed["FunctionError"] == "Unhandled"
    assert json.loads(failed["Payload"].read()) == {"errorType": "RuntimeError", "errorMessage": "on purpose"}
    function.invoked.clear()
    assert lambda_.invoke(FunctionName=FUNCTION, InvocationType="Event", Payload="{}")["StatusCode"] == 202
    assert function.invoked.wait(60)
    with pytest.raises(lambda_.exceptions.ResourceNotFoundException):
        lambda_.invoke(FunctionName="somebody-elses", Payload="{}")


def test_a_disabled_rule_does_not_tick(
    client: Callable[[str], Any], schedule: Schedule, function: Recorder
) -> None:
    events = client("events")
    events.disable_rule(Name=RULE)
    described = events.describe_rule(Name=RULE)
    assert described["State"] == "DISABLED" and described["Arn"].endswith(f"rule/{RULE}")
    with schedule:
        # Several ticks' time; it is what must not happen that is waited for.
        assert not function.invoked.wait(0.2)
        events.enable_rule(Name=RULE)
        assert events.describe_rule(Name=RULE)["State"] == "ENABLED"
        assert function.invoked.wait(60)
    with pytest.raises(events.exceptions.ResourceNotFoundException):
        events.describe_rule(Name="somebody-elses")


@pytest.mark.parametrize(("minutes", "expression"), [(1, "rate(1 minute)"), (90, "rate(90 minutes)")])
def test_a_rule_has_its_schedule_in_eventbridges_words(
    minutes: int, expression: str, function: Recorder
) -> None:
    schedule = Schedule(RULE, timedelta(minutes=minutes), function)
    assert schedule.description()["ScheduleExpression"] == expression


def test_what_is_not_played_is_refused(client: Callable[[str], Any], mapping: RegisteredMapping) -> None:
    lambda_ = client("lambda")
    with pytest.raises(lambda_.exceptions.InvalidParameterValueException):
        lambda_.update_event_source_mapping(UUID=mapping.uuid, BatchSize=5)
    with pytest.raises(lambda_.exceptions.ClientError, match="NotImplemented"):
        lambda_.list_functions()
