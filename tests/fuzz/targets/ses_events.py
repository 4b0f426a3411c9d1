"""Any message of the feedback queue is an event of SES that the database holds, or unreadable, or not about us."""

import re

from campaign_jobs.email.ses_events import DELIVERY_STATUSES, UnreadableEvent, read_ses_event


def run(data: bytes) -> None:
    try:
        event = read_ses_event(data.decode("utf-8", "replace"))
    except UnreadableEvent as error:
        assert str(error)
        return
    if event is None:
        return
    assert re.fullmatch("[0-9a-f]{32}", event.tag)
    assert event.delivery_status in DELIVERY_STATUSES
    assert event.occurred_at.tzinfo is not None
    assert event.ses_message_id and len(event.ses_message_id) <= 100
    # Only what says that an address is dead, and only of a mail to one address, suppresses it.
    assert len(event.suppressed) <= (1 if event.delivery_status in ("bounced", "complained") else 0)
    for text in (event.ses_message_id, event.detail or "", *event.suppressed):
        assert "\x00" not in text
        text.encode("utf-8")
