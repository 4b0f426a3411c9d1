"""Policy `block`: the one column of the services' tables that campaign-jobs writes, waitlist_users.status."""

from typing import Final

from campaign_jobs.database.connection import Connection

# Both statements lock the case before its user, in the order of cases, as decisions do.

# Whoever is blocked already, by a service, stays the service's.
_BLOCK: Final = """
WITH due AS (
    SELECT c.id AS case_id, u.id AS user_id, u.status
    FROM campaign_jobs.fraud_cases AS c
    JOIN campaign_jobs.waitlist_users AS u ON u.id = c.user_id
    WHERE c.status = 'open' AND c.blocking AND u.status IN ('pending', 'verified', 'converted')
    ORDER BY c.id FOR NO KEY UPDATE OF c, u
), blocked AS (
    UPDATE campaign_jobs.waitlist_users AS u SET status = 'blocked' FROM due WHERE u.id = due.user_id
)
UPDATE campaign_jobs.fraud_cases AS c SET blocked_from = due.status FROM due WHERE c.id = due.case_id
"""

# Who verified meanwhile gets the better status. Whose verified_at a service has cleared cannot be verified any more;
# the database would refuse that, and one status refused would keep everybody blocked.
_UNBLOCK: Final = """
WITH due AS (
    SELECT c.id AS case_id, u.id AS user_id, c.blocked_from
    FROM campaign_jobs.fraud_cases AS c
    JOIN campaign_jobs.waitlist_users AS u ON u.id = c.user_id
    WHERE c.blocked_from IS NOT NULL AND c.status <> 'confirmed' AND NOT (c.status = 'open' AND c.blocking)
        AND (%(user_id)s::uuid IS NULL OR c.user_id = %(user_id)s::uuid)
    ORDER BY c.id FOR NO KEY UPDATE OF c, u
), unblocked AS (
    UPDATE campaign_jobs.waitlist_users AS u
    SET status = CASE
        WHEN u.verified_at IS NULL THEN 'pending' WHEN due.blocked_from = 'pending' THEN 'verified'
        ELSE due.blocked_from
    END
    FROM due WHERE u.id = due.user_id AND u.status = 'blocked'
)
UPDATE campaign_jobs.fraud_cases AS c SET blocked_from = NULL FROM due WHERE c.id = due.case_id
"""


def block(connection: Connection) -> int:
    """Block the users whose open case says so; the case remembers the status that they had. Returns how many."""
    return connection.execute(_BLOCK).rowcount


def unblock(connection: Connection, *, user_id: object = None) -> int:
    """Give users (or one) the status back that a block took, where no case blocks any more. Returns how many."""
    return connection.execute(_UNBLOCK, {"user_id": user_id}).rowcount
