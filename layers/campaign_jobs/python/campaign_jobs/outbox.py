"""Events written in the transaction that causes them; `relay` publishes them to Kafka.

A service may use it too: `enqueue` puts an event into the service's own transaction, so that the event exists if and
only if the transaction commits.

    with psycopg.connect(database_url) as connection:  # commits at the end
        user_id = insert_user(connection)
        outbox.enqueue(connection, [EmailJobPayload(type="welcome", campaign_id=campaign_id, user_id=user_id)])
"""

import json
from collections.abc import Sequence
from typing import Any, Protocol

from campaign_jobs import catalog
from campaign_jobs.errors import InvalidEvent
from campaign_jobs.events import Event, Payload, as_json, as_value, events_of, partition_key


class _Cursor(Protocol):
    @property
    def rowcount(self) -> int: ...


class _Connection(Protocol):
    """What is needed of a psycopg 3 connection; a service's own subclass will do."""

    def execute(self, query: Any, params: Any = ...) -> _Cursor: ...


_ENQUEUE = """
INSERT INTO campaign_jobs.outbox (event_id, partition_key, event)
SELECT * FROM unnest(%s::text[], %s::text[], %s::jsonb[]) AS entry (event_id, partition_key, event)
ORDER BY event_id
ON CONFLICT (event_id) DO NOTHING
"""

_ENQUEUE_AGAIN = """
INSERT INTO campaign_jobs.outbox (event_id, partition_key, event)
SELECT * FROM unnest(%s::text[], %s::text[], %s::jsonb[]) AS entry (event_id, partition_key, event)
ORDER BY event_id
ON CONFLICT (event_id) DO UPDATE
SET published_at = NULL, refused = NULL, event = EXCLUDED.event, created_at = EXCLUDED.created_at
"""


def enqueue(connection: _Connection, events: Sequence[Event | Payload]) -> int:
    """Write events to the outbox, in the connection's current transaction; one statement for all.

    A payload becomes a new event with an id of its own; `events.new_event` makes one with an id of your choice. An
    event whose id is there already is left alone, so that a repeated transaction publishes nothing twice. Returns how
    many are new. Raises InvalidEvent, having written nothing, where one does not follow the contract.
    """
    return _write(connection, _ENQUEUE, events_of(events))


def enqueue_again(connection: _Connection, events: Sequence[Event]) -> int:
    """Write events to be published again under the ids that they had, as parked ones are."""
    return _write(connection, _ENQUEUE_AGAIN, events)


def _write(connection: _Connection, statement: str, events: Sequence[Event]) -> int:
    if not events:
        return 0
    for event in events:
        # Kafka would refuse it for ever, long after the transaction that could still be told.
        if (size := len(as_value(event))) > catalog.MAX_VALUE_BYTES:
            raise InvalidEvent(
                f"event {event.id} has {size} bytes; allowed are at most {catalog.MAX_VALUE_BYTES}"
            )
    by_id = {event.id: event for event in events}
    columns = (
        list(by_id),
        [partition_key(event) for event in by_id.values()],
        [json.dumps(as_json(event)) for event in by_id.values()],
    )
    return connection.execute(statement, columns).rowcount
