"""Publishing what was planned, not faster than said, with each acknowledged step written down."""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from campaign_jobs.events import Event
from campaign_jobs.producer import JobProducer, Message
from campaign_jobs_cli import kafka, records
from campaign_jobs_cli.output import Advance
from campaign_jobs_cli.records import Record
from campaign_jobs_cli.replay.issuing import Issue
from campaign_jobs_cli.replay.plan import chosen
from campaign_jobs_cli.replay.state import State
from campaign_jobs_cli.selection import RewardOwners
from campaign_jobs_cli.targets import Target

_MOST_AT_ONCE = 500

Step = tuple[list[Message], list[int], dict[int, int]]
"""What to publish together and with which times, and the next offsets once that is acknowledged."""

_NOW = 0


def publish(target: Target, state: State, file: Path, advance: Advance) -> int:
    """Publish what is left of a replay; how many events. Raises PublishError and Unreachable; it can be resumed then.

    What is acknowledged is written down afterwards, so that an interruption repeats a step at most, under the same ids.
    """
    issue, owners = Issue(state.replay_id, again=state.again), RewardOwners(target)
    at_once = max(1, min(_MOST_AT_ONCE, int(state.rate)))
    published, started = 0, time.monotonic()
    with kafka.consumer(target) as client, JobProducer.from_settings(target.kafka) as producer:
        for batch in records.read(target, client, state.left()):
            for messages, times, next_offsets in _steps(batch, state, issue, owners, at_once):
                if messages:
                    producer.republish(messages, times)
                state.next_offsets |= next_offsets
                state.published += len(messages)
                state.save(file)
                published += len(messages)
                advance(len(messages))
                time.sleep(max(0.0, started + published / state.rate - time.monotonic()))
        # Where the last offsets of a range hold no record, there was nothing to move them.
        state.next_offsets = {each.partition: each.end or each.start for each in state.ranges}
        state.save(file)
    return published


def _steps(
    batch: Sequence[Record], state: State, issue: Issue, owners: RewardOwners, at_once: int
) -> Iterator[Step]:
    understood = [records.understand(record) for record in batch]
    wanted = {each.record.place: each for each, _ in chosen(understood, state.selection, owners)}
    messages: list[Message] = []
    times: list[int] = []
    next_offsets: dict[int, int] = {}
    for each in understood:
        record = each.record
        if record.place in wanted and each.event is not None and not issue.is_repeated(each.event):
            value = issue.value(each)
            if value is not None:
                messages.append((record.key, value))
                times.append(_time(record, each.event))
        next_offsets[record.partition] = record.offset + 1
        if len(messages) == at_once:
            yield messages, times, next_offsets
            messages, times, next_offsets = [], [], {}
    if next_offsets:
        yield messages, times, next_offsets


def _time(record: Record, event: Event) -> int:
    """The new record's time: now, but for an event that leaves it to its record to say when it was asked for.

    Were that now, too, an old recalculation would override the points of a younger one.
    """
    if "timestamp" in event.model_fields_set or record.at > datetime.now(UTC):
        return _NOW
    return round(record.at.timestamp() * 1000)
