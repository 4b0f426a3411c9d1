"""The email job's SQL: one read and one claim for a whole batch, results a pool-full at a time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from psycopg.errors import SerializationFailure, UniqueViolation
from psycopg.rows import dict_row

from campaign_jobs.database.connection import Connection
from campaign_jobs.email.decisions import RewardState, State, once_key
from campaign_jobs.events import EmailEvent, as_json

# Nothing that was asked for since then has lost its row to retention.
_KEPT_SINCE: Final = """
    coalesce((SELECT kept_since FROM campaign_jobs.retention WHERE table_name = 'email_messages'), '-infinity')
"""

# What every mail of the batch needs to be decided and rendered, one row for each event.
_LOAD: Final = f"""
SELECT
    wanted.event_id,
    clock_timestamp() AS now,
    campaigns.status AS campaign_status,
    campaigns.name AS campaign_name,
    campaigns.from_name, campaigns.from_email, campaigns.reply_to, campaigns.public_base_url,
    campaigns.position_email_min_delta, campaigns.position_email_cooldown,
    users.status AS user_status,
    users.campaign_id = wanted.campaign_id AS user_in_campaign,
    users.email, users.first_name, users.verification_token, users.referral_code, users.original_position,
    users.verified_at IS NOT NULL AS verified,
    positions.position, positions.verified_referrals,
    (SELECT max(reason) FROM campaign_jobs.email_suppressions
     WHERE address IN (lower(users.email), campaign_jobs.erased_address(users.email))) AS suppressed,
    EXISTS (SELECT FROM campaign_jobs.email_unsubscribes WHERE user_id = wanted.user_id) AS unsubscribed,
    EXISTS (SELECT FROM campaign_jobs.held_users WHERE user_id = wanted.user_id) AS held,
    own.status AS message_status,
    own.claimed_until,
    own.event_id IS NOT NULL
        AND (own.type, own.user_id, own.once_key) IS DISTINCT FROM (wanted.type, wanted.user_id, wanted.once_key)
        AS is_another_mails,
    own.event_id IS NULL AND coalesce(wanted.asked_at < {_KEPT_SINCE}, false) AS is_too_old,
    once.accepted AS once_accepted,
    greatest(once.claimed_until, in_flight.claimed_until) AS once_claimed_until,
    last_told.position AS last_told_position,
    last_told.accepted_at AS last_told_at,
    user_rewards.user_id AS reward_user_id,
    user_rewards.status AS reward_status,
    user_rewards.expires_at < clock_timestamp() AS reward_expired,
    user_rewards.data AS reward_data,
    rewards.name AS reward_name, rewards.description AS reward_description,
    rewards.delivery_method AS reward_delivery_method
FROM unnest(%(event_ids)s::text[], %(types)s::text[], %(campaign_ids)s::uuid[], %(user_ids)s::uuid[],
            %(user_reward_ids)s::uuid[], %(once_keys)s::text[], %(asked_ats)s::timestamptz[])
    AS wanted (event_id, type, campaign_id, user_id, user_reward_id, once_key, asked_at)
LEFT JOIN campaign_jobs.campaigns ON campaigns.id = wanted.campaign_id
LEFT JOIN campaign_jobs.waitlist_users AS users ON users.id = wanted.user_id
LEFT JOIN campaign_jobs.user_positions AS positions ON positions.user_id = wanted.user_id
LEFT JOIN campaign_jobs.email_messages AS own ON own.event_id = wanted.event_id
LEFT JOIN campaign_jobs.user_rewards ON user_rewards.id = wanted.user_reward_id
LEFT JOIN campaign_jobs.rewards ON rewards.id = user_rewards.reward_id
LEFT JOIN LATERAL (
    SELECT status = 'accepted' AS accepted, claimed_until FROM campaign_jobs.email_messages AS other
    WHERE other.once_key = wanted.once_key AND other.status IN ('claimed', 'accepted')
      AND other.event_id <> wanted.event_id
) AS once ON true
LEFT JOIN LATERAL (
    SELECT claimed_until FROM campaign_jobs.email_messages AS other
    WHERE wanted.type = 'position_update' AND other.type = 'position_update' AND other.status = 'claimed'
      AND other.user_id = wanted.user_id AND other.event_id <> wanted.event_id
) AS in_flight ON true
LEFT JOIN LATERAL (
    SELECT other.position, other.accepted_at FROM campaign_jobs.email_messages AS other
    WHERE wanted.type = 'position_update' AND other.type = 'position_update' AND other.status = 'accepted'
      AND other.user_id = wanted.user_id
    ORDER BY other.accepted_at DESC LIMIT 1
) AS last_told ON true
"""  # noqa: S608 - constants of this module

# The templates that override the built-in ones for these campaigns, types and explicit ids.
_TEMPLATES: Final = """
SELECT id, campaign_id, type, version, enabled AND locale = 'en' AS applies, subject, html, text
FROM campaign_jobs.email_templates
WHERE (enabled AND locale = 'en' AND type = ANY (%(types)s)
       AND (campaign_id IS NULL OR campaign_id = ANY (%(campaign_ids)s)))
   OR id = ANY (%(template_ids)s)
"""

# A claim that has expired under another event's id must not stand in this one's way.
_RELEASE_EXPIRED: Final = """
WITH expired AS (
    SELECT message.event_id
    FROM campaign_jobs.email_messages AS message
    JOIN unnest(%(event_ids)s::text[], %(types)s::text[], %(user_ids)s::uuid[], %(once_keys)s::text[])
        AS wanted (event_id, type, user_id, once_key)
        ON message.event_id <> wanted.event_id
        AND (message.once_key = wanted.once_key
             OR (wanted.type = 'position_update' AND message.type = 'position_update'
                 AND message.user_id = wanted.user_id))
    WHERE message.status = 'claimed' AND message.claimed_until < clock_timestamp()
    ORDER BY message.event_id
    FOR NO KEY UPDATE OF message
)
UPDATE campaign_jobs.email_messages AS message
SET status = 'released', reason = 'the claim expired', claim_token = NULL, claimed_until = NULL, updated_at = now()
FROM expired
WHERE message.event_id = expired.event_id
"""

# Whoever inserts the row first has the claim; a taken once-key is a conflict as well.
_CLAIM_NEW: Final = """
INSERT INTO campaign_jobs.email_messages
    (event_id, type, campaign_id, user_id, user_reward_id, once_key, asked_at, position, status, claim_token,
     claimed_until)
SELECT event_id, type, campaign_id, user_id, user_reward_id, once_key, asked_at, position, 'claimed', %(claim_token)s,
       clock_timestamp() + %(claim_for)s
FROM unnest(%(event_ids)s::text[], %(types)s::text[], %(campaign_ids)s::uuid[], %(user_ids)s::uuid[],
            %(user_reward_ids)s::uuid[], %(once_keys)s::text[], %(asked_ats)s::timestamptz[], %(positions)s::integer[])
    WITH ORDINALITY
    AS wanted (event_id, type, campaign_id, user_id, user_reward_id, once_key, asked_at, position, place)
ORDER BY place
ON CONFLICT DO NOTHING
RETURNING event_id
"""

# Rows of earlier tries: released, parked, failed and redriven, or left claimed by a crash.
_CLAIM_AGAIN: Final = """
WITH free AS (
    SELECT message.event_id, wanted.position
    FROM campaign_jobs.email_messages AS message
    JOIN unnest(%(event_ids)s::text[], %(types)s::text[], %(positions)s::integer[])
        AS wanted (event_id, type, position) USING (event_id)
    WHERE (message.status IN ('released', 'parked', 'failed')
           OR (message.status = 'claimed' AND message.claimed_until < clock_timestamp()))
      AND NOT EXISTS (
        SELECT FROM campaign_jobs.email_messages AS other
        WHERE other.event_id <> message.event_id
          AND ((other.once_key = message.once_key AND other.status IN ('claimed', 'accepted'))
               OR (message.type = 'position_update' AND other.type = 'position_update'
                   AND other.status = 'claimed' AND other.user_id = message.user_id))
      )
    ORDER BY message.event_id
    FOR UPDATE OF message
)
UPDATE campaign_jobs.email_messages AS message
SET status = 'claimed', reason = NULL, parked_event = NULL, position = free.position,
    claim_token = %(claim_token)s, claimed_until = clock_timestamp() + %(claim_for)s, updated_at = now()
FROM free
WHERE message.event_id = free.event_id
RETURNING message.event_id
"""

# What does not go: skipped, parked or failed. An accepted mail, an earlier skip, another mail under the same id or
# somebody else's live claim is left alone; a claim of our own ends when its mail is given up without an answer. What is
# too old gets no row, by which it would no longer be known as that.
_SET_ASIDE: Final = f"""
INSERT INTO campaign_jobs.email_messages
    (event_id, type, campaign_id, user_id, user_reward_id, once_key, asked_at, status, reason, parked_event)
SELECT wanted.event_id, wanted.type, users.campaign_id, users.id, user_rewards.id, wanted.once_key, wanted.asked_at,
       wanted.status, wanted.reason, wanted.parked_event
FROM unnest(%(event_ids)s::text[], %(types)s::text[], %(campaign_ids)s::uuid[], %(user_ids)s::uuid[],
            %(user_reward_ids)s::uuid[], %(once_keys)s::text[], %(asked_ats)s::timestamptz[], %(statuses)s::text[],
            %(reasons)s::text[], %(parked_events)s::jsonb[])
    AS wanted (event_id, type, campaign_id, user_id, user_reward_id, once_key, asked_at, status, reason, parked_event)
-- An event may be given up because these rows are not there, and then there is nothing to write it down for.
JOIN campaign_jobs.waitlist_users AS users ON users.id = wanted.user_id AND users.campaign_id = wanted.campaign_id
LEFT JOIN campaign_jobs.user_rewards ON user_rewards.id = wanted.user_reward_id AND user_rewards.user_id = users.id
WHERE (wanted.type = 'reward_earned') = (user_rewards.id IS NOT NULL)
  AND (wanted.asked_at IS NULL OR wanted.asked_at >= {_KEPT_SINCE}
       OR EXISTS (SELECT FROM campaign_jobs.email_messages AS own WHERE own.event_id = wanted.event_id))
ORDER BY wanted.event_id
ON CONFLICT (event_id) DO UPDATE
SET status = EXCLUDED.status, reason = EXCLUDED.reason, parked_event = EXCLUDED.parked_event,
    claim_token = NULL, claimed_until = NULL, updated_at = now()
WHERE (email_messages.type, email_messages.user_id, email_messages.once_key)
        IS NOT DISTINCT FROM (EXCLUDED.type, EXCLUDED.user_id, EXCLUDED.once_key)
  AND (email_messages.status IN ('released', 'parked', 'failed')
       OR (email_messages.status = 'claimed'
           AND (email_messages.claimed_until < clock_timestamp()
                OR email_messages.claim_token = %(own_claim_token)s)))
RETURNING event_id
"""  # noqa: S608 - constants of this module

# The claim token sees to it that only the claim's own holder writes a result. Somebody who waited for our claim may
# hold these rows for a moment, so they too are locked in order.
_RECORD: Final = """
WITH mine AS (
    SELECT message.event_id
    FROM campaign_jobs.email_messages AS message
    WHERE message.event_id = ANY (%(event_ids)s) AND message.claim_token = %(claim_token)s
    ORDER BY message.event_id
    FOR NO KEY UPDATE
)
UPDATE campaign_jobs.email_messages AS message
SET status = result.status, reason = result.reason, ses_message_id = result.ses_message_id,
    accepted_at = CASE WHEN result.status = 'accepted' THEN clock_timestamp() END,
    claim_token = NULL, claimed_until = NULL, updated_at = now()
FROM unnest(%(event_ids)s::text[], %(statuses)s::text[], %(reasons)s::text[], %(ses_message_ids)s::text[])
    AS result (event_id, status, reason, ses_message_id)
JOIN mine USING (event_id)
WHERE message.event_id = mine.event_id
RETURNING message.event_id, message.status, message.user_reward_id
"""

# As it came: whether it still fits the contract is for the function to say that gets it.
_RELEASE_PARKED: Final = """
WITH due AS (
    SELECT parked.event_id, parked.user_id, parked.parked_event
    FROM campaign_jobs.email_messages AS parked
    JOIN campaign_jobs.campaigns ON campaigns.id = parked.campaign_id
    WHERE parked.status = 'parked' AND campaigns.status IN ('active', 'ended')
    ORDER BY parked.event_id
    LIMIT %(limit)s
    FOR UPDATE OF parked SKIP LOCKED
), released AS (
    UPDATE campaign_jobs.email_messages AS message
    SET status = 'released', reason = 'no longer parked', parked_event = NULL, updated_at = now()
    FROM due
    WHERE message.event_id = due.event_id
)
INSERT INTO campaign_jobs.outbox (event_id, partition_key, event)
SELECT event_id, user_id::text, parked_event FROM due
ORDER BY event_id
ON CONFLICT (event_id) DO UPDATE
SET published_at = NULL, refused = NULL, event = EXCLUDED.event, created_at = EXCLUDED.created_at
"""


@dataclass(frozen=True)
class Loaded:
    """One event with everything the database knows for it."""

    event: EmailEvent
    state: State
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """How one claim ended: accepted, failed (it may be tried again), or released, without having been tried."""

    event_id: str
    status: str
    reason: str | None = None
    ses_message_id: str | None = None


@dataclass(frozen=True)
class SetAside:
    """An event whose mail does not go: its status is skipped, parked or failed."""

    event: EmailEvent
    status: str
    reason: str


def load(connection: Connection, events: Sequence[EmailEvent]) -> list[Loaded]:
    """Load all events of a batch in one statement, in their order."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = {row["event_id"]: row for row in cursor.execute(_LOAD, _columns(events))}
    return [Loaded(event, _state(rows[event.id]), rows[event.id]) for event in events]


def load_templates(connection: Connection, events: Sequence[EmailEvent]) -> list[Mapping[str, Any]]:
    """The templates that may apply to these events, besides the built-in ones; one statement."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return list(
            cursor.execute(
                _TEMPLATES,
                {
                    "types": sorted({event.data.type for event in events}),
                    "campaign_ids": sorted({event.data.campaign_id for event in events}),
                    "template_ids": sorted(
                        {event.data.template_id for event in events if event.data.template_id}
                    ),
                },
            )
        )


def claim(
    connection: Connection, loaded: Sequence[Loaded], *, claim_token: UUID, claim_for: timedelta
) -> set[str]:
    """Claim the mails that are to be sent, and return the ids of the events whose claim is ours.

    No two of them may have the same exclusive key, and they come sorted by it: batches with different events about the
    same users meet in the keys. Raises SerializationFailure where another batch claimed a rival
    event at the same moment, for the transaction to be repeated.
    """
    parameters = {
        **_columns([item.event for item in loaded]),
        "positions": [
            item.row["position"] if item.event.data.type == "position_update" else None for item in loaded
        ],
        "claim_token": claim_token,
        "claim_for": claim_for,
    }
    connection.execute(_RELEASE_EXPIRED, parameters)
    claimed = {row[0] for row in connection.execute(_CLAIM_NEW, parameters)}
    if len(claimed) < len(loaded):
        try:
            claimed |= {row[0] for row in connection.execute(_CLAIM_AGAIN, parameters)}
        except UniqueViolation as error:
            # A rival's claim was committed between the look and the write; a second look sees it.
            raise SerializationFailure("a rival event was claimed at the same moment") from error
    return claimed


def set_aside(
    connection: Connection, items: Sequence[SetAside], *, own_claim_token: UUID | None = None
) -> set[str]:
    """Write down the mails that do not go, and return the ids of the events written."""
    parameters = {
        "own_claim_token": own_claim_token,
        **_columns([item.event for item in items]),
        "statuses": [item.status for item in items],
        "reasons": [item.reason for item in items],
        "parked_events": [
            json.dumps(as_json(item.event)) if item.status == "parked" else None for item in items
        ],
    }
    return {row[0] for row in connection.execute(_SET_ASIDE, parameters)}


def record(
    connection: Connection, results: Sequence[Result], *, claim_token: UUID
) -> list[tuple[str, UUID | None]]:
    """Record how claimed mails ended; returns (event id, user reward id) of those whose claim was still ours."""
    ordered = sorted(results, key=lambda result: result.event_id)
    rows = connection.execute(
        _RECORD,
        {
            "event_ids": [result.event_id for result in ordered],
            "statuses": [result.status for result in ordered],
            "reasons": [result.reason for result in ordered],
            "ses_message_ids": [result.ses_message_id for result in ordered],
            "claim_token": claim_token,
        },
    )
    return [(event_id, user_reward_id) for event_id, _, user_reward_id in rows]


def release_parked(connection: Connection, *, limit: int) -> int:
    """Emit again, under the ids they had, the parked mails whose campaign goes on; returns how many."""
    return connection.execute(_RELEASE_PARKED, {"limit": limit}).rowcount


def _columns(events: Sequence[EmailEvent]) -> dict[str, Any]:
    return {
        "event_ids": [event.id for event in events],
        "types": [event.data.type for event in events],
        "campaign_ids": [event.data.campaign_id for event in events],
        "user_ids": [event.data.user_id for event in events],
        # Only a reward_earned mail is about a user reward, whatever a producer sends along.
        "user_reward_ids": [
            event.data.user_reward_id if event.data.type == "reward_earned" else None for event in events
        ],
        "once_keys": [once_key(event.data) for event in events],
        "asked_ats": [event.asked_at for event in events],
    }


def _state(row: Mapping[str, Any]) -> State:
    reward = None
    if row["reward_status"] is not None:
        reward = RewardState(
            user_id=str(row["reward_user_id"]),
            status=row["reward_status"],
            delivery_method=row["reward_delivery_method"],
            expired=bool(row["reward_expired"]),
        )
    return State(
        now=row["now"],
        campaign_status=row["campaign_status"],
        user_status=row["user_status"],
        user_in_campaign=bool(row["user_in_campaign"]),
        verified=bool(row["verified"]),
        suppressed=row["suppressed"],
        unsubscribed=row["unsubscribed"],
        held=row["held"],
        message_status=row["message_status"],
        is_too_old=row["is_too_old"],
        is_another_mails=row["is_another_mails"],
        claimed_until=row["claimed_until"],
        once_accepted=bool(row["once_accepted"]),
        once_claimed_until=row["once_claimed_until"],
        position=row["position"],
        last_notified_position=(
            row["last_told_position"]
            if row["last_told_position"] is not None
            else row["original_position"] or 0
        ),
        last_notified_at=row["last_told_at"],
        position_email_min_delta=row["position_email_min_delta"] or 1,
        position_email_cooldown=row["position_email_cooldown"] or timedelta(),
        reward=reward,
    )
