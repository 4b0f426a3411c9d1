"""Sending to SQS, in batches that it takes."""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
SIDE_BY_SIDE: Final = 8
"""A thousand messages are a hundred batches, which one after another take too long at an invocation's end."""
CONNECT_SECONDS: Final = 2
READ_SECONDS: Final = 3
ATTEMPTS: Final = 2
START_SECONDS: Final = 8.0
"""After this long no further request is started."""
SEND_SECONDS: Final = START_SECONDS + ATTEMPTS * (CONNECT_SECONDS + READ_SECONDS) + 1
"""The longest that `send` takes; the last second is for what botocore waits between two attempts."""


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
        from botocore.config import Config

        return boto3.client(
            "sqs",
            config=Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                max_pool_connections=SIDE_BY_SIDE,
            ),
        )

    def send(self, messages: Sequence[Outgoing]) -> None:
        by_queue: dict[str, list[Outgoing]] = {}
        for message in messages:
            by_queue.setdefault(message.queue_url, []).append(message)
        batches = [(url, batch) for url, outgoing in by_queue.items() for batch in _batches(outgoing)]
        starts_until = time.monotonic() + START_SECONDS
        if len(batches) == 1:
            self._send_batch(*batches[0], starts_until)
            return
        # Built here, because two threads must not build it at once.
        _ = self._client
        with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="sqs") as pool:
            futures = [pool.submit(self._send_batch, *batch, starts_until) for batch in batches]
            try:
                for future in futures:
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _send_batch(self, queue_url: str, batch: list[tuple[str, int]], starts_until: float) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        entries: list[SendMessageBatchRequestEntryTypeDef] = [
            {"Id": str(number), "MessageBody": body, "DelaySeconds": delay}
            for number, (body, delay) in enumerate(batch)
        ]
        failed: list[Any] = []
        for _ in range(TRIES):
            if time.monotonic() > starts_until:
                raise QueueUnavailable(
                    f"SQS is too slow: {len(entries)} messages for {_name(queue_url)} were not sent within"
                    f" {START_SECONDS:g} s"
                )
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
