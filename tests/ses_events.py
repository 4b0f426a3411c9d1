"""SES's events as recorded, told of a mail of a test's own."""

import json
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

RECORDED: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "events" / "ses.json").read_text(encoding="utf-8")
)
BEGIN: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)


def ses_event(
    name: str,
    tag: str,
    *,
    to: str = "recipient@example.org",
    ses_message_id: str = "ses-1",
    seconds: float = 0,
) -> dict[str, Any]:
    """The recorded event `name` about another mail; `seconds` after BEGIN."""
    event = deepcopy(RECORDED[name])
    at = (BEGIN + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")
    detail = event["detail"]
    detail["mail"] |= {"messageId": ses_message_id, "destination": [to], "timestamp": at}
    detail["mail"]["tags"]["message"] = [tag]
    for part in detail.values():
        if isinstance(part, dict) and "timestamp" in part:
            part["timestamp"] = at
    return event


def sqs_event(*bodies: Any) -> dict[str, Any]:
    """What Lambda hands to a function for messages of a queue, numbered m0, m1 …"""
    return {
        "Records": [
            {"messageId": f"m{number}", "body": body if isinstance(body, str) else json.dumps(body)}
            for number, body in enumerate(bodies)
        ]
    }
