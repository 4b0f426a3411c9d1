"""A person's decision on a case, and the deliveries that a hold withheld.

All functions work in the caller's transaction. A recalculation of positions is asked for by triggers on fraud_cases.
"""

from typing import Any, Final
from uuid import UUID, uuid4

from campaign_jobs import outbox
from campaign_jobs.database.connection import Connection
from campaign_jobs.errors import CampaignJobsError
from campaign_jobs.events import RewardDeliveryJobPayload, RewardEvent
from campaign_jobs.fraud.blocking import unblock
from campaign_jobs.fraud.decisions import band

RELEASED_AT_ONCE: Final = 1_000
MAX_REASON_LENGTH: Final = 2_000


class CaseNotOpen(CampaignJobsError):
    """There is no such case, or somebody has decided it already; the message says which."""


class ReasonMissing(CampaignJobsError):
    """A decision needs a reason that a person understands."""


# A delivery that finds a hold locks the case FOR SHARE while it marks the user reward held. So a decision, which locks
# it FOR UPDATE, either comes first, and the delivery finds no hold any more, or sees next what was marked.
_LOCK: Final = "SELECT status, user_id FROM campaign_jobs.fraud_cases WHERE id = %s FOR UPDATE"

_DECIDE: Final = """
UPDATE campaign_jobs.fraud_cases
SET status = %(status)s, decided_at = now(), decision_reason = %(reason)s, updated_at = now()
WHERE id = %(case_id)s
"""

_REVOKE_HELD: Final = """
UPDATE campaign_jobs.user_rewards SET status = 'revoked'
WHERE user_id = %s AND held_at IS NOT NULL AND status = 'earned'
"""

_SIGNALS: Final = """
SELECT "check", evidence_key, magnitude FROM campaign_jobs.fraud_signals WHERE user_id = %s ORDER BY 1, 2
"""

_REMEMBER: Final = """
INSERT INTO campaign_jobs.fraud_dismissals (user_id, "check", evidence_key, band)
SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::integer[])
ON CONFLICT (user_id, "check", evidence_key)
DO UPDATE SET band = greatest(fraud_dismissals.band, EXCLUDED.band), dismissed_at = now()
"""

_RELEASE: Final = """
WITH unheld AS (
    SELECT id FROM campaign_jobs.user_rewards AS ur
    WHERE held_at IS NOT NULL AND status = 'earned' AND (%(user_id)s::uuid IS NULL OR user_id = %(user_id)s::uuid)
        AND NOT EXISTS (SELECT FROM campaign_jobs.held_users AS held WHERE held.user_id = ur.user_id)
    ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE campaign_jobs.user_rewards AS ur SET held_at = NULL
FROM unheld WHERE ur.id = unheld.id
RETURNING ur.id, ur.campaign_id, now()
"""


def confirm(connection: Connection, case_id: UUID, *, reason: str) -> None:
    """Decide that it is fraud: the hold stays for good, and rewards that it withheld are revoked.

    Raises CaseNotOpen and ReasonMissing.
    """
    user_id = _decide(connection, case_id, "confirmed", reason)
    connection.execute(_REVOKE_HELD, [user_id])


def dismiss(connection: Connection, case_id: UUID, *, reason: str) -> None:
    """Decide that it is no fraud: what was withheld is delivered, a block ends, the same evidence opens no case again.

    Raises CaseNotOpen and ReasonMissing.
    """
    user_id = _decide(connection, case_id, "dismissed", reason)
    # The signals rather than the case's evidence, which shows only the strongest. A run writes signals and case in one
    # transaction that holds the case's lock, so the two belong together.
    signals = connection.execute(_SIGNALS, [user_id]).fetchall()
    names, keys, magnitudes = zip(*signals, strict=True) if signals else ((), (), ())
    connection.execute(
        _REMEMBER,
        [
            user_id,
            list(names),
            list(keys),
            [band(magnitude) for magnitude in magnitudes],
        ],
    )
    unblock(connection, user_id=user_id)
    _release(connection, user_id=user_id, limit=None)


def release_unheld(connection: Connection) -> int:
    """Emit a new delivery for rewards that a hold withheld and that nothing holds now; `relay` calls it each round.

    A hold may also end without a person's decision, when the case is retracted or its score falls. Returns how many
    deliveries it emitted; at most 1,000 at once.
    """
    return _release(connection, user_id=None, limit=RELEASED_AT_ONCE)


def _decide(connection: Connection, case_id: UUID, status: str, reason: str) -> Any:
    reason = reason.strip()
    if not 0 < len(reason) <= MAX_REASON_LENGTH or "\x00" in reason:
        raise ReasonMissing(f"the reason must be a text of 1 to {MAX_REASON_LENGTH} characters without NUL")
    found = connection.execute(_LOCK, [case_id]).fetchone()
    if found is None:
        raise CaseNotOpen(f"there is no fraud case {case_id}")
    if found[0] != "open":
        raise CaseNotOpen(f"fraud case {case_id} is {found[0]}; only an open case can be {status}")
    connection.execute(_DECIDE, {"case_id": case_id, "status": status, "reason": reason})
    return found[1]


def _release(connection: Connection, *, user_id: UUID | None, limit: int | None) -> int:
    released = connection.execute(_RELEASE, {"user_id": user_id, "limit": limit}).fetchall()
    events = [
        RewardEvent(
            id=str(uuid4()),
            type="job.reward.deliver",
            campaign_id=str(campaign_id),
            timestamp=now,
            data=RewardDeliveryJobPayload(user_reward_id=user_reward_id),
        )
        for user_reward_id, campaign_id, now in released
    ]
    return outbox.enqueue(connection, events)
