"""Queues as this stack wants them: encrypted, over TLS only, and patient."""

from typing import Final

from aws_cdk import Duration
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_lambda_event_sources as event_sources
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from campaign_jobs.catalog import QUEUE_RETENTION_DAYS, RETRY_MAX_RECEIVES
from infra.acknowledged import acknowledge

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
    queue = sqs.Queue(
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
    if dead_letter_queue is None:
        acknowledge(queue, "It is where dead letters end", "Serverless-SQSRedrivePolicy")
    return queue


def read_queue(target: lambda_.IFunction, source: event_sources.SqsEventSource) -> None:
    """Let a function, or an alias of it, read a queue."""
    target.add_event_source(source)
    (mapping,) = (child for child in target.node.children if isinstance(child, lambda_.EventSourceMapping))
    acknowledge(
        mapping,
        "SQS itself moves what is received too often to the queue's dead-letter queue",
        "Serverless-LambdaEventSourceMappingDestination",
    )
