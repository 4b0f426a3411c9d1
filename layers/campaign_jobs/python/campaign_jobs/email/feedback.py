"""What SES tells us back: each event recorded once, the mail's delivery status advanced, dead addresses suppressed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from campaign_jobs.catalog import BATCH_STOPPED, FEEDBACK
from campaign_jobs.database.batches import in_batch
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email.proof import accept_proven
from campaign_jobs.email.ses_events import DELIVERY_STATUSES, SesEvent, UnreadableEvent, read_ses_event
from campaign_jobs.errors import BatchStopped
from campaign_jobs.observability import logger_of, publish_metrics

# A mail's row is committed before the mail is sent, so a tag without a row is not ours, now or later. Locked in the
# order in which the email job locks: whoever records or claims meanwhile sees all of a batch or nothing.
_LOCK_MESSAGES: Final = """
SELECT event_id, tag FROM campaign_jobs.email_messages WHERE tag = ANY (%(tags)s)
ORDER BY event_id FOR NO KEY UPDATE
"""

# What is older than all that is kept is taken for known: somebody may have lifted its suppression since.
_RECORD: Final = """
INSERT INTO campaign_jobs.email_events (tag, ses_message_id, delivery_status, occurred_at, detail)
SELECT tag, ses_message_id, delivery_status, occurred_at, detail
FROM unnest(%(tags)s::text[], %(ses_message_ids)s::text[], %(delivery_statuses)s::text[],
            %(occurred_ats)s::timestamptz[], %(details)s::text[])
    AS reported (tag, ses_message_id, delivery_status, occurred_at, detail)
WHERE occurred_at
    >= coalesce((SELECT kept_since FROM campaign_jobs.retention WHERE table_name = 'email_events'), '-infinity')
ORDER BY tag, ses_message_id, delivery_status, occurred_at
ON CONFLICT DO NOTHING
RETURNING tag, ses_message_id, delivery_status, occurred_at
"""

# Two mails may have gone out under one tag; the status is that of the one that came furthest.
_ADVANCE: Final = """
UPDATE campaign_jobs.email_messages AS message
SET delivery_status = reported.delivery_status, delivery_status_at = reported.occurred_at, updated_at = now()
FROM (
    SELECT DISTINCT ON (tag) tag, delivery_status, occurred_at, array_position(%(order)s, delivery_status) AS rank
    FROM unnest(%(tags)s::text[], %(delivery_statuses)s::text[], %(occurred_ats)s::timestamptz[])
        AS reported (tag, delivery_status, occurred_at)
    ORDER BY tag, rank DESC, occurred_at
) AS reported
WHERE message.tag = reported.tag
  AND (message.delivery_status IS NULL
       OR array_position(%(order)s, message.delivery_status) < reported.rank
       OR (message.delivery_status = reported.delivery_status
           AND message.delivery_status_at > reported.occurred_at))
"""

# The first reason stays, but a complaint says more than a bounce, and nothing overrules a person. Of somebody who was
# erased since the mail, no address is written down again; the lock makes an erasure that is under way come first.
_SUPPRESS: Final = """
WITH reported AS (
    SELECT CASE WHEN users.email = campaign_jobs.address_of_erased(users.id)
                THEN campaign_jobs.erased_address(dead.address) ELSE lower(dead.address) END AS address, dead.reason
    FROM unnest(%(tags)s::text[], %(addresses)s::text[], %(suppressions)s::text[]) AS dead (tag, address, reason)
    JOIN campaign_jobs.email_messages AS mail ON mail.tag = dead.tag
    JOIN campaign_jobs.waitlist_users AS users ON users.id = mail.user_id
    ORDER BY users.id
    FOR KEY SHARE OF users
)
INSERT INTO campaign_jobs.email_suppressions AS suppression (address, reason)
SELECT address, CASE WHEN bool_or(reason = 'complaint') THEN 'complaint' ELSE 'bounce' END
FROM reported
GROUP BY address
ORDER BY address
ON CONFLICT (address) DO UPDATE SET reason = EXCLUDED.reason
WHERE suppression.reason = 'bounce' AND EXCLUDED.reason = 'complaint'
"""


@dataclass(frozen=True)
class _Received:
    """A message of the queue with what it says."""

    message_id: str
    event: SesEvent


@dataclass(frozen=True)
class _Recorded:
    """What a batch's transaction has done."""

    unknown: int
    new_statuses: Counter[str]
    suppressed: int
    accepted: list[str]


class Feedback:
    """Handles the events that SQS collects from EventBridge."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._logger = logger_of(FEEDBACK.name)

    def handle(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Record a batch, and return the messages that must come again in SQS's partial batch response.

        A message that cannot be read or recorded comes again alone, until SQS moves it to the dead-letter queue. Raises
        DatabaseUnavailable when nothing can be recorded; then all of them come again.
        """
        counts: Counter[str] = Counter()
        received, failed = self._read(event, counts)
        received.sort(key=lambda item: (item.event.tag, item.message_id))
        try:
            parts, refused = in_batch(self._database, received, _record)
        except BatchStopped as error:
            self._logger.error("batch stopped", extra={"reason": str(error)})
            publish_metrics(FEEDBACK.name, {BATCH_STOPPED.name: 1})
            raise
        for item, refusal in refused:
            failed.append(item.message_id)
            self._logger.warning(
                "event of SES refused",
                extra={"message_id": item.message_id, "reason": refusal.reason},
            )
        for part in parts:
            counts["ignored"] += part.unknown
            counts["processed"] += part.new_statuses.total()
            counts["suppressed"] += part.suppressed
            counts.update({f"mails_{status}": number for status, number in part.new_statuses.items()})
            for event_id in part.accepted:
                self._logger.info("mail accepted by an event of SES", extra={"event_id": event_id})
        counts["failed"] = len(failed)
        counts["repeated"] = (
            len(received) - len(refused) - sum(part.unknown + part.new_statuses.total() for part in parts)
        )
        publish_metrics(FEEDBACK.name, {**counts, "batch_size": len(event["Records"])})
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}

    def _read(self, event: Mapping[str, Any], counts: Counter[str]) -> tuple[list[_Received], list[str]]:
        received: list[_Received] = []
        failed: list[str] = []
        for message in event["Records"]:
            message_id = message["messageId"]
            try:
                ses_event = read_ses_event(message["body"])
            except UnreadableEvent as error:
                failed.append(message_id)
                self._logger.warning(
                    "unreadable event of SES", extra={"message_id": message_id, "reason": str(error)}
                )
                continue
            if ses_event is None:
                counts["ignored"] += 1
            else:
                received.append(_Received(message_id, ses_event))
        return received, failed


def _record(connection: Connection, received: Sequence[_Received]) -> _Recorded:
    locked = connection.execute(_LOCK_MESSAGES, {"tags": [item.event.tag for item in received]}).fetchall()
    ours = {tag for _, tag in locked}
    known = [item.event for item in received if item.event.tag in ours]
    if not known:
        return _Recorded(len(received), Counter(), 0, [])
    parameters = {
        "tags": [event.tag for event in known],
        "ses_message_ids": [event.ses_message_id for event in known],
        "delivery_statuses": [event.delivery_status for event in known],
        "occurred_ats": [event.occurred_at for event in known],
        "details": [event.detail for event in known],
        "order": list(DELIVERY_STATUSES),
    }
    new = set(connection.execute(_RECORD, parameters))
    connection.execute(_ADVANCE, parameters)
    # Not for one that is known already: somebody may have lifted the suppression since.
    dead = [
        (event.tag, address, event.suppression)
        for event in known
        if _key(event) in new
        for address in event.suppressed
    ]
    suppressed = connection.execute(
        _SUPPRESS,
        {
            "tags": [tag for tag, _, _ in dead],
            "addresses": [address for _, address, _ in dead],
            "suppressions": [reason for _, _, reason in dead],
        },
    ).rowcount
    accepted = accept_proven(connection, [event_id for event_id, _ in locked])
    return _Recorded(len(received) - len(known), Counter(key[2] for key in new), suppressed, accepted)


def _key(event: SesEvent) -> tuple[Any, ...]:
    return event.tag, event.ses_message_id, event.delivery_status, event.occurred_at
