"""How long counting a whole campaign's hours takes, against the bare SQL that counts and writes them.

python -m benchmarks.scheduled [--users 1000000] [--rounds 3]
"""

from benchmarks.campaign import settle, timed
from campaign_jobs.analytics.job import AnalyticsJob
from campaign_jobs.database.connection import Connection, Database

# The floor: no watermark and no lock. Hours are those of each campaign's time zone, without which they would be wrong.
BARE = """
INSERT INTO bare_metrics
SELECT campaign_id, bucket, sum(new_signups), sum(email_verifications), sum(referrals), 0, 0
FROM (
    SELECT campaign_id, date_trunc('hour', users.created_at, timezone) AS bucket, count(*) AS new_signups,
           0 AS email_verifications, 0 AS referrals
    FROM campaign_jobs.waitlist_users AS users JOIN campaign_jobs.campaigns ON campaigns.id = campaign_id
    GROUP BY 1, 2
    UNION ALL
    SELECT campaign_id, date_trunc('hour', verified_at, timezone), 0, count(*), 0
    FROM campaign_jobs.waitlist_users JOIN campaign_jobs.campaigns ON campaigns.id = campaign_id
    WHERE verified_at IS NOT NULL GROUP BY 1, 2
    UNION ALL
    SELECT campaign_id, date_trunc('hour', referrals.created_at, timezone), 0, 0, count(*)
    FROM campaign_jobs.referrals JOIN campaign_jobs.campaigns ON campaigns.id = campaign_id GROUP BY 1, 2
) AS counted
GROUP BY campaign_id, bucket
"""

SAME = "SELECT * FROM bare_metrics EXCEPT SELECT * FROM campaign_jobs.campaign_metrics"


def measure(connection: Connection, database: Database, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by name; `bare` is the floor."""
    connection.execute("CREATE TABLE bare_metrics (LIKE campaign_jobs.campaign_metrics INCLUDING ALL)")
    job = AnalyticsJob(database)
    results: dict[str, list[float]] = {
        "bare": [],
        "every hour, counted again": [],
        "the last day's hours": [],
    }
    for _ in range(rounds):
        connection.execute("TRUNCATE bare_metrics")
        connection.execute("DELETE FROM campaign_jobs.job_watermarks WHERE job_type = 'analytics'")
        settle(connection, "campaign_jobs.campaign_metrics")
        results["bare"].append(timed(lambda: connection.execute(BARE)))
        settle(connection, "campaign_jobs.campaign_metrics")
        results["every hour, counted again"].append(timed(lambda: job.run({})))
        results["the last day's hours"].append(timed(lambda: job.run({})))
        assert not connection.execute(SAME).fetchall(), "the job and the bare SQL count differently"
    return results
