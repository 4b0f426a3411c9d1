"""What a deployed stack has and the stand-in starts without: sender identities and queues."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from campaign_jobs.catalog import EVENT_JOB_TYPES, QUEUE_JOB_TYPES, SCHEDULED_JOB_TYPES

if TYPE_CHECKING:
    from mypy_boto3_sesv2 import SESV2Client
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.literals import QueueAttributeNameType

_MAXIMUM_MESSAGE_BYTES: Final = 1_048_576
_RETENTION_SECONDS: Final = 14 * 24 * 60 * 60
# A retry is received alone, so its function needs no more than its own time-out and a little to answer.
_VISIBILITY_MARGIN_SECONDS: Final = 10
_DEFAULT_VISIBILITY_SECONDS: Final = 30
"""SQS's own, for queues that no function reads."""


@dataclass(frozen=True)
class LocalQueue:
    """A queue to create."""

    setting: str | None
    """What carries its URL, where a function is told."""
    name: str
    visibility_timeout_seconds: int
    dead_letter_queue: str | None = None
    """The name of the queue, created before, that takes what was received `max_receives` times."""
    max_receives: int = 0


def catalog_queues(
    prefix: str = "campaign-jobs-local", *, timeout_seconds: Mapping[str, float] | None = None
) -> list[LocalQueue]:
    """The queues of the catalog: each lane's retry queue, each job type's dead-letter queue, those that feed, and where
    runs by a schedule end that have failed.

    `timeout_seconds` are those of functions, by name, that differ from the catalog.
    """
    queues = []
    for job_type in EVENT_JOB_TYPES:
        timeout = (timeout_seconds or {}).get(job_type.name, job_type.timeout_seconds)
        visibility = math.ceil(timeout) + _VISIBILITY_MARGIN_SECONDS
        queues += [
            LocalQueue(lane.retry_queue_setting, f"{prefix}-{lane.name}-retry", visibility)
            for lane in job_type.lanes
        ]
        queues.append(
            LocalQueue(
                job_type.dead_letter_queue_setting, f"{prefix}-{job_type.name}-dead-letters", visibility
            )
        )
    for queue_job_type in QUEUE_JOB_TYPES:
        visibility = queue_job_type.visibility_timeout_seconds
        if (wanted := (timeout_seconds or {}).get(queue_job_type.name)) is not None:
            visibility = math.ceil(wanted) + _VISIBILITY_MARGIN_SECONDS
        dead_letters = f"{prefix}-{queue_job_type.name}-dead-letters"
        queues += [
            LocalQueue(queue_job_type.dead_letter_queue_setting, dead_letters, visibility),
            LocalQueue(
                queue_job_type.queue_setting,
                f"{prefix}-{queue_job_type.name}",
                visibility,
                dead_letters,
                queue_job_type.max_receives,
            ),
        ]
    queues += [
        LocalQueue(None, f"{prefix}-{scheduled.name}-failed-runs", _DEFAULT_VISIBILITY_SECONDS)
        for scheduled in SCHEDULED_JOB_TYPES
    ]
    return queues


def prepare(
    ses: SESV2Client,
    sqs: SQSClient,
    sender_identities: Sequence[str],
    queues: Sequence[LocalQueue] | None = None,
) -> dict[str, str]:
    """Create the identities (domains or addresses) and the queues, and return the queues' URLs by setting.

    Doing it again changes nothing.
    """
    for identity in sender_identities:
        try:
            ses.create_email_identity(EmailIdentity=identity)
        except ses.exceptions.AlreadyExistsException:
            pass
    urls = {}
    for queue in catalog_queues() if queues is None else queues:
        attributes: dict[QueueAttributeNameType, str] = {
            "MaximumMessageSize": str(_MAXIMUM_MESSAGE_BYTES),
            "MessageRetentionPeriod": str(_RETENTION_SECONDS),
            "VisibilityTimeout": str(queue.visibility_timeout_seconds),
        }
        if queue.dead_letter_queue is not None:
            attributes["RedrivePolicy"] = json.dumps(
                {
                    "deadLetterTargetArn": _arn(sqs, queue.dead_letter_queue),
                    "maxReceiveCount": queue.max_receives,
                }
            )
        created = sqs.create_queue(QueueName=queue.name, Attributes=attributes)
        if queue.setting is not None:
            urls[queue.setting] = created["QueueUrl"]
    return urls


def _arn(sqs: SQSClient, queue_name: str) -> str:
    url = sqs.get_queue_url(QueueName=queue_name)["QueueUrl"]
    return sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
