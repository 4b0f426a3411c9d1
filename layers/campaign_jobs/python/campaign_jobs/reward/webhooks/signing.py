"""Signatures as Standard Webhooks 1.0 asks for (https://www.standardwebhooks.com).

The `standardwebhooks` package signs texts where we have bytes, and replaces a timestamp's zone instead of converting
it; the tests verify what is made here with that package.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the mark of a secret, not one


def webhook_id(user_reward_id: UUID) -> str:
    """The identity of a delivery: the same for every attempt and every event, so that a receiver knows a repetition."""
    return f"user_reward_{user_reward_id}"


def signed_headers(
    user_reward_id: UUID, body: bytes, secrets: Sequence[str], *, attempted_at: datetime
) -> dict[str, str]:
    """The headers that let a receiver verify `body`: one signature for each secret that is in force."""
    message_id = webhook_id(user_reward_id)
    timestamp = str(int(attempted_at.timestamp()))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{_signature(secret, signed)}" for secret in secrets),
    }


def _signature(secret: str, signed: bytes) -> str:
    encoded_key = secret.removeprefix(SECRET_PREFIX).rstrip("=")
    key = base64.b64decode(encoded_key + "=" * (-len(encoded_key) % 4))
    return base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
