"""The reward job's SQL: each statement is for a whole batch.

Claiming looks at holds, recording never does. What is recorded is guarded by the claim's token, so that only the
claim's owner settles it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

from psycopg.rows import dict_row

from campaign_jobs import outbox
from campaign_jobs.database.connection import Connection
from campaign_jobs.events import EmailEvent, EmailJobPayload
from campaign_jobs.reward import endpoints
from campaign_jobs.reward.decisions import MAIL_PATIENCE, Endpoint, UserReward
from campaign_jobs.reward.endpoints import Attempt, EndpointsFound

FOLLOW_UP_NAMESPACE: Final = uuid5(NAMESPACE_URL, "campaign-jobs:reward")

# A mail that its function never gave up (it killed the function, or SQS moved its message) is found by its age. Asking
# once more than needed mails nothing twice: the two events share their once-key.
MAIL_ON_ITS_WAY = """
    user_rewards.status = 'delivering' AND user_rewards.claim_token IS NULL
    AND (coalesce(user_rewards.mail_asked_at, user_rewards.earned_at) > clock_timestamp() - %(mail_patience)s
        OR EXISTS (
            SELECT FROM campaign_jobs.email_messages AS mail
            WHERE mail.user_id = user_rewards.user_id AND mail.user_reward_id = user_rewards.id
                AND (mail.status = 'parked' OR mail.updated_at > clock_timestamp() - %(mail_patience)s)))
"""

_LOAD = f"""
SELECT
    clock_timestamp() AS now, user_rewards.id, user_rewards.campaign_id, user_rewards.status, user_rewards.occurrence,
    user_rewards.data, user_rewards.earned_at, user_rewards.expires_at, user_rewards.claimed_until,
    coalesce({MAIL_ON_ITS_WAY}, false) AS mail_on_its_way,
    EXISTS (SELECT FROM campaign_jobs.held_users WHERE held_users.user_id = user_rewards.user_id) AS held,
    users.id AS user_id, users.email AS user_email, users.status AS user_status,
    rewards.id AS reward_id, rewards.name AS reward_name, rewards.type AS reward_type, rewards.delivery_method,
    endpoints.id AS endpoint_id, endpoints.url, endpoints.secret, endpoints.previous_secret,
    endpoints.previous_secret_until, endpoints.status AS endpoint_status, endpoints.disabled_reason,
    endpoints.consecutive_failures, endpoints.rests_until
-- One row even where none of them is there, for the database's time.
FROM (SELECT) AS always
LEFT JOIN campaign_jobs.user_rewards ON user_rewards.id = ANY(%(ids)s)
LEFT JOIN campaign_jobs.rewards ON rewards.id = user_rewards.reward_id
LEFT JOIN campaign_jobs.waitlist_users AS users ON users.id = user_rewards.user_id
LEFT JOIN campaign_jobs.webhook_endpoints AS endpoints ON endpoints.id = rewards.webhook_endpoint_id
"""  # noqa: S608 - constants of this module

# A user reward that nobody is delivering at this moment: not begun, failed, or begun by somebody whose claim ran out.
_FREE = """
    user_rewards.status IN ('earned', 'failed', 'delivering')
    AND (user_rewards.claimed_until IS NULL OR user_rewards.claimed_until <= clock_timestamp())
"""
_UNHELD = "NOT EXISTS (SELECT FROM campaign_jobs.held_users WHERE held_users.user_id = user_rewards.user_id)"

_CLAIM = f"""
WITH free AS (
    SELECT id FROM campaign_jobs.user_rewards
    WHERE id = ANY(%(ids)s) AND {_FREE} AND {_UNHELD}
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE campaign_jobs.user_rewards
SET status = 'delivering', claim_token = %(token)s, claimed_until = clock_timestamp() + %(claimed_for)s,
    held_at = NULL, parked_event_id = NULL, parked_at = NULL
FROM free WHERE user_rewards.id = free.id
RETURNING user_rewards.id
"""  # noqa: S608 - constants of this module

_RELEASE = """
WITH mine AS (
    SELECT id FROM campaign_jobs.user_rewards
    WHERE id = ANY(%(ids)s) AND claim_token = %(token)s
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE campaign_jobs.user_rewards
SET status = CASE status WHEN 'delivering' THEN 'earned' ELSE status END, claim_token = NULL, claimed_until = NULL
FROM mine WHERE user_rewards.id = mine.id
"""

# The mail settles it, so there is no claim: while the mail is on its way, another event writes no other one.
_HAND_TO_EMAIL = f"""
WITH free AS (
    SELECT id FROM campaign_jobs.user_rewards
    WHERE id = ANY(%(ids)s) AND {_FREE} AND {_UNHELD} AND NOT ({MAIL_ON_ITS_WAY})
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE campaign_jobs.user_rewards
SET status = 'delivering', mail_asked_at = clock_timestamp(), attempts = attempts + 1,
    claim_token = NULL, claimed_until = NULL,
    held_at = NULL, parked_event_id = NULL, parked_at = NULL
FROM free WHERE user_rewards.id = free.id
RETURNING user_rewards.id, user_rewards.campaign_id, user_rewards.user_id, user_rewards.attempts, clock_timestamp()
"""  # noqa: S608 - constants of this module

# The lock keeps the case from being decided before held_at is there for the decision to find. A decision that came
# first and confirmed the case has revoked what was held by then, so what comes later is revoked here.
_HOLD = f"""
WITH holding AS (
    SELECT cases.user_id, cases.status FROM campaign_jobs.fraud_cases AS cases
    WHERE cases.user_id IN (SELECT user_id FROM campaign_jobs.user_rewards WHERE id = ANY(%(ids)s))
        AND (cases.status = 'confirmed' OR (cases.status = 'open' AND cases.holding) OR cases.blocked_from IS NOT NULL)
    ORDER BY cases.id FOR SHARE
), free AS (
    SELECT id FROM campaign_jobs.user_rewards
    WHERE id = ANY(%(ids)s) AND {_FREE} AND user_id IN (SELECT user_id FROM holding)
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE campaign_jobs.user_rewards
SET status = CASE
        WHEN user_id IN (SELECT user_id FROM holding WHERE status = 'confirmed') THEN 'revoked' ELSE 'earned'
    END,
    held_at = coalesce(held_at, clock_timestamp()), claim_token = NULL, claimed_until = NULL
FROM free WHERE user_rewards.id = free.id
RETURNING user_rewards.id
"""  # noqa: S608 - constants of this module

_PARK = f"""
WITH free AS (
    SELECT id, wanted.event_id FROM campaign_jobs.user_rewards
    JOIN unnest(%(ids)s::uuid[], %(event_ids)s::text[]) AS wanted (user_reward_id, event_id) ON user_reward_id = id
    WHERE {_FREE}
    ORDER BY id FOR NO KEY UPDATE OF user_rewards
)
UPDATE campaign_jobs.user_rewards
SET status = 'earned', claim_token = NULL, claimed_until = NULL,
    parked_event_id = coalesce(parked_event_id, free.event_id), parked_at = coalesce(parked_at, clock_timestamp())
FROM free WHERE user_rewards.id = free.id
RETURNING user_rewards.id
"""  # noqa: S608 - constants of this module

_RECORD = """
WITH mine AS (
    SELECT id FROM campaign_jobs.user_rewards
    WHERE id = ANY(%(ids)s) AND claim_token = %(token)s
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE campaign_jobs.user_rewards
-- A service may have redeemed, revoked or expired it meanwhile; that stays.
SET status = CASE WHEN user_rewards.status <> 'delivering' THEN user_rewards.status
        WHEN result = 'delivered' THEN 'delivered' WHEN result = 'refused' THEN 'failed' ELSE 'earned' END,
    delivered_at = CASE result WHEN 'delivered' THEN coalesce(delivered_at, clock_timestamp()) ELSE delivered_at END,
    attempts = attempts + 1, last_error = error, claim_token = NULL, claimed_until = NULL,
    parked_event_id = CASE WHEN stranded AND user_rewards.status = 'delivering' THEN event_id END,
    parked_at = CASE WHEN stranded AND user_rewards.status = 'delivering' THEN clock_timestamp() END
FROM (
    SELECT attempt.*, result = 'failed' AND endpoints.status = 'disabled' AS stranded
    FROM unnest(%(ids)s::uuid[], %(endpoint_ids)s::uuid[], %(event_ids)s::text[], %(results)s::text[],
            %(errors)s::text[])
        AS attempt (user_reward_id, endpoint_id, event_id, result, error)
    JOIN campaign_jobs.webhook_endpoints AS endpoints ON endpoints.id = attempt.endpoint_id
    JOIN mine ON mine.id = attempt.user_reward_id
) AS attempt
WHERE user_rewards.id = attempt.user_reward_id
RETURNING user_rewards.id, user_rewards.parked_at IS NOT NULL
"""

_RECORD_ATTEMPTS = """
INSERT INTO campaign_jobs.webhook_attempts
    (user_reward_id, endpoint_id, event_id, attempted_at, duration_ms, status_code, error)
SELECT * FROM unnest(%(ids)s::uuid[], %(endpoint_ids)s::uuid[], %(event_ids)s::text[], %(attempted_at)s::timestamptz[],
    %(durations)s::integer[], %(status_codes)s::integer[], %(errors)s::text[])
"""

# Not what somebody is delivering now, nor what waits for its mail, a dismissal or its endpoint.
_GIVE_UP = f"""
WITH given_up AS (
    SELECT id, wanted.reason FROM campaign_jobs.user_rewards
    JOIN unnest(%(ids)s::uuid[], %(reasons)s::text[]) AS wanted (user_reward_id, reason) ON user_reward_id = id
    WHERE {_FREE} AND NOT (status = 'delivering' AND claim_token IS NULL) AND held_at IS NULL AND parked_at IS NULL
    ORDER BY id FOR NO KEY UPDATE OF user_rewards
)
UPDATE campaign_jobs.user_rewards
SET status = 'failed', last_error = given_up.reason, claim_token = NULL, claimed_until = NULL
FROM given_up WHERE user_rewards.id = given_up.id
"""  # noqa: S608 - constants of this module


@dataclass(frozen=True)
class Claim:
    """The right of one invocation to deliver some user rewards for a while."""

    token: UUID
    lasts: timedelta


@dataclass(frozen=True)
class Recorded:
    """What a recording found."""

    settled: frozenset[UUID]
    """The user rewards whose claim was still ours."""
    parked: frozenset[UUID]
    endpoints: EndpointsFound


def load(connection: Connection, ids: Sequence[UUID]) -> tuple[datetime, dict[UUID, UserReward]]:
    """The database's time, and those of the user rewards that are there."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_LOAD, {"ids": list(ids), "mail_patience": MAIL_PATIENCE}).fetchall()
    return rows[0]["now"], {row["id"]: _user_reward(row) for row in rows if row["id"] is not None}


def claim(connection: Connection, ids: Sequence[UUID], claim: Claim) -> set[UUID]:
    """Claim user rewards for sending webhooks and return those that were free and not held."""
    parameters = {"ids": list(ids), "token": claim.token, "claimed_for": claim.lasts}
    return {row[0] for row in connection.execute(_CLAIM, parameters).fetchall()}


def release(connection: Connection, ids: Sequence[UUID], claim: Claim) -> None:
    """Give back claims of what was not started."""
    connection.execute(_RELEASE, {"ids": list(ids), "token": claim.token})


def hand_to_email(connection: Connection, causes: Sequence[tuple[UUID, str]]) -> set[UUID]:
    """Have user rewards mailed: status and reward_earned event in one transaction. Returns those that were free.

    `causes` are pairs of a user reward and the event that asks for it.
    """
    cause_of = dict(causes)
    rows = connection.execute(
        _HAND_TO_EMAIL, {"ids": list(cause_of), "mail_patience": MAIL_PATIENCE}
    ).fetchall()
    outbox.enqueue(
        connection,
        [
            EmailEvent(
                # The number of the attempt is part of it, so that a reward that failed is mailed anew by a redrive.
                id=str(uuid5(FOLLOW_UP_NAMESPACE, f"{cause_of[id_]}:{attempts}")),
                type="job.email.reward_earned",
                campaign_id=str(campaign_id),
                data=EmailJobPayload(
                    type="reward_earned", campaign_id=campaign_id, user_id=user_id, user_reward_id=id_
                ),
                timestamp=now,
            )
            for id_, campaign_id, user_id, attempts, now in rows
        ],
    )
    return {row[0] for row in rows}


def hold(connection: Connection, ids: Sequence[UUID]) -> set[UUID]:
    """Mark user rewards as held and return those that a case really holds.

    The dismissal of an open case emits them again; those of a confirmed one are revoked.
    """
    return {row[0] for row in connection.execute(_HOLD, {"ids": list(ids)}).fetchall()}


def park(connection: Connection, causes: Sequence[tuple[UUID, str]]) -> set[UUID]:
    """Let user rewards wait for their endpoint, each with its event; returns those that were free."""
    parameters = {"ids": [id_ for id_, _ in causes], "event_ids": [event_id for _, event_id in causes]}
    return {row[0] for row in connection.execute(_PARK, parameters).fetchall()}


def record(connection: Connection, attempts: Sequence[Attempt], claim: Claim) -> Recorded:
    """Write down what came of attempts: endpoints' failures, user rewards, and the attempts themselves."""
    parameters = {
        "token": claim.token,
        "ids": [attempt.user_reward_id for attempt in attempts],
        "endpoint_ids": [attempt.endpoint_id for attempt in attempts],
        "event_ids": [attempt.event_id for attempt in attempts],
        "results": ["failed" if attempt.result == "gone" else attempt.result for attempt in attempts],
        "errors": [attempt.error for attempt in attempts],
        "attempted_at": [attempt.attempted_at for attempt in attempts],
        "durations": [int(attempt.duration.total_seconds() * 1000) for attempt in attempts],
        "status_codes": [attempt.status_code for attempt in attempts],
    }
    found = endpoints.count(connection, attempts)
    rows = connection.execute(_RECORD, parameters).fetchall()
    connection.execute(_RECORD_ATTEMPTS, parameters)
    return Recorded(
        settled=frozenset(row[0] for row in rows),
        parked=frozenset(row[0] for row in rows if row[1]),
        endpoints=found,
    )


def give_up(connection: Connection, reasons: Sequence[tuple[UUID, str]]) -> None:
    """Mark user rewards as failed, each with the reason; those missing or otherwise settled stay as they are."""
    by_id = dict(reasons)
    connection.execute(_GIVE_UP, {"ids": list(by_id), "reasons": list(by_id.values())})


def _user_reward(row: dict[str, Any]) -> UserReward:
    endpoint = None
    if row["endpoint_id"] is not None:
        endpoint = Endpoint(
            id=row["endpoint_id"],
            status=row["endpoint_status"],
            **{name: row[name] for name in _ENDPOINT_COLUMNS},
        )
    return UserReward(endpoint=endpoint, **{name: row[name] for name in _USER_REWARD_COLUMNS})


_ENDPOINT_COLUMNS: Final = (
    "url", "secret", "previous_secret", "previous_secret_until", "disabled_reason", "consecutive_failures",
    "rests_until",
)  # fmt: skip
_USER_REWARD_COLUMNS: Final = tuple(item.name for item in fields(UserReward) if item.name != "endpoint")
