"""Mails that SES has taken although nobody recorded it: its events prove it, so they count as accepted."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from psycopg.errors import SerializationFailure, UniqueViolation

from campaign_jobs.database.connection import Connection
from campaign_jobs.reward.settlement import EmailedReward, settle_emailed

# The mails of these events, and the claims that stand in their way. A live claim's holder is still to record; of
# several mails under one once-key only one can have used it up.
_ACCEPT_PROVEN: Final = """
WITH concerned AS (
    SELECT event_id FROM campaign_jobs.email_messages WHERE event_id = ANY (%(event_ids)s)
    UNION
    SELECT event_id FROM campaign_jobs.email_messages
    WHERE once_key = ANY (%(once_keys)s) AND status = 'claimed'
    UNION
    SELECT event_id FROM campaign_jobs.email_messages
    WHERE user_id = ANY (%(position_user_ids)s) AND type = 'position_update' AND status = 'claimed'
), free AS (
    SELECT message.event_id, message.once_key, proof.ses_message_id, proof.occurred_at
    FROM concerned
    JOIN campaign_jobs.email_messages AS message USING (event_id)
    CROSS JOIN LATERAL (
        SELECT ses_message_id, occurred_at FROM campaign_jobs.email_events WHERE email_events.tag = message.tag
        ORDER BY occurred_at, ses_message_id LIMIT 1
    ) AS proof
    WHERE message.status <> 'accepted'
      AND (message.status <> 'claimed' OR message.claimed_until < clock_timestamp())
      AND NOT EXISTS (
        SELECT FROM campaign_jobs.email_messages AS other
        WHERE other.once_key = message.once_key AND other.event_id <> message.event_id
          AND other.status IN ('claimed', 'accepted')
      )
    ORDER BY message.event_id
    FOR NO KEY UPDATE OF message
), chosen AS (
    SELECT DISTINCT ON (once_key, CASE WHEN once_key IS NULL THEN event_id END) event_id, ses_message_id
    FROM free ORDER BY once_key, CASE WHEN once_key IS NULL THEN event_id END, occurred_at, event_id
)
UPDATE campaign_jobs.email_messages AS message
SET status = 'accepted', reason = NULL, ses_message_id = chosen.ses_message_id, accepted_at = clock_timestamp(),
    parked_event = NULL, claim_token = NULL, claimed_until = NULL, updated_at = now()
FROM chosen
WHERE message.event_id = chosen.event_id
RETURNING message.event_id, message.user_reward_id
"""


def accept_proven(
    connection: Connection,
    event_ids: Sequence[str],
    *,
    once_keys: Sequence[str] = (),
    position_user_ids: Sequence[UUID] = (),
) -> list[str]:
    """Accept the mails that SES's events prove to have been taken, and settle their rewards; returns the event ids.

    With once-keys or the users of position updates, also the mails whose expired claims stand in the way of these. Two
    statements at most. Raises SerializationFailure where a rival was claimed at the same moment, for the transaction to
    be repeated.
    """
    parameters = {
        "event_ids": list(event_ids),
        "once_keys": list(once_keys),
        "position_user_ids": list(position_user_ids),
    }
    try:
        accepted = connection.execute(_ACCEPT_PROVEN, parameters).fetchall()
    except UniqueViolation as error:
        raise SerializationFailure("a rival event was claimed at the same moment") from error
    settle_emailed(
        connection,
        [
            EmailedReward(user_reward_id, "accepted")
            for _, user_reward_id in accepted
            if user_reward_id is not None
        ],
    )
    return [event_id for event_id, _ in accepted]
