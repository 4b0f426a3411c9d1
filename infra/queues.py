"""Queues as this stack wants them: encrypted, over TLS only, and patient."""

from typing import Final

from aws_cdk import Duration
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from campaign_jobs.catalog import QUEUE_RETENTION_DAYS, RETRY_MAX_RECEIVES

RETENTION: Final = Duration.days(QUEUE_RETENTION_DAYS)
MAX_MESSAGE_BYTES: Final = 1024 * 1024


def create_queue(
    scope: Construct,
    id: str,
    *,
    name: str,
    visibility_timeout_seconds: int | None = None,
    dead_letter_queue: sqs.Queue | None = None,
    max_receives: int = RETRY_MAX_RECEIVES,
) -> sqs.Queue:
    return sqs.Queue(
        scope,
        id,
        queue_name=name,
        encryption=sqs.QueueEncryption.SQS_MANAGED,
        enforce_ssl=True,
        retention_period=RETENTION,
        max_message_size_bytes=MAX_MESSAGE_BYTES,
        visibility_timeout=(
            None if visibility_timeout_seconds is None else Duration.seconds(visibility_timeout_seconds)
        ),
        dead_letter_queue=(
            None
            if dead_letter_queue is None
            else sqs.DeadLetterQueue(queue=dead_letter_queue, max_receive_count=max_receives)
        ),
    )
