"""The range that an operator asks to be counted again."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from campaign_jobs.errors import CampaignJobsError

EXAMPLE: Final = '{"backfill": {"from": "2026-03-01T00:00:00Z", "to": "2026-03-02T00:00:00Z"}}'


class InvalidBackfill(CampaignJobsError):
    """A backfill that cannot be done; the message names the field, what was wrong and what is allowed."""


@dataclass(frozen=True)
class Backfill:
    """Count again the buckets that begin in [begin, end)."""

    begin: datetime
    end: datetime


def backfill_of(event: Mapping[str, Any]) -> Backfill | None:
    """The backfill that an invocation's event asks for; None for a scheduled one. Raises InvalidBackfill."""
    if "backfill" not in event:
        return None
    asked = event["backfill"]
    if not isinstance(asked, Mapping):
        raise InvalidBackfill(f"backfill must be an object with from and to, such as {EXAMPLE}")
    if unknown := sorted(str(name) for name in asked if name not in ("from", "to")):
        raise InvalidBackfill(
            f"backfill.{unknown[0]} is not known; allowed are from and to, such as {EXAMPLE}"
        )
    backfill = Backfill(_moment(asked, "from"), _moment(asked, "to"))
    if backfill.begin >= backfill.end:
        raise InvalidBackfill(
            f"backfill.to is {backfill.end.isoformat()}; allowed is a time after backfill.from, "
            f"{backfill.begin.isoformat()}"
        )
    return backfill


def _moment(asked: Mapping[str, Any], name: str) -> datetime:
    value = asked.get(name)
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        found = "is missing" if value is None else f"is {value!r}"
        raise InvalidBackfill(
            f"backfill.{name} {found}; allowed is an ISO 8601 time with its offset, such as 2026-03-01T00:00:00Z"
        )
    return moment
