"""What attempts tell of their endpoints: how often they failed, how long they rest, and when they are disabled."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from campaign_jobs.database.connection import Connection
from campaign_jobs.reward.decisions import (
    FAILING_TO_DISABLE,
    FAILURES_TO_DISABLE,
    FIRST_REST,
    LONGEST_REST,
)

# Who never answers would otherwise take the whole lane, a pool-full at a time, from everybody else's endpoints.
# A rest is never cut short but by a delivery.
_COUNT = """
WITH changing AS (
    SELECT id, tally.* FROM campaign_jobs.webhook_endpoints
    JOIN unnest(%(endpoint_ids)s::uuid[], %(failures)s::integer[], %(delivered)s::boolean[], %(asked)s::interval[])
        AS tally (endpoint_id, failures, delivered, asked) ON tally.endpoint_id = id
    WHERE tally.failures > 0 OR consecutive_failures > 0 OR rests_until IS NOT NULL
    ORDER BY id FOR NO KEY UPDATE OF webhook_endpoints
)
UPDATE campaign_jobs.webhook_endpoints
SET consecutive_failures = CASE WHEN delivered THEN 0 ELSE consecutive_failures + failures END,
    failing_since = CASE WHEN NOT delivered THEN coalesce(failing_since, clock_timestamp()) END,
    rests_until = greatest(
        CASE WHEN NOT delivered THEN rests_until END,
        clock_timestamp() + asked,
        CASE WHEN NOT delivered THEN clock_timestamp()
            + least(greatest((clock_timestamp() - failing_since) / 2, %(first_rest)s), %(longest_rest)s) END)
FROM changing WHERE webhook_endpoints.id = changing.id
RETURNING webhook_endpoints.id, rests_until - clock_timestamp()
"""

_DISABLE = """
UPDATE campaign_jobs.webhook_endpoints
SET status = 'disabled', disabled_at = clock_timestamp(),
    disabled_reason = CASE WHEN id = ANY(%(gone)s) THEN 'it answered 410 Gone'
        ELSE format('it failed %%s times in a row since %%s', consecutive_failures,
                    to_char(failing_since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"')) END
WHERE id = ANY(%(failed)s) AND status = 'enabled'
    AND (id = ANY(%(gone)s)
        OR (consecutive_failures >= %(failures_to_disable)s
            AND failing_since <= clock_timestamp() - %(failing_to_disable)s))
RETURNING id
"""

Result = Literal["delivered", "failed", "gone", "refused"]


@dataclass(frozen=True)
class Attempt:
    """One attempt to deliver a webhook, and what came of it."""

    user_reward_id: UUID
    endpoint_id: UUID
    event_id: str
    result: Result
    """`gone` also disables the endpoint; `refused` was never sent and will never be as it is."""
    status_code: int | None
    error: str | None
    attempted_at: datetime
    duration: timedelta
    retry_after: timedelta | None = None
    """How long the endpoint asked us to wait."""


@dataclass(frozen=True)
class EndpointsFound:
    """What became of endpoints by some attempts."""

    resting: Mapping[UUID, timedelta]
    """Those that are left alone for a while, and for how long."""
    disabled: frozenset[UUID]


def count(connection: Connection, attempts: Sequence[Attempt]) -> EndpointsFound:
    """Keep the endpoints' counts of failures, let those rest that failed, and disable those that failed too long."""
    by_endpoint: defaultdict[UUID, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        if attempt.result != "refused":
            by_endpoint[attempt.endpoint_id].append(attempt)
    if not by_endpoint:
        return EndpointsFound({}, frozenset())
    results = {id_: [attempt.result for attempt in found] for id_, found in by_endpoint.items()}
    rows = connection.execute(
        _COUNT,
        {
            "endpoint_ids": list(results),
            "failures": [len(found) - found.count("delivered") for found in results.values()],
            "delivered": ["delivered" in found for found in results.values()],
            "asked": [
                max((attempt.retry_after for attempt in found if attempt.retry_after), default=None)
                for found in by_endpoint.values()
            ],
            "first_rest": FIRST_REST,
            "longest_rest": LONGEST_REST,
        },
    ).fetchall()
    resting = {id_: left for id_, left in rows if left is not None}
    failed = [id_ for id_, found in results.items() if set(found) != {"delivered"}]
    if not failed:
        return EndpointsFound(resting, frozenset())
    rows = connection.execute(
        _DISABLE,
        {
            "failed": failed,
            "gone": [id_ for id_, found in results.items() if "gone" in found],
            "failures_to_disable": FAILURES_TO_DISABLE,
            "failing_to_disable": FAILING_TO_DISABLE,
        },
    ).fetchall()
    return EndpointsFound(resting, frozenset(row[0] for row in rows))
