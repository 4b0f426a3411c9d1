"""How long a recalculation of a whole campaign takes, against the bare SQL that ranks and writes.

python -m benchmarks.scheduled [--users 1000000] [--rounds 3]
"""

import uuid
from collections.abc import Callable

from benchmarks.campaign import CAMPAIGN, settle, timed
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.position.run import WORK_MEM, Run, recalculate

LEADER_ID = uuid.UUID(int=2)

# The floor: count, rank and write every row; no holds, new or departed users, mails, requests, or "only what changed".
BARE = """
UPDATE campaign_jobs.user_positions AS stored
SET position = ranked.position, score = ranked.score, verified_referrals = ranked.verified_referrals
FROM (
    SELECT id, verified_referrals, score,
           row_number() OVER (ORDER BY score, verified_referrals DESC, created_at, id)::integer AS position
    FROM (
        SELECT person.id, person.created_at, coalesce(counted.verified_referrals, 0) AS verified_referrals,
               person.original_position - coalesce(counted.verified_referrals, 0) * campaign.points_per_referral::bigint
                   AS score
        FROM campaign_jobs.waitlist_users AS person
        JOIN campaign_jobs.campaigns AS campaign ON campaign.id = person.campaign_id
        LEFT JOIN (
            SELECT referrer_id, count(*)::integer AS verified_referrals
            FROM campaign_jobs.referrals
            WHERE campaign_id = %(campaign)s AND status IN ('verified', 'converted')
            GROUP BY referrer_id
        ) AS counted ON counted.referrer_id = person.id
        WHERE person.campaign_id = %(campaign)s AND person.status NOT IN ('removed', 'blocked')
    ) AS scored
) AS ranked
WHERE stored.user_id = ranked.id
"""

# Somebody with more referrals than anybody else, at first outside the ranking.
LEADER = """
INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, status, original_position)
VALUES (%(leader)s, %(campaign)s, 'leader@example.org', 'removed', 1)
"""

LEADERS_REFERRALS = """
INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id, status, verified_at)
SELECT gen_random_uuid(), %(campaign)s, %(leader)s, md5('user ' || n)::uuid, 'verified', now()
FROM generate_series(1, 1 + %(users)s / 25, 2) AS n
"""


EVERY_ROW = "every position changes"
NO_CHANGE = "no position changes (thorough)"
BY_EVENTS = "no position changes (asked for by events)"


def measure(connection: Connection, database: Database, users: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by name; `bare` is the floor."""
    parameters = {"campaign": CAMPAIGN, "users": users, "leader": LEADER_ID}
    connection.execute(LEADER, parameters)
    connection.execute(LEADERS_REFERRALS, parameters)

    def run(expected_changes: int | None = None, *, thorough: bool = False) -> Callable[[], None]:
        return lambda: check(recalculate(database, CAMPAIGN, thorough=thorough), expected_changes)

    first = timed(run())
    connection.execute("VACUUM (ANALYZE) campaign_jobs.user_positions")
    results: dict[str, list[float]] = {"bare": [], EVERY_ROW: [], NO_CHANGE: [], BY_EVENTS: []}
    for number in range(1, rounds + 1):
        shift_everybody(connection, number)
        settle(connection, "campaign_jobs.user_positions")
        results[EVERY_ROW].append(timed(run(users)))
        settle(connection, "campaign_jobs.user_positions")
        results[NO_CHANGE].append(timed(run(0, thorough=True)))
        connection.execute(
            "INSERT INTO campaign_jobs.position_requests (campaign_id, event_id) VALUES (%s, %s)",
            (CAMPAIGN, f"event {number}"),
        )
        results[BY_EVENTS].append(timed(run(0)))
        settle(connection, "campaign_jobs.user_positions")
        results["bare"].append(timed(lambda: bare_update(database)))
    return {**results, "the first ranking, which inserts every row": [first]}


def shift_everybody(connection: Connection, number: int) -> None:
    """Let the leader into the ranking or out again, so that every other position moves by one."""
    connection.execute(
        "UPDATE campaign_jobs.waitlist_users SET status = %s WHERE id = %s",
        ("pending" if number % 2 else "removed", LEADER_ID),
    )


def bare_update(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("SELECT set_config('work_mem', %s, true)", (WORK_MEM,))
        connection.execute(BARE, {"campaign": CAMPAIGN})


def check(done: Run | None, expected_changes: int | None) -> None:
    assert done is not None, "somebody else is running"
    if expected_changes is not None and abs(done.changed - expected_changes) > 1:
        raise SystemExit(f"{done.changed:,} positions changed; expected were {expected_changes:,}")
