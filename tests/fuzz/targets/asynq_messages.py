"""Any message in Asynq's Redis is a task that may become an event, stays with a reason, or cannot be read."""

from datetime import UTC, datetime

from campaign_jobs import catalog, events
from campaign_jobs_cli.asynq.errors import UnreadableMessage
from campaign_jobs_cli.asynq.mapping import INCLUDED, Becomes, TaskMapping
from campaign_jobs_cli.asynq.messages import completed, read_server, read_task

MAPPING = TaskMapping.load(INCLUDED)
LATER = datetime(2026, 3, 1, 12, tzinfo=UTC)


def run(data: bytes) -> None:
    try:
        server = read_server(data)
        # Printed for people, and compared with the names of queues.
        "".join((server.host, server.status, *server.queues)).encode()
    except UnreadableMessage as error:
        assert str(error)
    try:
        task = read_task(data)
    except UnreadableMessage as error:
        assert str(error)
        return
    # What Asynq itself has made of it stays as it is, besides the time of its completion.
    assert read_task(completed(data, 1_800_000_000)) == task
    for number in (task.retry, task.retried, task.retention):
        assert -(2**63) <= number < 2**63
    for text in (task.type, task.id, task.queue, task.error_msg, task.unique_key, task.group_key):
        text.encode()
    # Whatever its type, its payload is tried as each that has an event.
    for task_type in (task.type, *MAPPING.rules):
        verdict = MAPPING.verdict(task_type, task.payload)
        if isinstance(verdict, Becomes):
            event = verdict.event("00000000-0000-4000-8000-000000000000", LATER)
            value = events.as_value(event)
            assert len(value) <= catalog.MAX_VALUE_BYTES
            assert events.parse(events.read_object(value), recorded_at=LATER) == event
