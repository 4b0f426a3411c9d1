"""A campaign to measure scheduled work on: half of its users came through somebody, and a few per cent cheat."""

import time
import uuid
from collections.abc import Callable

from campaign_jobs.database.connection import Connection

CAMPAIGN = uuid.UUID(int=1)

# Some share an address or a device with four others, some have a throw-away mailbox, a mailbox with two addresses, or a
# program for a browser.
USERS = """
INSERT INTO campaign_jobs.waitlist_users
    (id, campaign_id, email, status, original_position, referral_code, verified_at, ip, user_agent, device_fingerprint,
     created_at)
SELECT md5('user ' || n)::uuid, %(campaign)s,
       CASE WHEN n %% 250 = 1 THEN 'person' || n || '@mailinator.com'
            WHEN n %% 400 = 2 THEN 'person' || n - 1 || '+again@example.org'
            ELSE 'person' || n || '@example.org' END,
       'verified', n + 1, 'code' || n, created_at + interval '5 minutes',
       '10.0.0.0'::inet + (CASE WHEN n %% 500 < 5 THEN n / 500 * 500 ELSE n END) %% 16000000,
       CASE WHEN n %% 500 = 7 THEN 'curl/8.5.0'
            ELSE 'Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0' END,
       'device ' || CASE WHEN n %% 700 < 5 THEN n / 700 * 700 ELSE n END,
       created_at
FROM generate_series(1, %(users)s) AS n,
     LATERAL (SELECT now() - interval '30 days' + n * interval '2 seconds' AS created_at) AS signed_up
"""

# A few people bring many, as it is. Every tenth referral does not count.
REFERRALS = """
INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id, status, verified_at, created_at)
SELECT gen_random_uuid(), %(campaign)s, md5('user ' || referrer)::uuid, md5('user ' || n)::uuid,
       CASE WHEN n %% 20 = 0 THEN 'pending' ELSE 'verified' END, CASE WHEN n %% 20 = 0 THEN NULL ELSE now() END,
       now() - interval '30 days' + n * interval '2 seconds'
FROM (
    SELECT n, 1 + floor(power(random(), 2) * (n - 1))::integer AS referrer FROM generate_series(2, %(users)s, 2) AS n
) AS pairs
WHERE referrer <> n
"""


def launch(connection: Connection, users: int) -> None:
    """Put the campaign, its users and their referrals there."""
    parameters = {"campaign": CAMPAIGN, "users": users}
    say(f"a campaign of {users:,} users")
    connection.execute(
        "INSERT INTO campaign_jobs.campaigns (id, name, points_per_referral, position_email_min_delta)"
        " VALUES (%(campaign)s, 'Launch', 3, 2147483647)",
        parameters,
    )
    connection.execute(USERS, parameters)
    say("their referrals")
    connection.execute(REFERRALS, parameters)
    connection.execute("VACUUM (ANALYZE) campaign_jobs.waitlist_users, campaign_jobs.referrals")


def settle(connection: Connection, *tables: str) -> None:
    """What autovacuum and the checkpointer would do between two runs, so that neither falls into a measurement."""
    connection.execute(f"VACUUM {', '.join(tables)}".encode())
    connection.execute("CHECKPOINT")


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
