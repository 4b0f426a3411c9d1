"""One run: a campaign's waiting requests, its positions and the mails about them, in one transaction.

Why no request is lost. A request is committed before anybody tries the lock, and the lock is held until the run has
committed. Who fails to get it came while somebody held it, and that one looks for requests again after the end of its
transaction, in a new snapshot, which sees everything committed before. The look that finds nothing, and after which
nobody looks any more, holds no lock: nobody can have failed because of it. A run deletes the requests that its own
snapshot sees, the one it counts in; later ones stay. When a runner dies, its transaction is rolled back, requests
included, and relay asks again.

Why a stale snapshot cannot commit. In REPEATABLE READ the statement that tries the lock takes the snapshot first, so
another run may commit between the two, and this one would compare its ranking with positions that are there no more: a
row that it believes right would be left wrong. Therefore the lock is the lock of a row that every run writes. Locking a
row that has changed since the snapshot is a serialization failure, which repeats the run in a new snapshot.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from psycopg import IsolationLevel

from campaign_jobs.database.batches import repeat_on_conflict
from campaign_jobs.database.connection import Connection, Database

# Enough to sort a million users in memory. Only as much is taken as the campaign needs.
WORK_MEM: Final = "160MB"

_LOOK: Final = "SELECT EXISTS (SELECT FROM campaign_jobs.position_requests WHERE campaign_id = %s)"

# The setting ends with the transaction; a SET command would pin the connection in RDS Proxy.
_LOCK: Final = """
SELECT ranked_at IS NOT NULL, set_config('work_mem', %(work_mem)s, true)
FROM campaign_jobs.position_runs
WHERE campaign_id = %(campaign_id)s
FOR UPDATE SKIP LOCKED
"""

# The latest request that names points wins, whatever the order they come in, and only when it is later than the one
# that the campaign has obeyed. The last SELECT sees the campaign as it was before.
_TAKE_REQUESTS: Final = """
WITH taken AS (
    DELETE FROM campaign_jobs.position_requests
    WHERE campaign_id = %(campaign_id)s
    RETURNING event_id, requested_at, points_per_referral
), latest AS (
    SELECT event_id, requested_at, points_per_referral
    FROM taken
    WHERE points_per_referral IS NOT NULL
    ORDER BY requested_at DESC, event_id COLLATE "C" DESC
    LIMIT 1
), obeyed AS (
    UPDATE campaign_jobs.campaigns AS campaign
    SET points_per_referral = latest.points_per_referral,
        points_requested_at = latest.requested_at,
        points_request_id = latest.event_id
    FROM latest
    WHERE campaign.id = %(campaign_id)s
      AND (campaign.points_requested_at IS NULL
           OR (campaign.points_requested_at, campaign.points_request_id COLLATE "C")
              < (latest.requested_at, latest.event_id COLLATE "C"))
    RETURNING campaign.points_per_referral
)
SELECT (SELECT count(*) FROM taken),
       (SELECT count(*) FROM taken WHERE event_id IS NULL),
       coalesce((SELECT points_per_referral FROM obeyed) <> campaign.points_per_referral, false)
FROM campaign_jobs.campaigns AS campaign
WHERE campaign.id = %(campaign_id)s
"""

_REMOVE_UNRANKED: Final = """
DELETE FROM campaign_jobs.user_positions AS stored
USING campaign_jobs.waitlist_users AS person
WHERE person.campaign_id = %(campaign_id)s
  AND person.status IN ('removed', 'blocked')
  AND stored.user_id = person.id
"""

_RANK: Final = """
WITH counted AS (
    SELECT referral.referrer_id, count(*)::integer AS verified_referrals
    FROM campaign_jobs.referrals AS referral
    WHERE referral.campaign_id = %(campaign_id)s
      AND referral.status IN ('verified', 'converted')
      AND NOT EXISTS (SELECT FROM campaign_jobs.held_users AS held WHERE held.user_id = referral.referrer_id)
      AND NOT EXISTS (SELECT FROM campaign_jobs.held_users AS held WHERE held.user_id = referral.referred_id)
    GROUP BY referral.referrer_id
), scored AS (
    SELECT person.id, person.original_position, person.created_at,
           coalesce(counted.verified_referrals, 0) AS verified_referrals,
           person.original_position - coalesce(counted.verified_referrals, 0)
               * (SELECT points_per_referral::bigint FROM campaign_jobs.campaigns WHERE id = %(campaign_id)s) AS score
    FROM campaign_jobs.waitlist_users AS person
    LEFT JOIN counted ON counted.referrer_id = person.id
    WHERE person.campaign_id = %(campaign_id)s AND person.status NOT IN ('removed', 'blocked')
), ranked AS (
    SELECT id, original_position, verified_referrals, score,
           row_number() OVER (ORDER BY score, verified_referrals DESC, created_at, id)::integer AS position
    FROM scored
)
MERGE INTO campaign_jobs.user_positions AS stored
USING ranked ON stored.user_id = ranked.id AND stored.campaign_id = %(campaign_id)s
WHEN MATCHED AND (stored.position <> ranked.position
                  OR stored.score <> ranked.score
                  OR stored.verified_referrals <> ranked.verified_referrals) THEN
    UPDATE SET position = ranked.position, score = ranked.score, verified_referrals = ranked.verified_referrals,
               changed_at = now()
WHEN NOT MATCHED THEN
    INSERT (user_id, campaign_id, score, verified_referrals, position, last_enqueued_position)
    VALUES (ranked.id, %(campaign_id)s, ranked.score, ranked.verified_referrals, ranked.position,
            ranked.original_position)
"""

# Who got worse, or better by less than the minimum, keeps what was told last.
_TELL: Final = """
WITH improved AS (
    SELECT stored.user_id, stored.last_enqueued_position AS previous_position, campaign.account_id
    FROM campaign_jobs.user_positions AS stored
    JOIN campaign_jobs.campaigns AS campaign ON campaign.id = stored.campaign_id
    WHERE stored.campaign_id = %(campaign_id)s
      AND campaign.status = 'active'
      AND stored.last_enqueued_position - stored.position >= campaign.position_email_min_delta
), told AS (
    UPDATE campaign_jobs.user_positions AS stored
    SET last_enqueued_position = stored.position
    FROM improved
    WHERE stored.user_id = improved.user_id
    RETURNING stored.user_id, stored.position, improved.previous_position, improved.account_id,
              gen_random_uuid()::text AS event_id
)
INSERT INTO campaign_jobs.outbox (event_id, partition_key, event)
SELECT event_id, user_id::text, jsonb_strip_nulls(jsonb_build_object(
    'id', event_id,
    'type', 'job.email.position_update',
    'account_id', account_id,
    'campaign_id', %(campaign_id)s::text,
    'data', jsonb_build_object(
        'type', 'position_update',
        'campaign_id', %(campaign_id)s::text,
        'user_id', user_id,
        'priority', 0,
        'template_data', jsonb_build_object('position', position, 'previous_position', previous_position)),
    'timestamp', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')))
FROM told
"""

_RECORD: Final = """
UPDATE campaign_jobs.position_runs
SET runs = runs + 1, ranked_at = CASE WHEN %(ranked)s THEN now() ELSE ranked_at END
WHERE campaign_id = %(campaign_id)s
"""


@dataclass(frozen=True)
class Run:
    """What one committed run did."""

    requests: int
    ranked: bool
    """Whether it recalculated; False where there was nothing that could have changed a position."""
    changed: int
    """Positions written, those of new users included."""
    left: int
    """Positions removed, of users who left the ranking."""
    told: int
    """position_update events enqueued."""


_NOTHING: Final = Run(requests=0, ranked=False, changed=0, left=0, told=0)


def recalculate(database: Database, campaign_id: UUID, *, thorough: bool = False) -> Run | None:
    """Run once for a campaign; None when somebody else is running, or when nothing waits and `thorough` is not set.

    A run whose requests are all events, and whose points stay as they are, ranks nothing: what a position depends on
    leaves a trigger's request in the very transaction that changes it (migration 0008), so the run's snapshot sees both
    or neither. A change that this snapshot sees and an earlier run's did not would therefore show here as a trigger's
    request: nobody else deletes it, and no run with an older snapshot commits after one with a newer. Without one, the
    inputs are those that the last ranking run has counted in. That holds from the first ranking on, and for writers who
    leave the triggers on; `thorough` ranks always, for those who did not.

    Raises psycopg.Error when the database refuses, with the transaction rolled back and the requests waiting, and
    DatabaseUnavailable.
    """

    def run(connection: Connection) -> Run | None:
        """What was done; None when somebody else is running."""
        parameters = {"campaign_id": campaign_id, "work_mem": WORK_MEM}
        lock = connection.execute(_LOCK, parameters).fetchone()
        if lock is None:
            return None
        was_ranked: bool = lock[0]
        row = connection.execute(_TAKE_REQUESTS, parameters).fetchone()
        assert row is not None, "a campaign with a row in position_runs exists"
        requests, from_triggers, new_points = row
        if not requests and not thorough:
            return _NOTHING
        ranked = thorough or not was_ranked or from_triggers > 0 or new_points
        left = changed = told = 0
        if ranked:
            left = connection.execute(_REMOVE_UNRANKED, parameters).rowcount
            changed = connection.execute(_RANK, parameters).rowcount
            told = connection.execute(_TELL, parameters).rowcount
        connection.execute(_RECORD, {"campaign_id": campaign_id, "ranked": ranked})
        return Run(requests, ranked, changed, left, told)

    while thorough or _anything_waits(database, campaign_id):
        done = repeat_on_conflict(database, run, isolation=IsolationLevel.REPEATABLE_READ)
        # Where somebody else has taken the requests meanwhile, we held the lock for nothing, and look again without it.
        if done is not _NOTHING:
            return done
    return None


def _anything_waits(database: Database, campaign_id: UUID) -> bool:
    with database.transaction() as connection:
        row = connection.execute(_LOOK, (campaign_id,)).fetchone()
    return row is not None and bool(row[0])
