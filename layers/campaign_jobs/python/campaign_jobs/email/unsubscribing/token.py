"""The token of an unsubscribe link: who wants no more mail, signed.

44 characters that a URL takes as they are: base64url of a version (1 byte), the user's id (16) and the first 16 bytes
of an HMAC-SHA256 over purpose, version and id. RFC 2104, section 5, allows half of the digest. A user belongs to one
campaign, so the id names the campaign, too. A token that another environment's key has signed is foreign here.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final
from uuid import UUID

_PURPOSE: Final = b"campaign-jobs unsubscribe\0"
_VERSION: Final = b"\x01"
_SIGNATURE_BYTES: Final = 16
# 33 bytes fill 44 characters to the last bit, so no two texts stand for the same bytes.
_FORM: Final = re.compile("[A-Za-z0-9_-]{44}")


def sign(user_id: UUID, key: bytes) -> str:
    """The token of this user."""
    signed = _VERSION + user_id.bytes
    return base64.urlsafe_b64encode(signed + _signature(signed, key)).decode("ascii")


def verify(token: str, keys: Sequence[bytes]) -> UUID | None:
    """The user whom one of the keys has signed this token for, or None: it is not one of ours."""
    if not _FORM.fullmatch(token):
        return None
    content = base64.urlsafe_b64decode(token)
    signed, signature = content[:-_SIGNATURE_BYTES], content[-_SIGNATURE_BYTES:]
    if not signed.startswith(_VERSION):
        return None
    # Every key is tried, so that the time it takes says nothing about which one fits.
    if not any([hmac.compare_digest(signature, _signature(signed, key)) for key in keys]):  # noqa: C419
        return None
    return UUID(bytes=signed[len(_VERSION) :])


def _signature(signed: bytes, key: bytes) -> bytes:
    return hmac.digest(key, _PURPOSE + signed, hashlib.sha256)[:_SIGNATURE_BYTES]
