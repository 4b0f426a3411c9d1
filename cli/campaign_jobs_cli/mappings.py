"""The switches of job types: event-source mappings for those that events start, rules for those on a schedule."""

from collections.abc import Iterator
from dataclasses import dataclass

from campaign_jobs import catalog
from campaign_jobs_cli.targets import Target

SWITCHED = (*catalog.EVENT_JOB_TYPES, *catalog.QUEUE_JOB_TYPES, *catalog.SCHEDULED_JOB_TYPES)


@dataclass(frozen=True)
class Mapping:
    uuid: str
    source: str
    """The consumer group, or the queue's name."""
    state: str
    """Lambda's own word: Enabled, Disabled, Enabling, Disabling, Updating, Creating."""


def mappings_of(target: Target, job_type: str) -> list[Mapping]:
    """A function's mappings, those of its aliases among them."""
    function = target.resource_name(job_type)
    names = [function]
    for each in catalog.EVENT_JOB_TYPES:
        if each.name == job_type:
            names += [f"{function}:{lane.name}" for lane in each.lanes]
    found = {mapping.uuid: mapping for name in names for mapping in _listed(target, name)}
    return sorted(found.values(), key=lambda mapping: mapping.source)


def _listed(target: Target, function: str) -> Iterator[Mapping]:
    pages = (
        target.client("lambda").get_paginator("list_event_source_mappings").paginate(FunctionName=function)
    )
    for page in pages:
        for each in page["EventSourceMappings"]:
            kafka = each.get("AmazonManagedKafkaEventSourceConfig", {})
            source = kafka.get("ConsumerGroupId") or each["EventSourceArn"].rpartition(":")[2]
            yield Mapping(each["UUID"], source, each["State"])
