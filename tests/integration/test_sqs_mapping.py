"""What Lambda documents of its SQS event-source mappings holds for our stand-in."""

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from aws_lambda_powertools.utilities.data_classes import SQSEvent
from botocore.exceptions import EndpointConnectionError

from local.aws import AwsStandIn
from local.functions import FunctionFailed
from local.mappings import MAX_PAYLOAD_BYTES, MappingBroken
from local.mappings.sqs import QueueDepth, SqsMapping, failed_message_ids

Event = dict[str, Any]
Make = Callable[..., SqsMapping]
EMPTY = QueueDepth(visible=0, in_flight=0, delayed=0)


class Recorder:
    """A function in this process that keeps the events it gets; `act` decides how each invocation goes."""

    def __init__(self, act: Callable[[Event], Any] = lambda event: None) -> None:
        self.events: list[Event] = []
        self._act = act

    def invoke(self, event: Event) -> Any:
        self.events.append(event)
        return self._act(event)

    def bodies(self) -> list[str]:
        return [record["body"] for event in self.events for record in event["Records"]]


@pytest.fixture(scope="module")
def sqs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with AwsStandIn(tmp_path_factory.mktemp("aws") / "mails") as stand_in:
        yield boto3.client(
            "sqs",
            endpoint_url=stand_in.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )


@pytest.fixture
def queue_url(sqs: Any) -> str:
    """A queue whose messages stay invisible long enough for no test to see them again by accident."""
    attributes = {"VisibilityTimeout": "600", "MaximumMessageSize": "1048576"}
    url: str = sqs.create_queue(QueueName=f"queue-{uuid.uuid4().hex}", Attributes=attributes)["QueueUrl"]
    return url


@pytest.fixture(scope="module")
def aside() -> Iterator[ThreadPoolExecutor]:
    """Where mappings stop, because a long poll takes its second to end."""
    with ThreadPoolExecutor(32) as threads:
        yield threads


@pytest.fixture
def mapping(sqs: Any, queue_url: str, aside: ThreadPoolExecutor) -> Iterator[Make]:
    made: list[SqsMapping] = []

    def start(function: Any, **changes: Any) -> SqsMapping:
        made.append(SqsMapping(**{"sqs": sqs, "queue_url": queue_url, "function": function, **changes}))
        made[-1].start()
        return made[-1]

    yield start
    for each in made:
        aside.submit(each.stop)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def send(sqs: Any, queue_url: str, *bodies: str) -> None:
    for body in bodies:
        sqs.send_message(QueueUrl=queue_url, MessageBody=body)


def make_visible_again(sqs: Any, queue_url: str, event: Event) -> None:
    """What the visibility timeout does in the end."""
    for record in event["Records"]:
        sqs.change_message_visibility(
            QueueUrl=queue_url, ReceiptHandle=record["receiptHandle"], VisibilityTimeout=0
        )


def fail(_: Event) -> None:
    raise FunctionFailed("RuntimeError", "on purpose")


def test_the_event_is_lambdas(sqs: Any, queue_url: str, mapping: Make, repository: Path) -> None:
    sent = sqs.send_message(
        QueueUrl=queue_url,
        MessageBody='{"a": "ä"}',
        MessageAttributes={
            "kind": {"DataType": "String", "StringValue": "retry"},
            "raw": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
        },
    )
    function = Recorder()
    started = mapping(function)
    until(started.idle, "the message is gone")
    (event,) = function.events
    (record,) = event["Records"]

    recorded = json.loads((repository / "tests/events/sqs.json").read_text(encoding="utf-8"))
    assert set(event) == set(recorded)
    assert set(record) == set(recorded["Records"][0])
    assert set(record["attributes"]) >= set(recorded["Records"][0]["attributes"])
    assert record["messageId"] == sent["MessageId"]
    assert record["body"] == '{"a": "ä"}'
    assert record["md5OfBody"] == hashlib.md5('{"a": "ä"}'.encode()).hexdigest()
    assert record["attributes"]["ApproximateReceiveCount"] == "1"
    assert record["messageAttributes"] == {
        "kind": {
            "stringValue": "retry",
            "stringListValues": [],
            "binaryListValues": [],
            "dataType": "String",
        },
        "raw": {"binaryValue": "AP8=", "stringListValues": [], "binaryListValues": [], "dataType": "Binary"},
    }
    assert record["eventSource"] == "aws:sqs"
    assert record["eventSourceARN"].endswith(f":{queue_url.rsplit('/', 1)[-1]}")
    assert record["awsRegion"] == "us-east-1"
    assert next(iter(SQSEvent(event).records)).json_body == {"a": "ä"}


def test_no_batch_exceeds_its_size_and_what_succeeded_is_deleted(
    sqs: Any, queue_url: str, mapping: Make
) -> None:
    send(sqs, queue_url, *(str(n) for n in range(8)))
    function = Recorder()
    started = mapping(function, batch_size=3)
    until(started.idle, "all messages are gone")
    assert sorted(function.bodies()) == [str(n) for n in range(8)]
    assert max(len(event["Records"]) for event in function.events) == 3
    assert (started.counters.delivered, started.counters.failed) == (8, 0)


def test_a_batch_waits_for_its_window_unless_it_is_full(sqs: Any, queue_url: str, mapping: Make) -> None:
    send(sqs, queue_url, *(str(n) for n in range(15)))
    function = Recorder()
    started = mapping(function, batch_size=15, batching_window_seconds=1)
    until(started.idle, "the window is over and all messages are gone")
    assert sorted(function.bodies(), key=int) == [str(n) for n in range(15)]
    started.stop()

    # A window that no test outlives: two threads cannot share 23 messages without one of them having twelve.
    function = Recorder()
    mapping(function, batch_size=12, batching_window_seconds=300)
    send(sqs, queue_url, *(str(n) for n in range(23)))
    until(lambda: bool(function.events), "a batch is full")
    assert len(function.events[0]["Records"]) == 12


def test_a_payload_stays_within_six_megabytes(sqs: Any, queue_url: str, mapping: Make) -> None:
    send(sqs, queue_url, *(str(n) + "x" * 1_000_000 for n in range(8)))
    function = Recorder()
    until(mapping(function).idle, "all messages are gone")
    assert sorted(body[0] for body in function.bodies()) == [str(n) for n in range(8)]
    assert max(len(json.dumps(event)) for event in function.events) <= MAX_PAYLOAD_BYTES


def test_a_failed_batch_stays_invisible_and_then_comes_again(sqs: Any, queue_url: str, mapping: Make) -> None:
    send(sqs, queue_url, "a", "b")

    def fail_once(event: Event) -> None:
        if event["Records"][0]["attributes"]["ApproximateReceiveCount"] == "1":
            fail(event)

    function = Recorder(fail_once)
    started = mapping(function)
    until(lambda: sorted(function.bodies()) == ["a", "b"], "both have failed")
    assert started.depth() == QueueDepth(visible=0, in_flight=2, delayed=0)
    assert not started.idle()
    for event in list(function.events):
        make_visible_again(sqs, queue_url, event)
    until(started.idle, "both have succeeded")
    assert sorted(function.bodies()) == ["a", "a", "b", "b"]
    assert (started.counters.failed, started.counters.delivered) == (2, 2)


def test_a_failed_message_becomes_visible_by_itself_and_counts_its_receipts(
    sqs: Any, queue_url: str, mapping: Make
) -> None:
    sqs.set_queue_attributes(QueueUrl=queue_url, Attributes={"VisibilityTimeout": "1"})
    send(sqs, queue_url, "a")
    counts: list[str] = []

    def fail_twice(event: Event) -> None:
        counts.append(event["Records"][0]["attributes"]["ApproximateReceiveCount"])
        if len(counts) <= 2:
            fail(event)

    until(mapping(Recorder(fail_twice)).idle, "the message is gone")
    assert counts == ["1", "2", "3"]


def test_a_message_that_was_received_too_often_goes_to_the_queues_dead_letter_queue(
    sqs: Any, queue_url: str, mapping: Make
) -> None:
    dead = sqs.create_queue(QueueName=f"dead-{uuid.uuid4().hex}")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 2})
    sqs.set_queue_attributes(
        QueueUrl=queue_url, Attributes={"VisibilityTimeout": "1", "RedrivePolicy": policy}
    )
    send(sqs, queue_url, "a")
    function = Recorder(fail)
    until(mapping(function).idle, "the queue has let the message go")
    assert len(function.events) == 2
    (message,) = sqs.receive_message(QueueUrl=dead)["Messages"]
    assert message["Body"] == "a"


def test_a_message_whose_deletion_fails_comes_again(sqs: Any, queue_url: str, mapping: Make) -> None:
    sqs.set_queue_attributes(QueueUrl=queue_url, Attributes={"VisibilityTimeout": "1"})
    send(sqs, queue_url, "a")
    # SQS takes the request and refuses the first entry; then it does not answer at all; then it works.
    answers: list[Any] = [
        lambda given: {"Failed": [{"Id": "0", "Code": "InternalError", "SenderFault": False}]},
        lambda given: (_ for _ in ()).throw(EndpointConnectionError(endpoint_url=queue_url)),
    ]

    class Unreliable:
        def __getattr__(self, name: str) -> Any:
            return getattr(sqs, name)

        def delete_message_batch(self, **given: Any) -> Any:
            return answers.pop(0)(given) if answers else sqs.delete_message_batch(**given)

    function = Recorder()
    started = mapping(function, sqs=Unreliable())
    until(started.idle, "the message is gone")
    assert function.bodies() == ["a", "a", "a"]


def test_a_partial_batch_response_leaves_only_the_failed_ones(
    sqs: Any, queue_url: str, mapping: Make
) -> None:
    send(sqs, queue_url, "good", "bad", "fine")

    def report_bad(event: Event) -> Any:
        bad = [record["messageId"] for record in event["Records"] if record["body"] == "bad"]
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in bad]}

    function = Recorder(report_bad)
    started = mapping(function, report_batch_item_failures=True)
    until(lambda: started.counters.delivered == 2, "the others have succeeded")
    until(lambda: started.depth() == QueueDepth(visible=0, in_flight=1, delayed=0), "they are deleted")
    for event in list(function.events):
        for record in event["Records"]:
            if record["body"] == "bad":
                make_visible_again(sqs, queue_url, {"Records": [record]})
    until(lambda: function.bodies().count("bad") == 2, "the bad one comes again")
    assert function.bodies().count("good") == function.bodies().count("fine") == 1


def test_a_partial_batch_response_counts_only_where_it_is_turned_on(
    sqs: Any, queue_url: str, mapping: Make
) -> None:
    send(sqs, queue_url, "a")
    function = Recorder(lambda event: {"batchItemFailures": [{"itemIdentifier": "no such message"}]})
    until(mapping(function).idle, "the message is gone")


IDS = {"1", "2"}


@pytest.mark.parametrize("response", [None, {}, {"batchItemFailures": []}, {"batchItemFailures": None}])
def test_an_empty_response_means_that_all_succeeded(response: Any) -> None:
    assert failed_message_ids(response, IDS) == set()


@pytest.mark.parametrize(
    "response",
    [
        "an answer",
        ["1"],
        {"batchItemFailures": "1"},
        {"batchItemFailures": ["1"]},
        {"batchItemFailures": [{"itemIdentifier": ""}]},
        {"batchItemFailures": [{"itemIdentifier": None}]},
        {"batchItemFailures": [{"itemIdentifier": ["1"]}]},
        {"batchItemFailures": [{"messageId": "1"}]},
        {"batchItemFailures": [{"itemIdentifier": "1"}, {"itemIdentifier": "3"}]},
    ],
)
def test_a_malformed_response_means_that_the_whole_batch_failed(response: Any) -> None:
    assert failed_message_ids(response, IDS) == IDS


def test_a_response_names_the_failed_messages() -> None:
    assert failed_message_ids({"batchItemFailures": [{"itemIdentifier": "2"}]}, IDS) == {"2"}


def test_batches_run_side_by_side_up_to_the_concurrency(sqs: Any, queue_url: str, mapping: Make) -> None:
    together = threading.Barrier(3)
    send(sqs, queue_url, *"abc")
    # Passed only when three invocations are under way at once.
    function = Recorder(lambda _: together.wait(60))
    until(mapping(function, batch_size=1, max_concurrency=3).idle, "all messages are gone")
    assert len(function.events) == 3


def test_no_more_batches_run_than_the_concurrency_allows(sqs: Any, queue_url: str, mapping: Make) -> None:
    running = threading.BoundedSemaphore(2)
    send(sqs, queue_url, *(str(n) for n in range(12)))

    def look(_: Event) -> None:
        assert running.acquire(blocking=False)
        # Long enough for a third to come along, if there were one.
        time.sleep(0.05)
        running.release()

    function = Recorder(look)
    until(mapping(function, batch_size=1, max_concurrency=2).idle, "all messages are gone")
    assert len(function.events) == 12


def test_stop_lets_the_batch_in_flight_finish_and_takes_no_more(
    sqs: Any, queue_url: str, mapping: Make
) -> None:
    reached, gate = threading.Event(), threading.Event()

    def hold(_: Event) -> None:
        reached.set()
        assert gate.wait(60)

    send(sqs, queue_url, "a")
    function = Recorder(hold)
    started = mapping(function)
    assert reached.wait(60)
    stopping = threading.Thread(target=started.stop)
    stopping.start()
    assert started.depth().in_flight == 1
    gate.set()
    stopping.join()
    assert started.depth() == EMPTY
    send(sqs, queue_url, "b")
    assert started.depth() == QueueDepth(visible=1, in_flight=0, delayed=0)
    assert function.bodies() == ["a"]


def test_a_delayed_message_is_work_to_do(sqs: Any, queue_url: str, mapping: Make) -> None:
    started = mapping(Recorder())
    assert started.idle()
    sqs.send_message(QueueUrl=queue_url, MessageBody="later", DelaySeconds=600)
    assert started.depth() == QueueDepth(visible=0, in_flight=0, delayed=1)
    assert not started.idle()


def test_a_delayed_message_is_delivered_after_its_delay(sqs: Any, queue_url: str, mapping: Make) -> None:
    function = Recorder()
    started = mapping(function)
    sent_at = time.time()
    sqs.send_message(QueueUrl=queue_url, MessageBody="later", DelaySeconds=2)
    until(started.idle, "the message is gone")
    (event,) = function.events
    received_at = int(event["Records"][0]["attributes"]["ApproximateFirstReceiveTimestamp"]) / 1000
    assert received_at - sent_at >= 1.9


def test_a_queue_that_does_not_answer_for_a_while_does_not_end_the_mapping(
    sqs: Any, queue_url: str, mapping: Make, caplog: pytest.LogCaptureFixture
) -> None:
    function = Recorder()
    started = mapping(function)
    sqs.delete_queue(QueueUrl=queue_url)
    until(lambda: "cannot be read now" in caplog.text, "the mapping has been refused")
    sqs.create_queue(QueueName=queue_url.rsplit("/", 1)[-1])
    send(sqs, queue_url, "a")
    until(started.idle, "the message is gone")
    assert function.bodies() == ["a"]


def test_an_error_of_our_own_is_not_swallowed(sqs: Any, queue_url: str, mapping: Make) -> None:
    send(sqs, queue_url, "a")

    def break_down(_: Event) -> None:
        raise ZeroDivisionError("our own mistake")

    started = mapping(Recorder(break_down))
    with pytest.raises(MappingBroken, match="our own mistake"):
        until(started.idle, "it says what broke it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0; allowed are 1 to 10000"),
        ({"batch_size": 11}, "batch_size=11 needs a batching window of at least 1 s"),
        ({"batching_window_seconds": 301}, "allowed are 0 to 300"),
        ({"max_concurrency": 1}, "max_concurrency=1; allowed are 2 to 1000"),
    ],
)
def test_what_lambda_would_refuse_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SqsMapping(
            sqs=boto3.client("sqs", region_name="us-east-1"), queue_url="", function=Recorder(), **changes
        )
