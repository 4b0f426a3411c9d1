"""Reading a dead-letter queue without taking anything out, and taking out what is meant."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from botocore.exceptions import ClientError

from campaign_jobs_cli.dead_letters.letters import Letter, letter_of, where
from campaign_jobs_cli.errors import CommandError
from campaign_jobs_cli.targets import Target

Item = TypeVar("Item")

MAX_ENTRIES: Final = 10
MAX_BATCH_BYTES: Final = 1_000_000
"""SQS takes 1 MiB for a batch; the rest is room for its framing."""
# How long a message is hidden while we read: what a look takes, so that a killed command leaves it hidden no longer.
_LEAST_HIDDEN_SECONDS: Final = 30
_MESSAGES_A_SECOND: Final = 20
_MOST_HIDDEN_SECONDS: Final = 12 * 3600
_WAIT_SECONDS: Final = 1
_EMPTY_ANSWERS: Final = 3


class Reading:
    """All messages of one queue, each once. They are hidden from others meanwhile, and back in the end."""

    def __init__(self, target: Target, job_type: str) -> None:
        self._sqs: Any = target.client("sqs")
        self._target = target
        self._job_type = job_type
        self._url = where(target, job_type)
        self._hidden: dict[str, str] = {}
        self.expected = self._count("ApproximateNumberOfMessages")
        self.seen = 0
        self.cut = False
        """SQS hides no more messages, so that this is not all."""

    def batches(self) -> Iterator[list[Letter]]:
        """New ones with each batch; ends when SQS hands over nothing new any more."""
        hide = min(_MOST_HIDDEN_SECONDS, _LEAST_HIDDEN_SECONDS + self.expected // _MESSAGES_A_SECOND)
        known: set[str] = set()
        empty = 0
        while empty < (1 if len(known) >= self.expected else _EMPTY_ANSWERS):
            messages = self._receive(hide)
            empty = 0 if messages else empty + 1
            self._hidden.update({each["MessageId"]: each["ReceiptHandle"] for each in messages})
            new = [each for each in messages if each["MessageId"] not in known]
            if messages and not new:
                return
            known |= {each["MessageId"] for each in new}
            self.seen = len(known)
            if new:
                yield [letter_of(self._job_type, each) for each in new]

    def delete(self, letters: Sequence[Letter]) -> None:
        """Take them out for good. Raises CommandError where SQS refuses."""
        for batch in _tens(letters):
            entries = [
                {"Id": str(number), "ReceiptHandle": self._hidden.get(each.message_id, each.receipt_handle)}
                for number, each in enumerate(batch)
            ]
            answer = self._sqs.delete_message_batch(QueueUrl=self._url, Entries=entries)
            if failed := answer.get("Failed"):
                raise CommandError(
                    f"SQS did not delete {len(failed)} messages of {self._job_type}: {failed[0].get('Code')}; "
                    "the same command again goes on"
                )
            for each in batch:
                self._hidden.pop(each.message_id, None)

    def put_back(self) -> None:
        """Show others again what was not deleted."""
        for batch in _tens(list(self._hidden.values())):
            entries = [
                {"Id": str(number), "ReceiptHandle": handle, "VisibilityTimeout": 0}
                for number, handle in enumerate(batch)
            ]
            # One that fails was received by somebody else by now, or is visible already.
            self._sqs.change_message_visibility_batch(QueueUrl=self._url, Entries=entries)
        self._hidden.clear()

    def _receive(self, hide: int) -> list[dict[str, Any]]:
        try:
            answer = self._sqs.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=MAX_ENTRIES,
                VisibilityTimeout=hide,
                WaitTimeSeconds=_WAIT_SECONDS,
                MessageSystemAttributeNames=["SentTimestamp"],
            )
        except ClientError as error:
            if error.response["Error"]["Code"].rpartition(".")[2] != "OverLimit":
                raise
            self.cut = True
            return []
        found: list[dict[str, Any]] = answer.get("Messages", [])
        return found

    def _count(self, name: str) -> int:
        answer = self._sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=[name])
        return int(answer["Attributes"][name])


@contextmanager
def reading(target: Target, job_type: str) -> Iterator[Reading]:
    """Whatever happens, what was not deleted is back in the queue afterwards. Raises NotFound."""
    found = Reading(target, job_type)
    try:
        yield found
    finally:
        found.put_back()


def send(target: Target, queue: str, bodies: Sequence[str]) -> None:
    """Send messages as they are. Raises CommandError where SQS does not take them all; some may be sent by then."""
    sqs: Any = target.client("sqs")
    url = target.queue_url(queue)
    for batch in _batches(bodies):
        entries = [{"Id": str(number), "MessageBody": body} for number, body in enumerate(batch)]
        if failed := sqs.send_message_batch(QueueUrl=url, Entries=entries).get("Failed"):
            raise CommandError(
                f"SQS did not take {len(failed)} messages for {queue}: {failed[0].get('Code')}; they are dead "
                "letters still, and the same command again goes on"
            )


def _batches(bodies: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for body in bodies:
        length = len(body.encode())
        if batch and (len(batch) == MAX_ENTRIES or size + length > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(body)
        size += length
    if batch:
        yield batch


def _tens(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), MAX_ENTRIES):
        yield items[start : start + MAX_ENTRIES]
