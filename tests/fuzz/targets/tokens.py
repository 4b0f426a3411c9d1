"""No text but the one token that a key has signed for a user is that user's."""

import uuid
from typing import Final

from campaign_jobs.email.unsubscribing.token import sign, verify

KEY: Final = b"a key of at least thirty-two bytes"
OTHER_KEY: Final = b"another key, of another environment"


def run(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    user = verify(text, [KEY, OTHER_KEY])
    # Whoever does not know a key can hit on a token only by repeating one.
    assert user is None or text in (sign(user, KEY), sign(user, OTHER_KEY))
    signed = sign(uuid.UUID(bytes=data[:16].ljust(16, b"\0")), KEY)
    assert verify(signed, [OTHER_KEY]) is None
    place = data[0] % len(signed) if data else 0
    bent = signed[:place] + text[1:2] + signed[place + 1 :]
    assert bent == signed or verify(bent, [KEY]) is None
