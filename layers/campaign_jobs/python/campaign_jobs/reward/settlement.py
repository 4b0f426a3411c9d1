"""What others do to user rewards: the email job settles, an operator delivers by hand, relay releases parked ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal
from uuid import UUID, uuid5

from campaign_jobs import outbox
from campaign_jobs.database.connection import Connection
from campaign_jobs.errors import CampaignJobsError
from campaign_jobs.events import RewardDeliveryJobPayload, RewardEvent
from campaign_jobs.reward.decisions import DELIVERABLE_USER_STATUSES
from campaign_jobs.reward.store import FOLLOW_UP_NAMESPACE, MAIL_ON_ITS_WAY

RELEASED_AT_ONCE: Final = 1_000
FORGOTTEN_AFTER: Final = timedelta(days=22)
"""Longer than the topic and a queue keep an event together: nobody has the delivery any more."""

_LOCK_HOLDING_CASES = """
SELECT cases.user_id, cases.status = 'confirmed' FROM campaign_jobs.fraud_cases AS cases
WHERE cases.user_id IN (SELECT user_id FROM campaign_jobs.user_rewards WHERE id = ANY(%s))
    AND (cases.status = 'confirmed' OR (cases.status = 'open' AND cases.holding) OR cases.blocked_from IS NOT NULL)
ORDER BY cases.id FOR SHARE
"""

# An accepted mail is the truth, also where it was given up before and somebody redrove it.
_SETTLE = """
WITH settling AS (
    SELECT user_rewards.id, settlement.result, settlement.reason FROM campaign_jobs.user_rewards
    JOIN unnest(%(ids)s::uuid[], %(results)s::text[], %(reasons)s::text[])
        AS settlement (user_reward_id, result, reason)
        ON settlement.user_reward_id = user_rewards.id
    JOIN campaign_jobs.rewards ON rewards.id = user_rewards.reward_id AND rewards.delivery_method = 'email'
    WHERE user_rewards.claim_token IS NULL
        AND (user_rewards.status IN ('earned', 'delivering')
            OR (settlement.result = 'accepted'
                AND (user_rewards.status = 'failed'
                    OR (user_rewards.status = 'redeemed' AND user_rewards.delivered_at IS NULL))))
    ORDER BY user_rewards.id FOR NO KEY UPDATE OF user_rewards
)
UPDATE campaign_jobs.user_rewards
SET status = CASE WHEN user_rewards.status = 'redeemed' THEN 'redeemed' WHEN result = 'accepted' THEN 'delivered'
        WHEN result = 'held' AND user_id = ANY(%(confirmed_user_ids)s) THEN 'revoked'
        WHEN result = 'held' THEN 'earned' ELSE 'failed' END,
    delivered_at = CASE result WHEN 'accepted' THEN clock_timestamp() ELSE delivered_at END,
    last_error = CASE result WHEN 'failed' THEN reason END,
    held_at = CASE WHEN result = 'held' AND user_id = ANY(%(held_user_ids)s) THEN clock_timestamp() END,
    -- Parked while its reward was still delivered by webhook.
    parked_event_id = NULL, parked_at = NULL
FROM settling WHERE user_rewards.id = settling.id
RETURNING user_rewards.id, user_rewards.campaign_id, user_rewards.attempts, clock_timestamp(),
    result = 'held' AND held_at IS NULL
"""

_DELIVER_MANUALLY = """
UPDATE campaign_jobs.user_rewards
SET status = 'delivered', delivered_at = clock_timestamp(), attempts = attempts + 1, last_error = NULL,
    held_at = NULL, parked_event_id = NULL, parked_at = NULL
FROM campaign_jobs.rewards, campaign_jobs.waitlist_users AS users
WHERE user_rewards.id = %(id)s AND rewards.id = user_rewards.reward_id AND users.id = user_rewards.user_id
    AND rewards.delivery_method = 'manual' AND user_rewards.status IN ('earned', 'failed')
    AND (user_rewards.expires_at IS NULL OR user_rewards.expires_at > clock_timestamp())
    AND users.status = ANY(%(user_statuses)s)
    AND NOT EXISTS (SELECT FROM campaign_jobs.held_users WHERE held_users.user_id = user_rewards.user_id)
"""

_WHY_NOT_MANUALLY = """
SELECT user_rewards.status, rewards.delivery_method, users.status,
    EXISTS (SELECT FROM campaign_jobs.held_users WHERE held_users.user_id = user_rewards.user_id)
FROM campaign_jobs.user_rewards
JOIN campaign_jobs.rewards ON rewards.id = user_rewards.reward_id
JOIN campaign_jobs.waitlist_users AS users ON users.id = user_rewards.user_id
WHERE user_rewards.id = %s
"""

_RELEASE_PARKED = """
WITH released AS (
    SELECT user_rewards.id, user_rewards.parked_event_id, user_rewards.parked_at
    FROM campaign_jobs.user_rewards
    JOIN campaign_jobs.rewards ON rewards.id = user_rewards.reward_id
    LEFT JOIN campaign_jobs.webhook_endpoints AS endpoints ON endpoints.id = rewards.webhook_endpoint_id
    WHERE user_rewards.parked_at IS NOT NULL
        -- A reward that is no longer delivered by webhook waits for no endpoint either.
        AND (endpoints.id IS NULL OR endpoints.status = 'enabled')
    ORDER BY user_rewards.id LIMIT %s FOR NO KEY UPDATE OF user_rewards SKIP LOCKED
)
UPDATE campaign_jobs.user_rewards SET parked_event_id = NULL, parked_at = NULL
FROM released WHERE user_rewards.id = released.id
RETURNING user_rewards.id, user_rewards.campaign_id, released.parked_event_id, released.parked_at
"""

# The events of these died without their functions: they killed them, or SQS moved their messages.
_FAIL_FORGOTTEN = f"""
WITH forgotten AS (
    SELECT id FROM campaign_jobs.user_rewards
    WHERE status = 'delivering'
        AND coalesce(claimed_until, mail_asked_at, earned_at) < clock_timestamp() - %(mail_patience)s
        AND NOT ({MAIL_ON_ITS_WAY})
    ORDER BY id LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE campaign_jobs.user_rewards
SET status = 'failed', last_error = 'its delivery was begun and never ended', claim_token = NULL, claimed_until = NULL
FROM forgotten WHERE user_rewards.id = forgotten.id
"""  # noqa: S608 - constants


class NotDeliverable(CampaignJobsError):
    """A user reward cannot be delivered by hand; the message says why."""


@dataclass(frozen=True)
class EmailedReward:
    """What became of the mail about one user reward."""

    user_reward_id: UUID
    result: Literal["accepted", "held", "failed"]
    reason: str | None = None
    """Why it failed: the reason of the skip or of the dead letter."""


def settle_emailed(connection: Connection, settlements: Sequence[EmailedReward]) -> None:
    """Settle user rewards in the transaction that records their mails; at most three statements for all of them.

    Accepted is delivered, held goes back to earned, or is revoked where the case is confirmed, failed is failed with
    its reason. User rewards that are delivered another way, or that are settled already, stay as they are. The last
    settlement of a user reward counts.
    """
    by_id = {settlement.user_reward_id: settlement for settlement in settlements}
    if not by_id:
        return
    held = [id_ for id_, settlement in by_id.items() if settlement.result == "held"]
    # The lock keeps a case from being dismissed before held_at is there for the dismissal to find.
    holding = connection.execute(_LOCK_HOLDING_CASES, (held,)).fetchall() if held else []
    rows = connection.execute(
        _SETTLE,
        {
            "ids": list(by_id),
            "results": [settlement.result for settlement in by_id.values()],
            "reasons": [settlement.reason for settlement in by_id.values()],
            "held_user_ids": [user_id for user_id, _ in holding],
            "confirmed_user_ids": [user_id for user_id, confirmed in holding if confirmed],
        },
    ).fetchall()
    # Where the case has been dismissed since the mail was skipped, nobody else would ask for the delivery again.
    outbox.enqueue(
        connection,
        [
            RewardEvent(
                id=str(uuid5(FOLLOW_UP_NAMESPACE, f"hold of {id_} ended:{attempts}")),
                type="job.reward.deliver",
                campaign_id=str(campaign_id),
                data=RewardDeliveryJobPayload(user_reward_id=id_),
                timestamp=now,
            )
            for id_, campaign_id, attempts, now, hold_ended in rows
            if hold_ended
        ],
    )


def deliver_manually(connection: Connection, user_reward_id: UUID) -> None:
    """Write down that an operator has delivered a user reward by hand.

    Raises NotDeliverable when its reward is not delivered by hand, or it is not to be delivered now.
    """
    parameters = {"id": user_reward_id, "user_statuses": sorted(DELIVERABLE_USER_STATUSES)}
    if connection.execute(_DELIVER_MANUALLY, parameters).rowcount == 1:
        return
    row = connection.execute(_WHY_NOT_MANUALLY, (user_reward_id,)).fetchone()
    if row is None:
        raise NotDeliverable(f"there is no user reward {user_reward_id}")
    status, method, user_status, held = row
    if method != "manual":
        why = f"its reward is delivered by {method}; allowed is manual"
    elif status not in ("earned", "failed"):
        why = f"it is {status}; allowed are earned and failed"
    elif held:
        why = "a fraud case holds it; confirm or dismiss the case first"
    elif user_status not in DELIVERABLE_USER_STATUSES:
        why = f"the user is {user_status}"
    else:
        why = "it expired"
    raise NotDeliverable(f"the user reward {user_reward_id} cannot be delivered by hand: {why}")


def release_parked(connection: Connection) -> int:
    """Emit the deliveries again whose endpoint is enabled again, under the ids they had; returns how many.

    At most RELEASED_AT_ONCE at a time, for relay to call in each of its rounds.
    """
    rows = connection.execute(_RELEASE_PARKED, (RELEASED_AT_ONCE,)).fetchall()
    outbox.enqueue_again(
        connection,
        [
            RewardEvent(
                id=event_id,
                type="job.reward.deliver",
                campaign_id=str(campaign_id),
                data=RewardDeliveryJobPayload(user_reward_id=id_),
                timestamp=parked_at,
            )
            for id_, campaign_id, event_id, parked_at in rows
        ],
    )
    return len(rows)


def fail_forgotten(connection: Connection) -> int:
    """Mark the user rewards as failed whose delivery nobody can have any more; returns how many.

    At most RELEASED_AT_ONCE at a time, for relay to call now and then.
    """
    parameters = {"mail_patience": FORGOTTEN_AFTER, "limit": RELEASED_AT_ONCE}
    return connection.execute(_FAIL_FORGOTTEN, parameters).rowcount
