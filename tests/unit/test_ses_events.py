"""Reading SES's events: every shape, and whatever else a queue may hold."""

import json
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_jobs.email.ses_events import SesEvent, UnreadableEvent, read_ses_event
from campaign_jobs.email.tags import message_tag
from tests.ses_events import RECORDED

SENT_AT = datetime(2026, 3, 1, 12, 0, 0, 123000, tzinfo=UTC)


def at(*parts: int, microsecond: int = 0) -> datetime:
    return datetime(2026, 3, *parts, microsecond=microsecond, tzinfo=UTC)


def recorded(name: str, **changes: Any) -> dict[str, Any]:
    event = deepcopy(RECORDED[name])
    for path, value in changes.items():
        *parents, last = path.split("__")
        part = event
        for parent in parents:
            part = part[parent]
        part[last] = value
    return event


@pytest.mark.parametrize(
    ("name", "status", "occurred_at", "detail", "suppressed"),
    [
        ("sent", "sent", SENT_AT, None, False),
        ("delivered", "delivered", at(1, 12, 0, 2, microsecond=456000), None, False),
        ("delayed", "delayed", at(1, 12, 10), None, False),
        ("hard_bounce", "bounced", at(1, 12, 0, 3), "Permanent General", True),
        ("suppression_list_bounce", "bounced", at(1, 12, 0, 1), "Permanent OnAccountSuppressionList", True),
        ("soft_bounce", "soft_bounced", at(2, 2, 0, 3), "Transient MailboxFull", False),
        ("automatic_answer", "soft_bounced", at(1, 12, 0, 4), "Undetermined Undetermined", False),
        ("complaint", "complained", at(1, 15), "abuse", True),
        ("rejected", "rejected", SENT_AT, None, False),
        ("rendering_failed", "rendering_failed", SENT_AT, None, False),
    ],
)
def test_each_shape(
    name: str, status: Any, occurred_at: datetime, detail: str | None, suppressed: bool
) -> None:
    assert read_ses_event(json.dumps(RECORDED[name])) == SesEvent(
        "0123456789abcdef0123456789abcdef",
        "0107018f2c3d4e5f-11111111-2222-3333-4444-555555555555-000000",
        status,
        occurred_at,
        detail,
        ("Recipient@example.org",) if suppressed else (),
    )


@pytest.mark.parametrize(
    "event",
    [
        RECORDED["opened"],
        RECORDED["not_spam"],
        recorded("sent", detail__mail__tags={}),
        recorded("sent", detail__mail__tags=None),
        recorded("sent", detail__mail__tags__message=["somebody-else-s"]),
        recorded("sent", detail__mail__tags__message=["0" * 32, "1" * 32]),
        recorded("hard_bounce", detail__mail={"messageId": 7, "tags": {"message": ["newsletter"]}}),
        recorded("sent", detail__eventType="Subscription"),
    ],
)
def test_what_is_not_about_our_mails_or_their_delivery_is_nobodys(event: dict[str, Any]) -> None:
    assert read_ses_event(json.dumps(event)) is None


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        "null",
        '{"source": "aws.s3", "detail": {}}',
        '{"source": "aws.ses"}',
        '{"source": "aws.ses", "detail": {"eventType": "Send"}}',
        json.dumps(recorded("sent", detail__mail__messageId=None)),
        json.dumps(recorded("sent", detail__mail__messageId="")),
        json.dumps(recorded("sent", detail__mail__messageId="x" * 101)),
        json.dumps(recorded("sent", detail__mail__messageId="a\x00b")),
        json.dumps(recorded("sent", detail__mail__timestamp="yesterday")),
        json.dumps(recorded("sent", detail__mail__timestamp=1772366400)),
        json.dumps(recorded("hard_bounce", detail__mail__destination=["a\x00@example.org"])),
        json.dumps(recorded("hard_bounce", detail__mail__destination=["\ud800@example.org"])),
        json.dumps(recorded("hard_bounce", detail__mail__destination=["x" * 321])),
        json.dumps(recorded("hard_bounce", detail__bounce=[1])),
        json.dumps(recorded("hard_bounce", detail__bounce__bounceSubType="\x00")),
    ],
)
def test_what_cannot_be_read_says_so_without_repeating_it(body: str) -> None:
    with pytest.raises(UnreadableEvent) as error:
        read_ses_event(body)
    assert "example.org" not in str(error.value)


def test_only_the_address_that_we_wrote_to_is_suppressed() -> None:
    """A receiving server may name whom it likes, and a forwarded mail bounces from where we never wrote to."""
    reported = [{"emailAddress": "victim@example.net"}]
    event = read_ses_event(json.dumps(recorded("hard_bounce", detail__bounce__bouncedRecipients=reported)))
    assert event is not None
    assert event.suppressed == ("Recipient@example.org",)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["source", "detail", "mail", "eventType", "tags", "message", "timestamp", "bounce", "x"]
                ),
                inner,
            )
        ),
    )
)
def test_no_json_is_more_than_unreadable(value: Any) -> None:
    for event in (
        value,
        {"source": "aws.ses", "detail": value},
        recorded("hard_bounce", detail__bounce=value),
        recorded("complaint", detail__mail=value),
        recorded("sent", detail__mail__tags=value),
    ):
        try:
            read_ses_event(json.dumps(event))
        except UnreadableEvent:
            pass


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_a_tag_is_what_ses_takes(event_id: str) -> None:
    tag = message_tag(event_id)
    assert len(tag) == 32
    assert set(tag) <= set("0123456789abcdef")
