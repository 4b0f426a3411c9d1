"""The SES tag by which a mail's events are known as ours."""

from hashlib import sha256
from typing import Final

MESSAGE_TAG: Final = "message"


def message_tag(event_id: str) -> str:
    """The value of a mail's tag: 32 hexadecimal digits, since SES takes only letters, digits, `_` and `-`.

    `email_messages.tag` holds the same; the database works it out from the event id.
    """
    return sha256(event_id.encode()).hexdigest()[:32]
