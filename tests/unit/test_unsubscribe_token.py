"""A token is one user's, made by one of our keys, and nothing else is a token."""

import base64
import hashlib
import hmac
import re
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from campaign_jobs.email.unsubscribing.keys import KEPT_SECONDS, LOOK_AGAIN_SECONDS, KeyRing
from campaign_jobs.email.unsubscribing.token import sign, verify
from campaign_jobs.errors import KeysUnavailable

KEY, PREVIOUS, FOREIGN = b"current " * 8, b"previous" * 8, b"foreign " * 8
USER = uuid.UUID("0d6b2c1e-7d55-4a44-9a1f-6a2f3a9c7b10")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

users = st.uuids()


@given(users)
def test_a_token_names_its_user_and_fits_into_a_url(user: uuid.UUID) -> None:
    token = sign(user, KEY)
    assert re.fullmatch("[A-Za-z0-9_-]{44}", token)
    assert verify(token, [KEY]) == user
    assert verify(token, [PREVIOUS, KEY]) == user
    assert verify(token, [FOREIGN]) is None
    assert verify(token, []) is None


def test_a_token_is_what_its_description_says() -> None:
    """Links in mails that were sent live for years, so the form may not change by accident."""
    signed = b"\x01" + USER.bytes
    mac = hmac.new(KEY, b"campaign-jobs unsubscribe\x00" + signed, hashlib.sha256).digest()
    assert sign(USER, KEY) == base64.urlsafe_b64encode(signed + mac[:16]).decode()


@given(users, st.integers(0, 43), st.sampled_from(ALPHABET))
def test_another_letter_anywhere_makes_it_nobodys(user: uuid.UUID, place: int, letter: str) -> None:
    token = sign(user, KEY)
    mutated = token[:place] + letter + token[place + 1 :]
    assert verify(mutated, [KEY]) == (user if mutated == token else None)


@given(users, st.integers(0, 33 * 8 - 1))
def test_another_bit_anywhere_makes_it_nobodys(user: uuid.UUID, bit: int) -> None:
    content = bytearray(base64.urlsafe_b64decode(sign(user, KEY)))
    content[bit // 8] ^= 1 << bit % 8
    assert verify(base64.urlsafe_b64encode(content).decode(), [KEY]) is None


@given(users, st.integers(0, 44), st.text(min_size=1, max_size=3))
def test_nothing_may_be_added(user: uuid.UUID, place: int, more: str) -> None:
    token = sign(user, KEY)
    assert verify(token[:place] + more + token[place:], [KEY]) is None


@given(users, st.integers(0, 43), st.integers(1, 44))
def test_nothing_may_be_left_out(user: uuid.UUID, start: int, length: int) -> None:
    token = sign(user, KEY)
    assert verify(token[:start] + token[start + length :], [KEY]) is None


@given(st.text())
@example("")
@example("A" * 44)
@example("é" * 44)
@example("A" * 100_000)
@example("٣" * 44)
@example("A" * 43 + "=")
@example("A" * 43 + "\n")
@example("\ud800" * 44)
def test_nothing_else_is_a_token(text: str) -> None:
    assert verify(text, [KEY]) is None


@given(users, users)
def test_parts_of_two_tokens_make_none(one: uuid.UUID, other: uuid.UUID) -> None:
    first, second = (base64.urlsafe_b64decode(sign(user, KEY)) for user in (one, other))
    mixed = base64.urlsafe_b64encode(first[:17] + second[17:]).decode()
    assert verify(mixed, [KEY]) == (one if one == other else None)


def test_a_signature_for_another_purpose_or_version_is_none() -> None:
    for purpose, version in [(b"", b"\x01"), (b"campaign-jobs unsubscribe\x00", b"\x02")]:
        signed = version + USER.bytes
        mac = hmac.digest(KEY, purpose + signed, hashlib.sha256)[:16]
        assert verify(base64.urlsafe_b64encode(signed + mac).decode(), [KEY]) is None


class Secret:
    """What an operator has put into the secret, and how often it was looked at."""

    def __init__(self, *keys: bytes) -> None:
        self.keys = keys
        self.looks = 0
        self.gone = False
        self.now = 1000.0

    def read(self) -> tuple[bytes, ...]:
        self.looks += 1
        if self.gone:
            raise KeysUnavailable("gone")
        return self.keys


@pytest.fixture
def secret() -> Iterator[Secret]:
    return Secret(PREVIOUS)


@pytest.fixture
def ring(secret: Secret) -> KeyRing:
    return KeyRing(secret.read, clock=lambda: secret.now)


def test_keys_are_read_when_first_needed_and_kept_for_an_hour(secret: Secret, ring: KeyRing) -> None:
    assert secret.looks == 0
    for _ in range(3):
        assert ring.current() == (PREVIOUS,)
    secret.keys = (KEY, PREVIOUS)
    secret.now += KEPT_SECONDS - 1
    assert ring.current() == (PREVIOUS,)
    assert secret.looks == 1
    secret.now += 1
    assert ring.current() == (KEY, PREVIOUS)
    assert secret.looks == 2


def test_unknown_tokens_make_it_look_once_a_minute(secret: Secret, ring: KeyRing) -> None:
    ring.current()
    secret.keys = (KEY, PREVIOUS)
    for _ in range(100):
        assert ring.newest() == (PREVIOUS,)
    secret.now += LOOK_AGAIN_SECONDS
    for _ in range(100):
        assert ring.newest() == ring.current() == (KEY, PREVIOUS)
    assert secret.looks == 2


def test_keys_that_cannot_be_read_again_go_on_signing(secret: Secret, ring: KeyRing) -> None:
    ring.current()
    secret.gone = True
    secret.now += KEPT_SECONDS
    for _ in range(100):
        assert ring.current() == (PREVIOUS,)
        # But whether a token is foreign cannot be said.
        with pytest.raises(KeysUnavailable):
            ring.newest()
    assert secret.looks == 2, "a failure is not repeated for each mail of a batch"
    secret.gone = False
    secret.now += LOOK_AGAIN_SECONDS
    assert ring.newest() == (PREVIOUS,)
    assert secret.looks == 3


def test_keys_that_were_never_read_are_an_error_until_they_are(secret: Secret, ring: KeyRing) -> None:
    secret.gone = True
    with pytest.raises(KeysUnavailable):
        ring.current()
    secret.gone = False
    secret.now += LOOK_AGAIN_SECONDS
    assert ring.current() == (PREVIOUS,)
