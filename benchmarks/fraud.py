"""How long looking through a whole campaign for fraud takes, against the bare SQL of the checks.

python -m benchmarks.scheduled [--users 1000000] [--rounds 3]
"""

from benchmarks.campaign import CAMPAIGN, settle, timed
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.fraud.job import FraudJob

TOUCHED = 1_000

# The floor: what the six checks look for among users who are not removed, with the usual thresholds as constants,
# written to a table. No policies of campaigns, lists of domains and programs, signals that stay or go, cases, holds.
BARE = (
    """
    INSERT INTO bare_signals
    SELECT side.user_id, 'self_referral', 4 * same_email::integer + 2 * same_device::integer + same_ip::integer,
           jsonb_build_object('referrer_id', r.referrer_id, 'referred_id', r.referred_id)
    FROM campaign_jobs.referrals AS r
    JOIN campaign_jobs.waitlist_users AS a ON a.id = r.referrer_id AND a.status <> 'removed'
    JOIN campaign_jobs.waitlist_users AS b ON b.id = r.referred_id AND b.status <> 'removed',
    LATERAL (SELECT a.email_normalized = b.email_normalized AS same_email,
                    a.device_fingerprint = b.device_fingerprint AS same_device, a.ip = b.ip AS same_ip) AS same,
    LATERAL (VALUES (r.referrer_id), (r.referred_id)) AS side (user_id)
    WHERE same_email OR same_device OR same_ip
    """,
    """
    INSERT INTO bare_signals
    SELECT referrer_id, 'velocity', max(within_an_hour), jsonb_build_object('referrals', max(within_an_hour))
    FROM (
        SELECT referrer_id, count(*) OVER (PARTITION BY referrer_id ORDER BY referrals.created_at
                                           RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW) AS within_an_hour
        FROM campaign_jobs.referrals
        JOIN campaign_jobs.waitlist_users AS referred ON referred.id = referred_id AND referred.status <> 'removed'
    ) AS counted
    JOIN campaign_jobs.waitlist_users AS referrer ON referrer.id = referrer_id AND referrer.status <> 'removed'
    GROUP BY referrer_id HAVING max(within_an_hour) > 10
    """,
    """
    INSERT INTO bare_signals
    SELECT id, 'fake_email', 1, jsonb_build_object('domain', split_part(email_normalized, '@', 2))
    FROM campaign_jobs.waitlist_users
    WHERE split_part(email_normalized, '@', 2) = 'mailinator.com' AND status <> 'removed'
    """,
    """
    INSERT INTO bare_signals
    SELECT u.id, 'fake_email', shared.accounts, jsonb_build_object('accounts', shared.accounts)
    FROM (
        SELECT email_normalized, count(*) AS accounts, min(original_position) AS first
        FROM campaign_jobs.waitlist_users WHERE status <> 'removed' GROUP BY email_normalized HAVING count(*) > 1
    ) AS shared
    JOIN campaign_jobs.waitlist_users AS u USING (email_normalized)
    WHERE u.original_position <> shared.first AND u.status <> 'removed'
    """,
    """
    INSERT INTO bare_signals
    SELECT id, 'bot', 1, jsonb_build_object('user_agent', user_agent)
    FROM campaign_jobs.waitlist_users WHERE user_agent ~ '^curl/' AND status <> 'removed'
    """,
    """
    INSERT INTO bare_signals
    SELECT u.id, 'duplicate_ip', shared.users, jsonb_build_object('users', shared.users)
    FROM (
        SELECT ip, count(*) AS users
        FROM campaign_jobs.waitlist_users WHERE status <> 'removed' GROUP BY ip HAVING count(*) > 3
    ) AS shared
    JOIN campaign_jobs.waitlist_users AS u USING (ip) WHERE u.status <> 'removed'
    """,
    """
    INSERT INTO bare_signals
    SELECT u.id, 'duplicate_device', shared.users, jsonb_build_object('users', shared.users)
    FROM (
        SELECT device_fingerprint, count(*) AS users
        FROM campaign_jobs.waitlist_users WHERE status <> 'removed' GROUP BY device_fingerprint HAVING count(*) > 2
    ) AS shared
    JOIN campaign_jobs.waitlist_users AS u USING (device_fingerprint) WHERE u.status <> 'removed'
    """,
)

COUNTED = 'SELECT "check", count(*) FROM {} GROUP BY "check" ORDER BY "check"'


def measure(connection: Connection, database: Database, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by name; `bare` is the floor."""
    connection.execute(
        'CREATE TABLE bare_signals (user_id uuid, "check" text, magnitude bigint, evidence jsonb)'
    )
    job = FraudJob(database)
    tables = ("campaign_jobs.fraud_signals", "campaign_jobs.fraud_cases", "campaign_jobs.waitlist_users")
    results: dict[str, list[float]] = {
        "bare": [],
        "everything, looked at again": [],
        f"{TOUCHED:,} users changed": [],
    }
    first = timed(lambda: job.run({}))
    for _ in range(rounds):
        connection.execute("TRUNCATE bare_signals")
        connection.execute("DELETE FROM campaign_jobs.job_watermarks WHERE job_type = 'fraud'")
        settle(connection, *tables)
        results["bare"].append(timed(lambda: [connection.execute(statement) for statement in BARE]))
        settle(connection, *tables)
        results["everything, looked at again"].append(timed(lambda: job.run({})))
        connection.execute(
            "UPDATE campaign_jobs.waitlist_users SET first_name = 'Ada' WHERE id IN (SELECT id"
            " FROM campaign_jobs.waitlist_users WHERE campaign_id = %s ORDER BY random() LIMIT %s)",
            [CAMPAIGN, TOUCHED],
        )
        results[f"{TOUCHED:,} users changed"].append(timed(lambda: job.run({})))
        ours, bare = (
            connection.execute(COUNTED.format(table).encode()).fetchall()
            for table in ("campaign_jobs.fraud_signals", "bare_signals")
        )
        assert ours == bare, f"the job found {ours}, the bare SQL {bare}"
    return {**results, "the first time, which opens the cases": [first]}
