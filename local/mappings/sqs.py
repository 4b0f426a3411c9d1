"""Stand-in for Lambda's SQS event-source mapping, for standard queues.

Sources: AWS Lambda Developer Guide, "Using Lambda with Amazon SQS" (the event, batch size, window, concurrency) and
"Handling errors for an SQS event source" (visibility, and what counts as success in a partial batch response).
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from local.functions import FunctionFailed
from local.mappings import MAX_PAYLOAD_BYTES, Invocable, MappingBroken, MappingCounters
from local.processes import Service

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageAttributeValueOutputTypeDef, MessageTypeDef

MAX_RECEIVE: Final = 10
"""Messages that one ReceiveMessage returns, and DeleteMessageBatch takes, at most."""

_WAIT_SECONDS: Final = 1
_ERROR_PAUSE_SECONDS: Final = 1.0
_ENVELOPE_BYTES: Final = 1_024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueueDepth:
    """How many messages a queue holds: to be received now, received and not deleted, and delayed."""

    visible: int
    in_flight: int
    delayed: int


class SqsMapping(Service):
    """Feeds one function from one queue, with `max_concurrency` threads that each receive and deliver."""

    def __init__(
        self,
        *,
        sqs: SQSClient,
        queue_url: str,
        function: Invocable,
        batch_size: int = 10,
        batching_window_seconds: float = 0,
        max_concurrency: int = 2,
        report_batch_item_failures: bool = False,
    ) -> None:
        """Raises ValueError for what Lambda would refuse."""
        if not 1 <= batch_size <= 10_000:
            raise ValueError(f"batch_size={batch_size}; allowed are 1 to 10000")
        if not 0 <= batching_window_seconds <= 300:
            raise ValueError(f"batching_window_seconds={batching_window_seconds}; allowed are 0 to 300")
        if batch_size > MAX_RECEIVE and batching_window_seconds < 1:
            raise ValueError(f"batch_size={batch_size} needs a batching window of at least 1 s")
        if not 2 <= max_concurrency <= 1_000:
            raise ValueError(f"max_concurrency={max_concurrency}; allowed are 2 to 1000")
        self.queue_name = queue_url.rsplit("/", 1)[-1]
        self.counters = MappingCounters()
        self._sqs = sqs
        self._queue_url = queue_url
        self._function = function
        self._batch_size = batch_size
        self._window_seconds = batching_window_seconds
        self._report_batch_item_failures = report_batch_item_failures
        self._stopping = threading.Event()
        self._broken: BaseException | None = None
        self._queue_arn = ""
        self._threads = [
            threading.Thread(target=self._run, name=f"mapping {self.queue_name} {number}", daemon=True)
            for number in range(max_concurrency)
        ]

    def start(self) -> None:
        """Raises botocore's ClientError where the queue does not exist."""
        attributes = self._sqs.get_queue_attributes(QueueUrl=self._queue_url, AttributeNames=["QueueArn"])
        self._queue_arn = attributes["Attributes"]["QueueArn"]
        for thread in self._threads:
            thread.start()
        log.info("%s: reads", self.queue_name)

    def stop(self) -> None:
        """Receive no more and let the batches in flight finish."""
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def depth(self) -> QueueDepth:
        attributes = self._sqs.get_queue_attributes(
            QueueUrl=self._queue_url,
            AttributeNames=[
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesNotVisible",
                "ApproximateNumberOfMessagesDelayed",
            ],
        )["Attributes"]
        return QueueDepth(
            visible=int(attributes["ApproximateNumberOfMessages"]),
            in_flight=int(attributes["ApproximateNumberOfMessagesNotVisible"]),
            delayed=int(attributes["ApproximateNumberOfMessagesDelayed"]),
        )

    def idle(self) -> bool:
        """Whether the queue holds nothing at all: a message in flight is still in it, and so is a delayed one.

        Raises MappingBroken when a thread has ended on an error.
        """
        if self._broken is not None:
            raise MappingBroken(f"mapping {self.queue_name}: {self._broken}") from self._broken
        # The counts are taken one after another, and a message that becomes visible in between is in none of them.
        return all(self.depth() == QueueDepth(0, 0, 0) for _ in range(2))

    # The mapping's own threads, from here on.

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                for batch in self._cut(self._collect()):
                    self._deliver(batch)
        except BaseException as error:
            self._broken = error
            log.exception("%s: broken, nothing is delivered any more", self.queue_name)

    def _collect(self) -> list[MessageTypeDef]:
        """Receive until the batch has its size, its window is over or it has Lambda's payload."""
        messages: list[MessageTypeDef] = []
        payload_bytes = _ENVELOPE_BYTES
        window_ends = None
        while not self._stopping.is_set():
            left = _WAIT_SECONDS if window_ends is None else window_ends - time.monotonic()
            # SQS waits whole seconds; at the end of a window it only looks.
            received = self._receive(
                self._batch_size - len(messages), wait_seconds=int(min(left, _WAIT_SECONDS))
            )
            messages += received
            payload_bytes += sum(len(message["Body"].encode()) for message in received)
            if window_ends is None and messages:
                window_ends = time.monotonic() + self._window_seconds
            if window_ends is not None and time.monotonic() >= window_ends:
                break
            if len(messages) >= self._batch_size or payload_bytes >= MAX_PAYLOAD_BYTES:
                break
            if window_ends is not None and not received:
                self._stopping.wait(min(max(window_ends - time.monotonic(), 0), 0.1))
        return messages

    def _receive(self, count: int, wait_seconds: int) -> list[MessageTypeDef]:
        try:
            answer = self._sqs.receive_message(
                QueueUrl=self._queue_url,
                MaxNumberOfMessages=min(count, MAX_RECEIVE),
                WaitTimeSeconds=wait_seconds,
                MessageSystemAttributeNames=["All"],
                MessageAttributeNames=["All"],
            )
        except (BotoCoreError, ClientError) as error:
            log.warning("%s: cannot be read now: %s", self.queue_name, error)
            self._stopping.wait(_ERROR_PAUSE_SECONDS)
            return []
        return answer.get("Messages", [])

    def _cut(self, messages: list[MessageTypeDef]) -> Iterator[list[dict[str, Any]]]:
        """Records as the event shows them, in batches within Lambda's payload."""
        batch: list[dict[str, Any]] = []
        payload_bytes = _ENVELOPE_BYTES
        for message in messages:
            record = self._record(message)
            size = len(json.dumps(record)) + 2
            if batch and payload_bytes + size > MAX_PAYLOAD_BYTES:
                yield batch
                batch, payload_bytes = [], _ENVELOPE_BYTES
            batch.append(record)
            payload_bytes += size
        if batch:
            yield batch

    def _deliver(self, batch: list[dict[str, Any]]) -> None:
        self.counters.add(batches=1)
        try:
            response = self._function.invoke({"Records": batch})
        except FunctionFailed as error:
            self.counters.add(failed_batches=1, failed=len(batch))
            log.warning("%s: a batch of %d failed and comes again: %s", self.queue_name, len(batch), error)
            return
        ids = {record["messageId"] for record in batch}
        failed = failed_message_ids(response, ids) if self._report_batch_item_failures else set()
        if failed:
            self.counters.add(failed_batches=int(failed == ids), failed=len(failed))
            log.info("%s: %d of %d messages come again", self.queue_name, len(failed), len(batch))
        self.counters.add(delivered=len(batch) - len(failed))
        self._delete([record for record in batch if record["messageId"] not in failed])

    def _delete(self, records: list[dict[str, Any]]) -> None:
        """A message whose deletion fails becomes visible and is delivered again: SQS delivers at least once."""
        for start in range(0, len(records), MAX_RECEIVE):
            entries: Any = [
                {"Id": str(number), "ReceiptHandle": record["receiptHandle"]}
                for number, record in enumerate(records[start : start + MAX_RECEIVE])
            ]
            try:
                answer = self._sqs.delete_message_batch(QueueUrl=self._queue_url, Entries=entries)
            except (BotoCoreError, ClientError) as error:
                log.warning("%s: messages not deleted, they come again: %s", self.queue_name, error)
                continue
            for refused in answer.get("Failed", []):
                log.warning(
                    "%s: a message is not deleted, it comes again: %s", self.queue_name, refused["Code"]
                )

    def _record(self, message: MessageTypeDef) -> dict[str, Any]:
        return {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": dict(message.get("Attributes", {})),
            "messageAttributes": {
                name: _attribute(value) for name, value in message.get("MessageAttributes", {}).items()
            },
            "md5OfBody": message["MD5OfBody"],
            "eventSource": "aws:sqs",
            "eventSourceARN": self._queue_arn,
            "awsRegion": self._queue_arn.split(":")[3],
        }


def failed_message_ids(response: Any, ids: set[str]) -> set[str]:
    """Which messages of a batch a partial batch response reports as failed; all of them where it is malformed.

    Nothing, an empty object, and a null or empty list mean that all succeeded. An identifier that is missing, empty or
    of no message in the batch makes the whole batch fail.
    """
    if response is None:
        return set()
    if not isinstance(response, dict):
        return ids
    failures = response.get("batchItemFailures")
    if failures is None:
        return set()
    if not isinstance(failures, list):
        return ids
    failed: set[str] = set()
    for item in failures:
        identifier = item.get("itemIdentifier") if isinstance(item, dict) else None
        if not isinstance(identifier, str) or identifier not in ids:
            return ids
        failed.add(identifier)
    return failed


def _attribute(value: MessageAttributeValueOutputTypeDef) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if "StringValue" in value:
        shown["stringValue"] = value["StringValue"]
    if "BinaryValue" in value:
        shown["binaryValue"] = base64.b64encode(value["BinaryValue"]).decode("ascii")
    return {**shown, "stringListValues": [], "binaryListValues": [], "dataType": value["DataType"]}
