"""A job whose whole effect is the row that the peers' tasks write too: one statement for a batch."""

from collections.abc import Sequence

from campaign_jobs.database.batches import Refusal, in_batch
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.events import PositionEvent
from campaign_jobs.worker.delivery import Deadline, Delivery
from campaign_jobs.worker.outcomes import Done, Outcome, Rejected

INSERT = """
INSERT INTO effects (event_id, campaign_id)
SELECT * FROM unnest(%s::text[], %s::uuid[]) ON CONFLICT DO NOTHING
"""


class EffectJob:
    """As the position job records its requests, without the recalculation."""

    least_seconds = 1.0

    def __init__(self, database: Database) -> None:
        self._database = database

    def process(self, deliveries: Sequence[Delivery[PositionEvent]], deadline: Deadline) -> list[Outcome]:
        with self._database.within(deadline):
            events = sorted((delivery.event for delivery in deliveries), key=lambda event: event.id)
            _, refused = in_batch(self._database, events, _insert)
        reasons = {event.id: refusal.reason for event, refusal in refused}
        return [
            Rejected(reasons[delivery.event.id]) if delivery.event.id in reasons else Done()
            for delivery in deliveries
        ]

    def give_up(
        self,
        given_up: Sequence[tuple[Delivery[PositionEvent], str]],  # noqa: ARG002  As every event job.
    ) -> Sequence[tuple[Delivery[PositionEvent], Refusal]]:
        return ()


def _insert(connection: Connection, events: Sequence[PositionEvent]) -> None:
    connection.execute(INSERT, [[event.id for event in events], [event.data.campaign_id for event in events]])
