"""What a producer is told about an event that does not fit the contract: one line for each wrong field."""

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from campaign_jobs.errors import InvalidEvent
from campaign_jobs.events import parse


def problem(template_data: Any = None, **envelope: Any) -> str:
    ids = {"campaign_id": str(uuid.uuid4()), "user_id": str(uuid.uuid4())}
    event = {
        "id": "e",
        "type": "job.email.welcome",
        "data": {**ids, "template_data": template_data},
        **envelope,
    }
    with pytest.raises(InvalidEvent) as raised:
        parse(event, recorded_at=datetime.now(UTC))
    return str(raised.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1], "must be a text or a number"),
        ({"a": "b"}, "must be a text or a number"),
        (True, "must be a text or a number"),
        ("a\x00b", "must not contain NUL"),
        ("\ud800", "must not contain a lone surrogate"),
        ("x" * 5_001, "String should have at most 5000 characters"),
    ],
)
def test_a_value_of_template_data_gets_one_reason(value: Any, reason: str) -> None:
    assert problem({"name": value}) == f"data.template_data.name: {reason}"


def test_each_wrong_field_has_its_line() -> None:
    assert problem({"one": "\x00", "two": []}, id="") == (
        "id: String should have at least 1 character; data.template_data.one: must not contain NUL;"
        " data.template_data.two: must be a text or a number"
    )


def test_a_key_that_is_no_plain_name_is_not_repeated() -> None:
    assert "ada@example.com" not in problem({"ada@example.com": "x"})
