"""How long a recalculation of a whole campaign takes, against the bare SQL that ranks and writes.

    python benchmarks/positions.py [--users 1000000] [--rounds 5]

Starts a PostgreSQL server of its own in a temporary directory. Every figure is a median over alternating rounds in one
run, so that what else the machine does meets both sides alike; the ratios are what to compare between machines.
"""

import argparse
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psycopg

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "layers" / "campaign_jobs" / "python")]

from campaign_jobs.database import migrations
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.position.run import WORK_MEM, Run, recalculate
from local.postgres import PostgresServer

CAMPAIGN = uuid.UUID(int=1)
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

USERS = """
INSERT INTO campaign_jobs.waitlist_users
    (id, campaign_id, email, status, original_position, referral_code, verified_at, ip, user_agent, created_at)
SELECT md5('user ' || n)::uuid, %(campaign)s, 'person' || n || '@example.org', 'verified', n + 1, 'code' || n, now(),
       '10.0.0.0'::inet + n %% 16000000, 'Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0',
       now() - interval '30 days' + n * interval '2 seconds'
FROM generate_series(1, %(users)s) AS n
"""

# Half of the users came through somebody; a few people bring many, as it is. Every tenth referral does not count.
REFERRALS = """
INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id, status, verified_at)
SELECT gen_random_uuid(), %(campaign)s, md5('user ' || referrer)::uuid, md5('user ' || n)::uuid,
       CASE WHEN n %% 20 = 0 THEN 'pending' ELSE 'verified' END, CASE WHEN n %% 20 = 0 THEN NULL ELSE now() END
FROM (
    SELECT n, 1 + floor(power(random(), 2) * (n - 1))::integer AS referrer FROM generate_series(2, %(users)s, 2) AS n
) AS pairs
WHERE referrer <> n
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="positions-") as directory:
        say("starting PostgreSQL")
        with PostgresServer(Path(directory) / "data") as server:
            url = server.create_database("benchmark")
            migrations.apply(url)
            database = Database(url)
            with psycopg.connect(url, autocommit=True) as connection:
                measure(connection, database, arguments.users, arguments.rounds)
            database.close()


def measure(connection: Connection, database: Database, users: int, rounds: int) -> None:
    parameters = {"campaign": CAMPAIGN, "users": users}
    say(f"a campaign of {users:,} users")
    connection.execute(
        "INSERT INTO campaign_jobs.campaigns (id, name, points_per_referral, position_email_min_delta)"
        " VALUES (%(campaign)s, 'Launch', 3, 2147483647)",
        parameters,
    )
    connection.execute(USERS, parameters)
    connection.execute(LEADER, {**parameters, "leader": LEADER_ID})
    say("their referrals")
    connection.execute(REFERRALS, parameters)
    connection.execute(LEADERS_REFERRALS, {**parameters, "leader": LEADER_ID})
    connection.execute("VACUUM (ANALYZE) campaign_jobs.waitlist_users, campaign_jobs.referrals")

    def run(expected_changes: int | None = None, *, thorough: bool = False) -> Callable[[], None]:
        def once() -> None:
            done = recalculate(database, CAMPAIGN, thorough=thorough)
            check(done, expected_changes)

        return once

    first = timed(run())
    say(f"first ranking (inserts): {first:.2f} s")
    connection.execute("VACUUM (ANALYZE) campaign_jobs.user_positions")

    whole: list[float] = []
    bare: list[float] = []
    thorough: list[float] = []
    by_events: list[float] = []
    for number in range(1, rounds + 1):
        shift_everybody(connection, number)
        settle(connection)
        whole.append(timed(run(users)))
        settle(connection)
        thorough.append(timed(run(0, thorough=True)))
        connection.execute(
            "INSERT INTO campaign_jobs.position_requests (campaign_id, event_id) VALUES (%s, %s)",
            (CAMPAIGN, f"event {number}"),
        )
        by_events.append(timed(run(0)))
        settle(connection)
        bare.append(timed(lambda: bare_update(database)))
        say(
            f"round {number}: bare {bare[-1]:.2f} s, whole {whole[-1]:.2f} s, "
            f"no change (thorough) {thorough[-1]:.2f} s, no change (events alone) {by_events[-1] * 1000:.1f} ms"
        )
    base = statistics.median(bare)
    for name, seconds in (
        ("bare full-rank UPDATE", bare),
        ("run, every row changes", whole),
        ("run, no change, thorough", thorough),
        ("run, no change, events alone", by_events),
    ):
        median = statistics.median(seconds)
        print(f"{name:32} median {median:8.3f} s   ratio {median / base:6.3f}", flush=True)
    print(f"{'first ranking (inserts)':32} once   {first:8.3f} s   ratio {first / base:6.3f}", flush=True)
    connection.execute("UPDATE campaign_jobs.campaigns SET position_email_min_delta = 1")
    connection.execute("UPDATE campaign_jobs.user_positions SET last_enqueued_position = position + 1")
    settle(connection)
    mails = timed(run(0))
    print(f"{'run, everybody is told':32} once   {mails:8.3f} s   ratio {mails / base:6.3f}", flush=True)


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


def settle(connection: Connection) -> None:
    """What autovacuum and the checkpointer would do between two runs, so that neither falls into a measurement."""
    connection.execute("VACUUM campaign_jobs.user_positions")
    connection.execute("CHECKPOINT")


def check(done: Run | None, expected_changes: int | None) -> None:
    assert done is not None, "somebody else is running"
    if expected_changes is not None and abs(done.changed - expected_changes) > 1:
        raise SystemExit(f"{done.changed:,} positions changed; expected were {expected_changes:,}")


def timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
