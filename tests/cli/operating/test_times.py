"""Times as people type them."""

from datetime import UTC, datetime, timedelta

import pytest
import time_machine

from campaign_jobs_cli.errors import WrongInput
from campaign_jobs_cli.times import Edge, Offsets, moment, point

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("90s", NOW - timedelta(seconds=90)),
        ("15m", NOW - timedelta(minutes=15)),
        ("2h ago", NOW - timedelta(hours=2)),
        ("1d12h", NOW - timedelta(hours=36)),
        ("2w", NOW - timedelta(days=14)),
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00+02:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
    ],
)
def test_what_a_time_may_be(text: str, expected: datetime) -> None:
    with time_machine.travel(NOW, tick=False):
        assert moment(text) == expected
        assert moment(text).tzinfo is UTC


def test_without_a_zone_it_is_this_machines() -> None:
    assert moment("2026-01-31") == datetime(2026, 1, 31).astimezone()
    assert moment("2026-01-31 12:30") == datetime(2026, 1, 31, 12, 30).astimezone()


@pytest.mark.parametrize("text", ["", "yesterday", "2 hours", "12:30", "-3d", "99999999999d", "2026-13-01"])
def test_what_is_no_time_says_what_is(text: str) -> None:
    with pytest.raises(WrongInput, match="ISO 8601"):
        moment(text)


def test_points_of_the_topic() -> None:
    assert point("beginning") is Edge.BEGINNING
    assert point("end") is Edge.END
    assert point("3:1200") == Offsets({3: 1200})
    assert point("0:1,9:20") == Offsets({0: 1, 9: 20})
    assert point("2026-01-31T12:00:00Z") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    with pytest.raises(WrongInput, match="for partition 3"):
        point("1200")
    with pytest.raises(WrongInput, match="PARTITION:OFFSET"):
        point("somewhere")
