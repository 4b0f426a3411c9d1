"""Sending to SQS, in batches that it takes."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

from campaign_jobs.errors import QueueUnavailable

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import SendMessageBatchRequestEntryTypeDef

MAX_DELAY_SECONDS: Final = 900
MAX_ENTRIES: Final = 10
MAX_BATCH_BYTES: Final = 1_000_000
"""SQS takes 1 MiB for a message and for a batch; the rest is room for the batch's own framing."""
TRIES: Final = 3


@dataclass(frozen=True)
class Outgoing:
    queue_url: str
    body: dict[str, Any]
    delay_seconds: int = 0


class Queues(Protocol):
    """Keeps messages, or says that it could not."""

    def send(self, messages: Sequence[Outgoing]) -> None:
        """Returns once all messages are kept; raises QueueUnavailable when one is not."""
        ...


class SqsQueues:
    """The queues of SQS."""

    @cached_property
    def _client(self) -> "SQSClient":
        # The happy path hands nothing on, so a cold start does not pay for this import.
        import boto3

        return boto3.client("sqs")

    def send(self, messages: Sequence[Outgoing]) -> None:
        by_queue: dict[str, list[Outgoing]] = {}
        for message in messages:
            by_queue.setdefault(message.queue_url, []).append(message)
        for queue_url, outgoing in by_queue.items():
            for batch in _batches(outgoing):
                self._send_batch(queue_url, batch)

    def _send_batch(self, queue_url: str, batch: list[tuple[str, int]]) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        entries: list[SendMessageBatchRequestEntryTypeDef] = [
            {"Id": str(number), "MessageBody": body, "DelaySeconds": delay}
            for number, (body, delay) in enumerate(batch)
        ]
        failed: list[Any] = []
        for _ in range(TRIES):
            try:
                answer = self._client.send_message_batch(QueueUrl=queue_url, Entries=entries)
            except (BotoCoreError, ClientError) as error:
                raise QueueUnavailable(
                    f"SQS did not take messages for {_name(queue_url)}: {error}"
                ) from error
            failed = answer.get("Failed", [])
            if not failed:
                return
            refused = {entry["Id"] for entry in failed}
            entries = [entry for entry in entries if entry["Id"] in refused]
        raise QueueUnavailable(
            f"SQS did not take {len(failed)} messages for {_name(queue_url)}: {failed[0].get('Code', 'no code')}"
        )


def _batches(outgoing: Sequence[Outgoing]) -> Iterator[list[tuple[str, int]]]:
    batch: list[tuple[str, int]] = []
    size = 0
    for message in outgoing:
        body = json.dumps(message.body, separators=(",", ":"))
        if batch and (len(batch) == MAX_ENTRIES or size + len(body) > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((body, min(message.delay_seconds, MAX_DELAY_SECONDS)))
        size += len(body)
    if batch:
        yield batch


def _name(queue_url: str) -> str:
    return queue_url.rsplit("/", 1)[-1]
