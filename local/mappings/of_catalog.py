"""The mappings that the stack has: from the topic and a retry queue for each lane, and from the queues that feed."""

from collections.abc import Callable, Mapping
from typing import Any

from campaign_jobs import catalog
from local.functions import Function
from local.mappings.kafka import KafkaMapping
from local.mappings.registered import RegisteredMapping
from local.mappings.sqs import SqsMapping


def catalog_mappings(
    functions: Mapping[str, Function],
    *,
    function_name: Callable[[str], str],
    bootstrap_servers: str,
    topic: str,
    consumer_group: str,
    members: int,
    max_batch_size: int | None,
    sqs: Callable[[], Any],
    queue_urls: Mapping[str, str],
) -> list[RegisteredMapping]:
    """None has started. `functions` by job type; `members` are the consumers in each lane's group."""

    def from_topic(job_type: catalog.EventJobType, lane: catalog.Lane) -> RegisteredMapping:
        group = lane.consumer_group(consumer_group)
        batch_size = min(lane.batch_size, max_batch_size or lane.batch_size)
        return RegisteredMapping(
            lambda: KafkaMapping(
                bootstrap_servers=bootstrap_servers,
                topic=topic,
                consumer_group=group,
                function=functions[job_type.name].alias(lane.name),
                filter_pattern=lane.filter_pattern(),
                batch_size=batch_size,
                batching_window_seconds=lane.batching_window_seconds,
            ),
            function_name=function_name(job_type.name),
            alias=lane.name,
            pollers=members,
            topic=topic,
            consumer_group=group,
            batch_size=batch_size,
            batching_window_seconds=lane.batching_window_seconds,
        )

    def from_retry_queue(job_type: catalog.EventJobType, lane: catalog.Lane) -> RegisteredMapping:
        queue_url = queue_urls[lane.retry_queue_setting]
        return RegisteredMapping(
            lambda: SqsMapping(
                sqs=sqs(),
                queue_url=queue_url,
                function=functions[job_type.name].alias(lane.name),
                batch_size=1,
                max_concurrency=2,
            ),
            function_name=function_name(job_type.name),
            alias=lane.name,
            queue_name=queue_url.rpartition("/")[2],
            batch_size=1,
            batching_window_seconds=0,
        )

    def from_queue(job_type: catalog.QueueJobType) -> RegisteredMapping:
        queue_url = queue_urls[job_type.queue_setting]
        return RegisteredMapping(
            lambda: SqsMapping(
                sqs=sqs(),
                queue_url=queue_url,
                function=functions[job_type.name],
                batch_size=job_type.batch_size,
                batching_window_seconds=job_type.batching_window_seconds,
                max_concurrency=2,
                report_batch_item_failures=True,
            ),
            function_name=function_name(job_type.name),
            alias=None,
            queue_name=queue_url.rpartition("/")[2],
            batch_size=job_type.batch_size,
            batching_window_seconds=job_type.batching_window_seconds,
        )

    return [
        *(
            mapping(job_type, lane)
            for job_type in catalog.EVENT_JOB_TYPES
            for lane in job_type.lanes
            for mapping in (from_topic, from_retry_queue)
        ),
        *(from_queue(job_type) for job_type in catalog.QUEUE_JOB_TYPES),
    ]
