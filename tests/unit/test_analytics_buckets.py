"""What analytics counts first lies within one hour of whatever time zone."""

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, available_timezones

import pytest

HALF_MINUTE = timedelta(seconds=30)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MONTHS = [datetime(year, month, 1, tzinfo=UTC) for year in range(1970, 2051) for month in range(1, 13)]


def offset(zone: tzinfo, moment: datetime) -> timedelta:
    difference = moment.astimezone(zone).utcoffset()
    assert difference is not None
    return difference


def change_between(zone: tzinfo, before: datetime, after: datetime) -> datetime:
    """The first second with another offset than `before`."""
    old = offset(zone, before)
    while after - before > timedelta(seconds=1):
        middle = before + timedelta(seconds=int((after - before).total_seconds()) // 2)
        before, after = (middle, after) if offset(zone, middle) == old else (before, middle)
    return after


@pytest.mark.parametrize("first_letter", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
def test_no_zone_begins_an_hour_or_changes_its_offset_within_a_half_minute(first_letter: str) -> None:
    for name in sorted(available_timezones()):
        if not name.upper().startswith(first_letter):
            continue
        zone = ZoneInfo(name)
        offsets = [offset(zone, moment) for moment in MONTHS]
        assert not {each % HALF_MINUTE for each in offsets} - {timedelta()}, name
        for place in range(1, len(MONTHS)):
            if offsets[place] != offsets[place - 1]:
                change = change_between(zone, MONTHS[place - 1], MONTHS[place])
                assert (change - EPOCH) % HALF_MINUTE == timedelta(), (name, change)
