"""When a rule ticks next, and how late a job is by that."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_jobs.relay.schedules import DISABLED, JobProgress, UnknownSchedule, next_tick

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
moments = st.timedeltas(timedelta(), timedelta(days=1500)).map(lambda passed: MONDAY + passed)


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        ("rate(1 minute)", MONDAY, MONDAY + timedelta(minutes=1)),
        ("rate(90 minutes)", MONDAY, MONDAY + timedelta(minutes=90)),
        ("rate(1 hour)", MONDAY, MONDAY + HOUR),
        ("rate(2 days)", MONDAY, MONDAY + timedelta(days=2)),
        # The examples of EventBridge's guide, from Monday at midnight.
        ("cron(0 10 * * ? *)", MONDAY, MONDAY + 10 * HOUR),
        ("cron(15 12 * * ? *)", MONDAY, MONDAY + timedelta(hours=12, minutes=15)),
        ("cron(0 18 ? * MON-FRI *)", MONDAY, MONDAY + 18 * HOUR),
        ("cron(0 8 1 * ? *)", MONDAY, datetime(2026, 4, 1, 8, tzinfo=UTC)),
        ("cron(0/15 * * * ? *)", MONDAY, MONDAY + timedelta(minutes=15)),
        ("cron(0/5 8-17 ? * MON-FRI *)", MONDAY, MONDAY + 8 * HOUR),
        ("cron(0/30 20-2 ? * MON-FRI *)", MONDAY, MONDAY + timedelta(minutes=30)),
        # Its wildcards for days.
        ("cron(0 0 ? * 3#2 *)", MONDAY, datetime(2026, 3, 10, tzinfo=UTC)),
        ("cron(0 0 ? * 6L *)", MONDAY, datetime(2026, 3, 27, tzinfo=UTC)),
        ("cron(0 0 L * ? *)", MONDAY, datetime(2026, 3, 31, tzinfo=UTC)),
        ("cron(0 0 15W * ? *)", MONDAY, datetime(2026, 3, 16, tzinfo=UTC)),
        ("cron( 0  0 1 1 ?  2030 )", MONDAY, datetime(2030, 1, 1, tzinfo=UTC)),
        ("cron(0 0 1 1 ? 2025)", MONDAY, None),
        (DISABLED, MONDAY, None),
    ],
)
def test_the_next_tick_is_eventbridges(schedule: str, after: datetime, expected: datetime | None) -> None:
    assert next_tick(schedule, after) == expected
    # However the moment is written.
    assert next_tick(schedule, after.astimezone(timezone(timedelta(hours=5, minutes=30)))) == expected


@pytest.mark.parametrize(
    "schedule",
    [
        "",
        "rate(5 seconds)",
        "rate(five minutes)",
        "at(2026-03-02T00:00:00)",
        "cron(0 10 * * *)",
        "cron(0 10 * * * *)",
        "cron(61 10 * * ? *)",
        "cron(0 0 LW * ? *)",
    ],
)
def test_a_schedule_that_cannot_be_read_is_told(schedule: str) -> None:
    with pytest.raises(UnknownSchedule):
        next_tick(schedule, MONDAY)


def progress(schedule: str, now: datetime, **changes: datetime | None) -> JobProgress:
    values: dict[str, datetime | None] = {"watermark": MONDAY, "ran_at": MONDAY, **changes}
    return JobProgress(
        schedule,
        since=changes.get("since") or MONDAY,
        watermark=values["watermark"],
        ran_at=values["ran_at"],
        now=now,
    )


@given(now=moments, interval=st.integers(1, 10_000))
def test_by_a_rate_it_is_the_age_of_the_watermark_beyond_the_interval(now: datetime, interval: int) -> None:
    late = progress(f"rate({interval} minutes)", now).age()
    assert late == max(now - MONDAY - timedelta(minutes=interval), timedelta())


@pytest.mark.parametrize(
    ("schedule", "now", "late"),
    [
        # The same watermark, a week old, is in time or late by what the rule says.
        ("rate(7 days)", MONDAY + timedelta(days=7), timedelta()),
        ("rate(1 hour)", MONDAY + timedelta(days=7), timedelta(days=7) - HOUR),
        ("cron(0 9 1 * ? *)", MONDAY + timedelta(days=7), timedelta()),
        # No tick on the weekend.
        ("cron(0 0 ? * MON-FRI *)", MONDAY + 23 * HOUR, timedelta()),
        ("cron(0 0 ? * MON-FRI *)", MONDAY + 25 * HOUR, HOUR),
        ("cron(0 0 1 1 ? 2025)", MONDAY + timedelta(days=7), timedelta()),
        (DISABLED, MONDAY + timedelta(days=700), timedelta()),
    ],
)
def test_late_is_what_the_present_schedule_says(schedule: str, now: datetime, late: timedelta) -> None:
    assert progress(schedule, now).age() == late


def test_a_run_of_this_tick_is_in_time_though_its_watermark_lies_before_the_tick() -> None:
    """The fraud job's watermark is the start of the oldest transaction, a few seconds before its run at least."""
    tick, held_back = MONDAY + 9 * HOUR, timedelta(seconds=5)
    for schedule in ("cron(0 9 * * ? *)", "rate(1 day)"):
        ran = progress(schedule, tick + HOUR, watermark=tick - held_back, ran_at=tick + timedelta(seconds=2))
        assert ran.age() == held_back + timedelta(seconds=2)


def test_a_watermark_that_a_transaction_holds_back_is_late_although_every_run_succeeds() -> None:
    now = MONDAY + 12 * HOUR
    assert progress(
        "rate(15 minutes)", now, ran_at=now - timedelta(minutes=5)
    ).age() == 12 * HOUR - timedelta(minutes=5)
    # Disabled, nobody expects it to move.
    assert progress(DISABLED, now, ran_at=now).age() == timedelta()


def test_a_job_that_never_ran_counts_from_when_its_schedule_was_first_seen() -> None:
    never = {"watermark": None, "ran_at": None}
    assert progress("rate(1 hour)", MONDAY + timedelta(minutes=59), **never).age() == timedelta()
    assert progress("rate(1 hour)", MONDAY + 3 * HOUR, **never).age() == 2 * HOUR


def test_a_schedule_expects_nothing_of_the_time_before_it_was_seen() -> None:
    """Enabled again after a week, or run each minute from now on: the watermark is old, and nothing is wrong."""
    now = MONDAY + timedelta(days=7)
    assert progress("rate(1 minute)", now, since=now - timedelta(seconds=30)).age() == timedelta()
    assert progress("rate(1 minute)", now, since=now - timedelta(minutes=3)).age() == timedelta(minutes=2)
