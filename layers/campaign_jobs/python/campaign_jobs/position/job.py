"""The position job: takes requests down, and recalculates each campaign that has some, unless somebody does already."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

import psycopg

from campaign_jobs.database.batches import Refusal, in_batch, refusal
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.errors import DatabaseUnavailable, OutOfTime
from campaign_jobs.events import PositionEvent
from campaign_jobs.position.run import recalculate
from campaign_jobs.worker.delivery import Deadline, Delivery
from campaign_jobs.worker.outcomes import Done, Later, Outcome, Rejected, Retry
from campaign_jobs.worker.patience import wait_for_missing

MISSING_ROW_PATIENCE: Final = timedelta(minutes=10)
# A run that is cut off is rolled back and runs again, so this only has to make that rare.
RUN_RESERVE_SECONDS: Final = 30.0

# Tells in one snapshot which campaigns exist and takes down the requests of those alone.
_INSERT: Final = """
WITH inserted AS (
    INSERT INTO campaign_jobs.position_requests (campaign_id, event_id, requested_at, points_per_referral)
    SELECT request.campaign_id, request.event_id, request.requested_at, request.points_per_referral
    FROM unnest(%(campaign_ids)s::uuid[], %(event_ids)s::text[], %(requested_at)s::timestamptz[], %(points)s::integer[])
        AS request (campaign_id, event_id, requested_at, points_per_referral)
    JOIN campaign_jobs.campaigns AS campaign ON campaign.id = request.campaign_id
    ORDER BY request.event_id
    ON CONFLICT (event_id) DO NOTHING
)
SELECT id FROM campaign_jobs.campaigns WHERE id = ANY(%(campaign_ids)s::uuid[])
"""


class PositionJob:
    """Process `job.position.recalculate` events.

    `missing_row_patience` is how long a campaign that is not there yet is waited for.
    """

    least_seconds: Final = RUN_RESERVE_SECONDS

    def __init__(self, database: Database, *, missing_row_patience: timedelta = MISSING_ROW_PATIENCE) -> None:
        self._database = database
        self._patience = missing_row_patience

    def process(self, deliveries: Sequence[Delivery[PositionEvent]], deadline: Deadline) -> list[Outcome]:
        """Record the requests of all deliveries, then recalculate each of their campaigns.

        Raises DatabaseUnavailable.
        """
        with self._database.within(deadline):
            return self._process(deliveries, deadline)

    def _process(self, deliveries: Sequence[Delivery[PositionEvent]], deadline: Deadline) -> list[Outcome]:
        existing, refused = self._record(deliveries)
        wanted = {
            delivery.event.data.campaign_id
            for delivery in deliveries
            if delivery.event.data.campaign_id in existing and delivery.event.id not in refused
        }
        by_campaign: dict[UUID, Outcome] = {
            campaign_id: self._run(campaign_id, deadline) for campaign_id in sorted(wanted)
        }
        outcomes: list[Outcome] = []
        for delivery in deliveries:
            campaign_id = delivery.event.data.campaign_id
            if delivery.event.id in refused:
                outcomes.append(_refused(refused[delivery.event.id]))
            elif campaign_id in by_campaign:
                outcomes.append(by_campaign[campaign_id])
                # Where it has to be tried again, one event does it for all: their requests are committed.
                by_campaign[campaign_id] = Done()
            else:
                outcomes.append(wait_for_missing(delivery, f"campaign {campaign_id}", self._patience))
        return outcomes

    def give_up(
        self,
        given_up: Sequence[tuple[Delivery[PositionEvent], str]],  # noqa: ARG002  As every event job.
    ) -> Sequence[tuple[Delivery[PositionEvent], Refusal]]:
        """Nothing to do: what was recorded stays and is counted in by the next run, and there is no other state."""
        return ()

    def _record(self, deliveries: Sequence[Delivery[PositionEvent]]) -> tuple[set[UUID], dict[str, Refusal]]:
        events = sorted((delivery.event for delivery in deliveries), key=lambda event: event.id)
        existing, refused = in_batch(self._database, events, _insert)
        return set().union(*existing), {event.id: refusal for event, refusal in refused}

    def _run(self, campaign_id: UUID, deadline: Deadline) -> Outcome:
        """Run until no request is left. Where somebody else is running, they find ours, which is committed."""
        has_run = False
        try:
            while deadline.remaining_seconds() > RUN_RESERVE_SECONDS:
                if recalculate(self._database, campaign_id) is None:
                    return Done()
                has_run = True
        except OutOfTime:
            # Rolled back, and its requests still wait. One campaign that is too large does not keep the batch.
            return Retry("the run took longer than what was left of the invocation")
        except DatabaseUnavailable:
            raise
        except psycopg.Error as error:
            # The requests still wait; only this campaign's deliveries are tried again.
            return Retry(f"the positions could not be recalculated: {refusal(error)}")
        # Requests that came meanwhile are not these deliveries' affair: relay asks again for those.
        return Done() if has_run else Later("no time was left for a run", after=timedelta())


def _refused(refusal: Refusal) -> Outcome:
    return Retry(refusal.reason) if refusal.passing else Rejected(refusal.reason)


def _insert(connection: Connection, events: Sequence[PositionEvent]) -> set[UUID]:
    rows = connection.execute(
        _INSERT,
        {
            "campaign_ids": [event.data.campaign_id for event in events],
            "event_ids": [event.id for event in events],
            "requested_at": [event.timestamp for event in events],
            "points": [event.data.points_per_referral or None for event in events],
        },
    ).fetchall()
    return {row[0] for row in rows}
