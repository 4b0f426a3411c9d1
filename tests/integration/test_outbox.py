"""Events in a service's own transaction."""

import psycopg
import pytest

from campaign_jobs import outbox
from campaign_jobs.database.connection import Connection
from campaign_jobs.errors import InvalidEvent
from campaign_jobs.events import EmailJobPayload, PositionRecalcJobPayload, new_event

CAMPAIGN = "6f1c2a34-0000-4000-8000-000000000001"
USER = "6f1c2a34-0000-4000-8000-000000000002"
WELCOME = EmailJobPayload.model_validate({"type": "welcome", "campaign_id": CAMPAIGN, "user_id": USER})
RECALCULATION = PositionRecalcJobPayload.model_validate({"campaign_id": CAMPAIGN})


def written(connection: Connection) -> list[tuple[str, str]]:
    return connection.execute(
        "SELECT partition_key, event ->> 'type' FROM campaign_jobs.outbox ORDER BY 1, 2"
    ).fetchall()


def test_payloads_become_events_if_and_only_if_the_transaction_commits(
    database_url: str, connection: Connection
) -> None:
    with psycopg.connect(database_url) as service:
        assert outbox.enqueue(service, [WELCOME]) == 1
        service.rollback()
    assert written(connection) == []

    with psycopg.connect(database_url) as service:
        assert outbox.enqueue(service, [WELCOME, RECALCULATION]) == 2
        assert written(connection) == []
    assert written(connection) == [(CAMPAIGN, "job.position.recalculate"), (USER, "job.email.welcome")]
    # Each has an id of its own, the same in the row and in the event.
    ids = connection.execute("SELECT event_id, event ->> 'id' FROM campaign_jobs.outbox").fetchall()
    assert len({event_id for event_id, _ in ids}) == 2
    assert all(event_id == in_event for event_id, in_event in ids)


def test_an_event_with_an_id_of_ones_own_is_written_once(connection: Connection) -> None:
    event = new_event(WELCOME, event_id=f"welcome:{USER}")
    assert outbox.enqueue(connection, [event, RECALCULATION]) == 2
    assert outbox.enqueue(connection, [event]) == 0
    assert outbox.enqueue(connection, []) == 0
    assert len(written(connection)) == 2


def test_a_wrong_payload_is_named_and_nothing_is_written(connection: Connection) -> None:
    with pytest.raises(InvalidEvent, match=r"payload 1: data\.priority"):
        outbox.enqueue(connection, [RECALCULATION, WELCOME.model_copy(update={"priority": 2**31})])
    large = {f"text_{number}": "ü" * 5000 for number in range(40)}
    with pytest.raises(InvalidEvent, match=r"has \d+ bytes; allowed are at most 262144"):
        outbox.enqueue(connection, [RECALCULATION, WELCOME.model_copy(update={"template_data": large})])
    assert written(connection) == []
