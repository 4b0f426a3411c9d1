"""Times as people type them, and points of the topic by time or by offset."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from campaign_jobs_cli.errors import WrongInput

TIME_HELP: Final = (
    "TIME is ISO 8601 (2026-01-31T12:00:00Z), a date, or how long ago (90s, 15m, 2h, 3d, 1d12h). Without a zone it "
    "is this machine's, as in tables."
)
POINT_HELP: Final = (
    "TIME, OFFSET, beginning or end. OFFSET is PARTITION:OFFSET as results show it, several separated by commas; "
    "other partitions are left out then."
)

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO: Final = re.compile(r"((?:\d+[smhdw])+)(?: ago)?")
_OFFSETS: Final = re.compile(r"\d+:\d+(?:,\d+:\d+)*")


class Edge(StrEnum):
    """Where the topic begins and ends at this moment."""

    BEGINNING = "beginning"
    END = "end"


@dataclass(frozen=True)
class Offsets:
    """An offset for some partitions; the others are meant to be left out."""

    by_partition: Mapping[int, int]

    def __str__(self) -> str:
        return ",".join(f"{partition}:{offset}" for partition, offset in self.by_partition.items())


Point = datetime | Offsets | Edge


def moment(text: str) -> datetime:
    """A time in UTC. Raises WrongInput."""
    text = text.strip()
    try:
        if text == "now":
            return datetime.now(UTC)
        if found := _AGO.fullmatch(text):
            return datetime.now(UTC) - _duration(found[1])
        # A time without a zone is taken as this machine's, which is how tables show it.
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise WrongInput(f"{text!r} is no time. {TIME_HELP}") from None


def point(text: str) -> Point:
    """A point of the topic. Raises WrongInput."""
    text = text.strip()
    if text in tuple(Edge):
        return Edge(text)
    if _OFFSETS.fullmatch(text):
        pairs = (pair.split(":") for pair in text.split(","))
        return Offsets({int(partition): int(offset) for partition, offset in pairs})
    if re.fullmatch(r"\d+", text):
        raise WrongInput(
            f"{text!r}: each partition has offsets of its own, so an offset is 3:{text}, for partition 3"
        )
    try:
        return moment(text)
    except WrongInput:
        raise WrongInput(f"{text!r} is no point of the topic. {POINT_HELP} {TIME_HELP}") from None


def _duration(text: str) -> timedelta:
    parts = {_UNITS[unit]: int(number) for number, unit in re.findall(r"(\d+)([smhdw])", text)}
    return timedelta(**parts)
