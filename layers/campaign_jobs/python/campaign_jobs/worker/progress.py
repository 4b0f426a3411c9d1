"""What an invocation tells: what became of its batch, which heartbeats it has met, and how old its retries are."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from aws_lambda_powertools import Logger

from campaign_jobs.catalog import RETRY_AGE, EventJobType, Lane
from campaign_jobs.database.connection import Database
from campaign_jobs.observability import publish_metrics
from campaign_jobs.worker.messages import Received

ALWAYS_COUNTED: Final = ("processed", "skipped", "retried", "dead_lettered", "ignored")
"""Published where they are 0, too: a graph of what is not there shows nothing."""

# A record may carry any time, and one from the future would hide for ever that nothing comes after it.
_STORE: Final = """
INSERT INTO campaign_jobs.heartbeats AS known (consumer_group, topic, partition, published_at)
SELECT %s, topic, partition, least(max(published_at), clock_timestamp())
FROM unnest(%s::text[], %s::integer[], %s::timestamptz[]) AS met (topic, partition, published_at)
GROUP BY topic, partition
ORDER BY topic, partition
ON CONFLICT (consumer_group, topic, partition) DO UPDATE SET published_at = EXCLUDED.published_at
WHERE known.published_at IS NULL OR known.published_at < EXCLUDED.published_at
"""


def publish_batch(job_type: EventJobType, counts: Mapping[str, int], seconds: float) -> None:
    """Publish what became of a batch, how many records it had, and how long it took.

    Nothing of heartbeats alone: CloudWatch charges for each metric of an hour in which something was said about it.
    """
    if counts.keys() == {"heartbeats"}:
        return
    always = dict.fromkeys(ALWAYS_COUNTED, 0)
    publish_metrics(
        job_type.name, {**always, **counts, "batch_size": sum(counts.values())}, {"duration": seconds}
    )


def store_heartbeats(
    database: Database, consumer_group: str, heartbeats: Sequence[Received], logger: Logger
) -> None:
    """Remember the last heartbeat of each partition; to be called once everything before it is settled.

    Raises nothing: what the batch has done is done, and the next heartbeat comes in a minute.
    """
    if not heartbeats:
        return
    places = [heartbeat.coordinates for heartbeat in heartbeats]
    columns = [
        [place.topic for place in places],
        [place.partition for place in places],
        [heartbeat.recorded_at for heartbeat in heartbeats],
    ]
    try:
        database.statement(_STORE, [consumer_group, *columns])
    except Exception as error:  # noqa: BLE001  It is logged, and relay reports the age of the one before.
        logger.warning("heartbeats not stored", extra={"error": type(error).__name__})


def publish_retry_age(
    job_type: EventJobType, lane: Lane, received: Sequence[Received], now: datetime
) -> None:
    """Publish how long ago the oldest of the records from a retry queue was received for the first time.

    SQS cannot tell: it knows when a message was sent, and each attempt, each hop of a long wait, sends a new one.
    """
    ages = [(now - item.first_received_at).total_seconds() for item in received if item.from_retry_queue]
    if ages:
        publish_metrics(
            job_type.name, {}, {RETRY_AGE.name: max(0.0, *ages)}, **RETRY_AGE.dimensions(lane.name)
        )
