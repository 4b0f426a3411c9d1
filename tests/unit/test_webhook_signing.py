"""Signatures verify with the reference implementation of Standard Webhooks."""

import base64
import json
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from campaign_jobs.reward.webhooks.signing import signed_headers, webhook_id

USER_REWARD_ID = uuid.UUID("7c0f0f0e-2d8a-4b53-9f3e-9f8f3c1a2b4d")
BODY = b'{"type":"reward.earned"}'


def secret_of(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


CURRENT = secret_of(b"c" * 24)
PREVIOUS = secret_of(b"p" * 32)


@given(key=st.binary(min_size=24, max_size=64), padded=st.booleans(), text=st.text())
def test_the_reference_implementation_accepts_the_signature(key: bytes, padded: bool, text: str) -> None:
    secret = secret_of(key) if padded else secret_of(key).rstrip("=")
    body = json.dumps({"text": text}).encode()
    headers = signed_headers(USER_REWARD_ID, body, [secret], attempted_at=datetime.now(UTC))
    assert Webhook(secret).verify(body, headers) == {"text": text}


def test_during_rotation_both_secrets_verify_and_no_other() -> None:
    headers = signed_headers(USER_REWARD_ID, BODY, [CURRENT, PREVIOUS], attempted_at=datetime.now(UTC))
    Webhook(CURRENT).verify(BODY, headers)
    Webhook(PREVIOUS).verify(BODY, headers)
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Webhook(secret_of(b"x" * 24)).verify(BODY, headers)


def test_another_body_does_not_verify() -> None:
    headers = signed_headers(USER_REWARD_ID, BODY, [CURRENT], attempted_at=datetime.now(UTC))
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Webhook(CURRENT).verify(BODY + b" ", headers)


def test_attempts_share_the_id_and_differ_in_timestamp_and_signature() -> None:
    first_at = datetime(2025, 1, 1, 12, 0, 0, 900_000, tzinfo=UTC)
    first = signed_headers(USER_REWARD_ID, BODY, [CURRENT], attempted_at=first_at)
    second = signed_headers(USER_REWARD_ID, BODY, [CURRENT], attempted_at=first_at + timedelta(minutes=5))
    assert first["webhook-id"] == second["webhook-id"] == webhook_id(USER_REWARD_ID)
    assert first["webhook-timestamp"] == "1735732800"
    assert second["webhook-timestamp"] == "1735733100"
    assert first["webhook-signature"] != second["webhook-signature"]


def test_the_id_holds_no_full_stop_since_that_separates_what_is_signed() -> None:
    assert "." not in webhook_id(USER_REWARD_ID)
    assert webhook_id(USER_REWARD_ID) != webhook_id(uuid.uuid4())
