"""What relay does for positions: asks for a run where requests wait and nobody is running."""

from datetime import timedelta
from typing import Final

from campaign_jobs.database.connection import Connection

# A campaign's row in position_runs that is locked has a runner, which will look for requests again. A runner that finds
# the row locked by us leaves, but then there is our event. At most one a minute, so that they do not pile up in the
# topic while the function is down.
_REQUEST_WAITING: Final = """
WITH idle AS (
    SELECT run.campaign_id
    FROM campaign_jobs.position_runs AS run
    WHERE run.campaign_id IN (
        SELECT request.campaign_id FROM campaign_jobs.position_requests AS request
        WHERE request.created_at < now() - %(older_than)s::interval
    )
      AND (run.woken_at IS NULL OR run.woken_at < now() - interval '1 minute')
    FOR UPDATE OF run SKIP LOCKED
), woken AS (
    UPDATE campaign_jobs.position_runs AS run
    SET woken_at = now()
    FROM idle
    WHERE run.campaign_id = idle.campaign_id
    RETURNING run.campaign_id, gen_random_uuid()::text AS event_id
)
INSERT INTO campaign_jobs.outbox (event_id, partition_key, event)
SELECT event_id, campaign_id::text, jsonb_build_object(
    'id', event_id,
    'type', 'job.position.recalculate',
    'campaign_id', campaign_id,
    'data', jsonb_build_object('campaign_id', campaign_id, 'points_per_referral', 0),
    'timestamp', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
FROM woken
"""


def request_waiting(connection: Connection, *, older_than: timedelta) -> int:
    """Enqueue a `job.position.recalculate` event for each campaign whose requests have waited longer than `older_than`
    with nobody running, in the connection's current transaction. Returns for how many campaigns."""
    return connection.execute(_REQUEST_WAITING, {"older_than": older_than}).rowcount
