"""What the database knows of people: a handful of statements for all of them, in one snapshot."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from campaign_jobs_cli.targets import Connection

_USERS: Final = """
SELECT users.id AS user_id, users.email, users.first_name, users.status, users.created_at, users.verified_at,
    users.deleted_at, users.referral_code, users.original_position,
    campaigns.id AS campaign_id, campaigns.name AS campaign, campaigns.status AS campaign_status,
    campaigns.points_per_referral, campaigns.position_email_min_delta, campaigns.position_email_cooldown,
    (SELECT max(reason) FROM campaign_jobs.email_suppressions
     WHERE address IN (lower(users.email), campaign_jobs.erased_address(users.email))) AS suppressed,
    (SELECT created_at FROM campaign_jobs.email_unsubscribes WHERE user_id = users.id) AS unsubscribed_at,
    EXISTS (SELECT FROM campaign_jobs.held_users WHERE held_users.user_id = users.id) AS held,
    positions.position, positions.score, positions.verified_referrals AS referrals_in_score,
    positions.last_enqueued_position, positions.changed_at AS position_changed_at,
    runs.ranked_at,
    (SELECT count(*) FROM campaign_jobs.position_requests WHERE campaign_id = campaigns.id) AS requests_waiting,
    told.position AS last_told_position, told.accepted_at AS last_told_at,
    told.accepted_at + campaigns.position_email_cooldown AS cooldown_until,
    clock_timestamp() AS now
FROM campaign_jobs.waitlist_users AS users
JOIN campaign_jobs.campaigns ON campaigns.id = users.campaign_id
LEFT JOIN campaign_jobs.user_positions AS positions ON positions.user_id = users.id
LEFT JOIN campaign_jobs.position_runs AS runs ON runs.campaign_id = campaigns.id
LEFT JOIN LATERAL (
    SELECT mail.position, mail.accepted_at FROM campaign_jobs.email_messages AS mail
    WHERE mail.user_id = users.id AND mail.type = 'position_update' AND mail.status = 'accepted'
    ORDER BY mail.accepted_at DESC LIMIT 1
) AS told ON true
WHERE users.id = ANY(%(ids)s)
ORDER BY users.created_at, users.id
"""

# Both roles, because who somebody was brought by is asked as often as whom they have brought.
_REFERRALS: Final = """
SELECT wanted.user_id, referral.referrer_id = wanted.user_id AS brought, referral.status, referral.created_at,
    referral.verified_at, other.id AS other_id, other.email AS other_email, other.status AS other_status,
    EXISTS (SELECT FROM campaign_jobs.held_users AS held WHERE held.user_id = referral.referrer_id) AS referrer_held,
    EXISTS (SELECT FROM campaign_jobs.held_users AS held WHERE held.user_id = referral.referred_id) AS referred_held
FROM unnest(%(ids)s::uuid[]) AS wanted (user_id)
CROSS JOIN LATERAL (
    SELECT * FROM campaign_jobs.referrals WHERE referrer_id = wanted.user_id
    UNION ALL SELECT * FROM campaign_jobs.referrals WHERE referred_id = wanted.user_id
) AS referral
JOIN campaign_jobs.waitlist_users AS other
    ON other.id = CASE referral.referrer_id WHEN wanted.user_id THEN referral.referred_id ELSE referral.referrer_id END
ORDER BY referral.created_at, referral.id
"""

_MAILS: Final = """
SELECT mail.user_id, mail.event_id, mail.type, mail.status, mail.reason, mail.delivery_status AS delivery,
    mail.created_at, mail.accepted_at, mail.position, mail.claimed_until
FROM campaign_jobs.email_messages AS mail WHERE mail.user_id = ANY(%(ids)s)
ORDER BY mail.created_at, mail.event_id
"""

_REWARDS: Final = """
SELECT earned.user_id, earned.id AS user_reward_id, rewards.name AS reward, rewards.delivery_method AS method,
    earned.occurrence, earned.status, earned.attempts, earned.last_error, earned.earned_at, earned.delivered_at,
    earned.expires_at, earned.held_at, earned.parked_at, earned.parked_event_id, earned.claimed_until,
    earned.mail_asked_at, endpoints.status AS endpoint, endpoints.disabled_reason, endpoints.rests_until,
    attempt.attempted_at AS last_attempt_at, attempt.status_code AS last_answer, attempt.event_id AS last_event_id
FROM campaign_jobs.user_rewards AS earned
JOIN campaign_jobs.rewards ON rewards.id = earned.reward_id
LEFT JOIN campaign_jobs.webhook_endpoints AS endpoints ON endpoints.id = rewards.webhook_endpoint_id
LEFT JOIN LATERAL (
    SELECT attempted_at, status_code, event_id FROM campaign_jobs.webhook_attempts
    WHERE user_reward_id = earned.id ORDER BY id DESC LIMIT 1
) AS attempt ON true
WHERE earned.user_id = ANY(%(ids)s)
ORDER BY earned.earned_at, earned.id
"""

_CASES: Final = """
SELECT user_id, id AS case_id, status, risk_score, holding, blocking, blocked_from, opened_at, decided_at,
    decision_reason, evidence
FROM campaign_jobs.fraud_cases WHERE user_id = ANY(%(ids)s) ORDER BY opened_at, id
"""

# Events that nobody has published yet; the index has no others.
_OUTBOX: Final = """
WITH keys AS (
    SELECT user_id, user_id::text AS key FROM unnest(%(ids)s::uuid[]) AS wanted (user_id)
    UNION ALL SELECT user_id, id::text FROM campaign_jobs.user_rewards WHERE user_id = ANY(%(ids)s)
)
SELECT keys.user_id, waiting.event_id, waiting.event ->> 'type' AS type, waiting.created_at
FROM campaign_jobs.outbox AS waiting JOIN keys ON keys.key = waiting.partition_key
WHERE waiting.published_at IS NULL AND waiting.refused IS NULL ORDER BY waiting.id
"""


def read(connection: Connection, ids: Sequence[UUID]) -> list[dict[str, Any]]:
    """What is known of each user, in six statements whatever their number; best in one snapshot."""
    parameters = {"ids": list(ids)}
    users = connection.execute(_USERS, parameters).fetchall()
    referrals, mails, rewards, cases, waiting = (
        _by_user(connection.execute(query, parameters).fetchall())
        for query in (_REFERRALS, _MAILS, _REWARDS, _CASES, _OUTBOX)
    )
    return [
        {
            "user": _user(user),
            "position": _position(user, referrals.get(str(user["user_id"]), [])),
            "referrals": [
                _referral(row) for row in referrals.get(str(user["user_id"]), []) if row["brought"]
            ],
            "brought_by": [
                _referral(row) for row in referrals.get(str(user["user_id"]), []) if not row["brought"]
            ],
            "mails": mails.get(str(user["user_id"]), []),
            "rewards": [_reward(row, held=user["held"]) for row in rewards.get(str(user["user_id"]), [])],
            "fraud_cases": cases.get(str(user["user_id"]), []),
            "in_the_outbox": waiting.get(str(user["user_id"]), []),
        }
        for user in users
    ]


def why_not_counted(referral: Mapping[str, Any]) -> str | None:
    """Why a referral gives its referrer no credit; None where it does."""
    if referral["status"] == "pending":
        return "the referred person is not verified yet"
    if referral["status"] == "invalid":
        return "a service has made it invalid"
    if referral["referrer_held"]:
        return "a fraud case holds the referrer"
    if referral["referred_held"]:
        return "a fraud case holds the referred person"
    return None


def _by_user(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(str(row["user_id"]), []).append(row)
    return found


_USER_COLUMNS: Final = (
    "user_id", "email", "first_name", "status", "campaign", "campaign_id", "campaign_status", "created_at",
    "verified_at", "deleted_at", "referral_code", "suppressed", "unsubscribed_at", "held",
)  # fmt: skip


def _user(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in _USER_COLUMNS} | {"mail": _may_be_written_to(row)}


def _may_be_written_to(row: Mapping[str, Any]) -> str:
    """What the email job would say of the receiver today, as far as it depends on nothing else."""
    if row["status"] in ("removed", "blocked"):
        return f"none: the user is {row['status']}"
    if row["suppressed"] is not None:
        return f"none: the address is suppressed ({row['suppressed']})"
    if row["campaign_status"] in ("paused", "draft"):
        return f"waits: the campaign is {row['campaign_status']}"
    if row["campaign_status"] == "ended":
        return "only verification and rewards: the campaign has ended"
    if row["unsubscribed_at"] is not None:
        return "only verification and rewards: the user has unsubscribed"
    return "all"


def _position(row: Mapping[str, Any], referrals: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    why = Counter(why_not_counted(referral) for referral in referrals if referral["brought"])
    counted = why.pop(None, 0)
    points = row["points_per_referral"]
    score = row["original_position"] - counted * points
    position = {
        "original_position": row["original_position"],
        "referrals_counted": counted,
        "referrals_not_counted": dict(why),
        "points_per_referral": points,
        "score": score,
        "formula": f"{row['original_position']:,} − {counted:,} × {points:,} = {score:,}",
        "position": row["position"],
        "state": _state_of_position(row, score),
        "ranked_at": row["ranked_at"],
        "changed_at": row["position_changed_at"],
        "last_enqueued_position": row["last_enqueued_position"],
        "last_told_position": row["last_told_position"],
        "last_told_at": row["last_told_at"],
        "cooldown_until": row["cooldown_until"],
        "mailed_when": f"better by {row['position_email_min_delta']:,} than last told",
    }
    if row["cooldown_until"] is not None and row["cooldown_until"] > row["now"]:
        position["mailed_when"] += ", after the cooldown"
    return position


def _state_of_position(row: Mapping[str, Any], score: int) -> str:
    if row["status"] in ("removed", "blocked"):
        return f"none: the user is {row['status']}"
    if row["position"] is None:
        return (
            "none yet: a recalculation waits"
            if row["requests_waiting"]
            else "none: no run has ranked the user"
        )
    if row["score"] != score:
        return f"of the last run, with a score of {row['score']:,}: a recalculation " + (
            "waits" if row["requests_waiting"] else "is missing"
        )
    if row["requests_waiting"]:
        return "of the last run; a recalculation of the campaign waits"
    return "up to date"


def _referral(row: Mapping[str, Any]) -> dict[str, Any]:
    why = why_not_counted(row)
    return {
        "email": row["other_email"],
        "user_id": row["other_id"],
        "status": row["status"],
        "counts": why is None,
        "why_not": why,
        "created_at": row["created_at"],
        "verified_at": row["verified_at"],
    }


def _reward(row: Mapping[str, Any], *, held: bool) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "user_id"} | {
        "waits_for": _waits_for(row, held=held)
    }


def _waits_for(row: Mapping[str, Any], *, held: bool) -> str | None:
    if row["status"] in ("delivered", "redeemed", "revoked", "expired"):
        return None
    if row["parked_at"] is not None:
        return f"its endpoint: {row['disabled_reason'] or row['endpoint']}"
    if held:
        return "a fraud case of the user"
    if row["status"] == "failed":
        return "an operator, or a new event"
    if row["status"] == "delivering":
        return "its mail" if row["claimed_until"] is None else "the answer of its endpoint"
    if row["method"] == "manual":
        return "an operator"
    return "the next attempt" if row["attempts"] else "its event"
