"""Erasing a person: what could tell who they are goes, what was counted stays.

The row of the user stays, as that of somebody who was removed: referrals and metrics go on counting them, mails and
rewards that are still on their way are skipped, and the position job ranks the others anew. What has left the database
(the topic, queues, SES, receivers of webhooks) is not reached from here; docs/data-contract.md says how long it lasts.
"""

from dataclasses import dataclass, fields
from typing import Any, Final
from uuid import UUID

from campaign_jobs.database.batches import repeat_on_conflict
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.errors import CampaignJobsError
from campaign_jobs.events import (
    EmailEvent,
    EmailJobPayload,
    PositionRecalcJobPayload,
    RewardDeliveryJobPayload,
)

ERASED: Final = "erased"

# Cases are locked before their users, as everybody does.
_LOCK_CASES: Final = """
SELECT FROM campaign_jobs.fraud_cases WHERE user_id = %(user_id)s ORDER BY id FOR UPDATE
"""

# A claim's insert waits for this lock, by its foreign key, and then finds the user removed; or it came first.
_LOCK_USER: Final = """
SELECT email FROM campaign_jobs.waitlist_users WHERE id = %(user_id)s FOR UPDATE
"""

# An open case ends as it would when the next run finds its user removed. Who was confirmed to cheat stays held.
_EMPTY_CASES: Final = """
UPDATE campaign_jobs.fraud_cases
SET status = CASE status WHEN 'open' THEN 'retracted' ELSE status END, evidence = '[]', updated_at = now(),
    decision_reason = CASE WHEN decision_reason IS NOT NULL THEN %(erased)s END
WHERE user_id = %(user_id)s AND (status = 'open' OR evidence <> '[]' OR decision_reason <> %(erased)s)
"""

# With the signals goes what would lead the next run to the others of the same address, device or mailbox. One of each
# who is touched does so, too.
_TOUCH_SHARERS: Final = """
WITH sharers AS (
    SELECT id FROM campaign_jobs.waitlist_users
    WHERE id IN (
        SELECT other.user_id
        FROM campaign_jobs.fraud_signals AS own
        CROSS JOIN LATERAL (
            SELECT user_id FROM campaign_jobs.fraud_signals AS shared
            WHERE shared.campaign_id = own.campaign_id AND shared."check" = own."check"
              AND shared.evidence_key = own.evidence_key AND shared.user_id <> own.user_id
            ORDER BY user_id LIMIT 1
        ) AS other
        WHERE own.user_id = %(user_id)s
    )
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE campaign_jobs.waitlist_users AS users SET touched_at = now() FROM sharers WHERE users.id = sharers.id
"""

_DELETE_SIGNALS: Final = "DELETE FROM campaign_jobs.fraud_signals WHERE user_id = %(user_id)s"

_DELETE_DISMISSALS: Final = "DELETE FROM campaign_jobs.fraud_dismissals WHERE user_id = %(user_id)s"

_EMPTY_USER: Final = """
UPDATE campaign_jobs.waitlist_users
SET email = campaign_jobs.address_of_erased(id), first_name = NULL, referral_code = NULL, verification_token = NULL,
    ip = NULL, user_agent = NULL, device_fingerprint = NULL, marketing_consent_at = NULL, status = 'removed',
    deleted_at = coalesce(deleted_at, now())
WHERE id = %(user_id)s
  AND (email <> campaign_jobs.address_of_erased(id) OR status <> 'removed' OR deleted_at IS NULL
       OR num_nonnulls(first_name, referral_code, verification_token, ip, user_agent, device_fingerprint,
                       marketing_consent_at) > 0)
"""

# It comes back when its campaign goes on, and is skipped as any mail of somebody who is removed.
_EMPTY_PARKED: Final = """
WITH parked AS (
    SELECT event_id FROM campaign_jobs.email_messages
    WHERE user_id = %(user_id)s AND parked_event #> '{data,template_data}' IS NOT NULL
    ORDER BY event_id FOR NO KEY UPDATE
)
UPDATE campaign_jobs.email_messages AS mail SET parked_event = parked_event #- '{data,template_data}'
FROM parked WHERE mail.event_id = parked.event_id AND mail.parked_event IS NOT NULL
"""

_EMPTY_REWARDS: Final = """
WITH earned AS (
    SELECT id FROM campaign_jobs.user_rewards WHERE user_id = %(user_id)s AND data <> '{}' ORDER BY id FOR NO KEY UPDATE
)
UPDATE campaign_jobs.user_rewards SET data = '{}' FROM earned WHERE user_rewards.id = earned.id
"""

# Who has complained is not written to again when they, or somebody else, sign up with the address once more.
_HIDE_SUPPRESSION: Final = """
WITH plain AS (
    DELETE FROM campaign_jobs.email_suppressions WHERE address = lower(%(email)s) RETURNING reason, created_at
)
INSERT INTO campaign_jobs.email_suppressions AS hidden (address, reason, created_at)
SELECT campaign_jobs.erased_address(%(email)s), reason, created_at FROM plain
ON CONFLICT (address) DO UPDATE SET reason = greatest(hidden.reason, EXCLUDED.reason)
"""

_READ: Final = {
    name
    for payload in (EmailJobPayload, PositionRecalcJobPayload, RewardDeliveryJobPayload)
    for name in payload.model_fields
} - {"template_data"}

# The event stays, with what a job reads and without all else that a service has put in; there is nothing of the person
# in its ids. A service may have chosen another key than the user's. Last, so that what was parked and is published
# meanwhile is found. There is no index to find it by, which each event would have to pay for: a million rows take a
# second.
_EMPTY_OUTBOX: Final = """
WITH theirs AS (
    SELECT id, event, coalesce((
        SELECT jsonb_object_agg(part.name, CASE part.name WHEN 'data' THEN coalesce((
            SELECT jsonb_object_agg(field.name, field.content)
            FROM jsonb_each(CASE jsonb_typeof(part.content) WHEN 'object' THEN part.content END)
                AS field (name, content)
            WHERE field.name = ANY (%(fields)s)
        ), '{}') ELSE part.content END)
        FROM jsonb_each(event) AS part (name, content)
        WHERE part.name = ANY (%(envelope)s)
    ), '{}') AS bare
    FROM campaign_jobs.outbox
    WHERE partition_key = %(user_id)s::text OR lower(event #>> '{data,user_id}') = %(user_id)s::text
)
UPDATE campaign_jobs.outbox SET event = theirs.bare
FROM theirs WHERE outbox.id = theirs.id AND theirs.event <> theirs.bare
"""


class UnknownUser(CampaignJobsError):
    """There is no such user; the message names the id."""


@dataclass(frozen=True)
class Erasure:
    """What was removed: how many rows of each kind held something of the person."""

    user: int = 0
    """1 where the user's row held an address, a name, an IP, a user agent, a fingerprint, a code or a token."""
    cases: int = 0
    """Evidence, and the words of who has decided; an open case ends."""
    signals: int = 0
    dismissals: int = 0
    parked_mails: int = 0
    """What the producer gave for the template."""
    outbox_events: int = 0
    """The same, and whatever else a service has put into its event that no job reads."""
    rewards: int = 0
    """What the person receives: codes, links."""
    suppressions: int = 0
    """Addresses of which only a hash is left."""

    @property
    def is_nothing(self) -> bool:
        return not any(getattr(self, item.name) for item in fields(self))


def erase(database: Database, user_id: UUID, *, dry_run: bool = False) -> Erasure:
    """Erase a user in one transaction, and say what was removed.

    Once more does no harm and removes nothing. With `dry_run` everything is done and rolled back, so the figures are
    those that it would have. Raises UnknownUser and DatabaseUnavailable.
    """

    def work(connection: Connection) -> Erasure:
        with connection.transaction(force_rollback=dry_run):
            return _erase(connection, user_id)

    return repeat_on_conflict(database, work)


def _erase(connection: Connection, user_id: UUID) -> Erasure:
    parameters: dict[str, Any] = {
        "user_id": user_id,
        "erased": ERASED,
        "envelope": list(EmailEvent.model_fields),
        "fields": sorted(_READ),
    }

    def rows(statement: str) -> int:
        return connection.execute(statement.encode(), parameters).rowcount

    rows(_LOCK_CASES)
    user = connection.execute(_LOCK_USER, parameters).fetchone()
    if user is None:
        raise UnknownUser(f"there is no user {user_id}")
    parameters["email"] = user[0]
    rows(_TOUCH_SHARERS)
    return Erasure(
        user=rows(_EMPTY_USER),
        cases=rows(_EMPTY_CASES),
        signals=rows(_DELETE_SIGNALS),
        dismissals=rows(_DELETE_DISMISSALS),
        parked_mails=rows(_EMPTY_PARKED),
        rewards=rows(_EMPTY_REWARDS),
        suppressions=rows(_HIDE_SUPPRESSION),
        outbox_events=rows(_EMPTY_OUTBOX),
    )
