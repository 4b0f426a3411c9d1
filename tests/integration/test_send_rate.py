"""The token bucket on a real database: all who ask together get the rate, and neither more nor much less."""

import math
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email.rate import Grant, SendRate, take
from campaign_jobs.errors import RateUnknown, SendingStopped
from tests.integration.email_campaign import RecordingSender

RATE = 200.0
SECONDS = 3


class Bucket:
    """The bucket's row, for a test to set and to read."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def fill(self, rate: float, tokens: float = 0, *, age: float = 0) -> datetime:
        """Set it as it was `age` seconds ago; returns that moment."""
        moment: datetime = self._one(
            "INSERT INTO campaign_jobs.send_tokens (name, rate, tokens, refilled_at, looked_up_at)"
            " VALUES ('ses', %s, %s, clock_timestamp() - make_interval(secs => %s), clock_timestamp())"
            " ON CONFLICT (name) DO UPDATE SET rate = EXCLUDED.rate, tokens = EXCLUDED.tokens,"
            " refilled_at = EXCLUDED.refilled_at, paused_until = '-infinity', looked_up_at = EXCLUDED.looked_up_at"
            " RETURNING refilled_at",
            rate,
            tokens,
            age,
        )
        return moment

    def let_pass(self, seconds: float) -> None:
        self.connection.execute(
            "UPDATE campaign_jobs.send_tokens SET refilled_at = refilled_at - %(time)s,"
            " paused_until = paused_until - %(time)s, looked_up_at = looked_up_at - %(time)s",
            {"time": timedelta(seconds=seconds)},
        )

    @property
    def tokens(self) -> float:
        return float(self._one("SELECT tokens FROM campaign_jobs.send_tokens"))

    @property
    def rate(self) -> float:
        return float(self._one("SELECT rate FROM campaign_jobs.send_tokens"))

    @property
    def refilled_at(self) -> datetime:
        moment: datetime = self._one("SELECT refilled_at FROM campaign_jobs.send_tokens")
        return moment

    @property
    def now(self) -> datetime:
        moment: datetime = self._one("SELECT clock_timestamp()")
        return moment

    def _one(self, query: str, *parameters: Any) -> Any:
        row = self.connection.execute(query, parameters).fetchone()
        assert row is not None
        return row[0]


@pytest.fixture
def bucket(connection: Connection) -> Bucket:
    return Bucket(connection)


@pytest.fixture
def sender() -> RecordingSender:
    return RecordingSender()


@pytest.fixture
def rate(database: Database, sender: RecordingSender) -> SendRate:
    return SendRate(database, sender, share=0.5)


@pytest.fixture
def asking(database_url: str) -> Iterator[Callable[..., list[int]]]:
    """Runs askers side by side until `SECONDS` of the database's clock have passed; returns what each was granted.

    Each asks on a connection of its own, as functions do, and waits as long as it is told.
    """
    databases: list[Database] = []

    def ask(bucket: Bucket, *askers: Callable[[SendRate, threading.Event], int]) -> list[int]:
        over, start = threading.Event(), threading.Barrier(len(askers))
        granted = [0] * len(askers)

        def run(number: int) -> None:
            databases.append(database := Database(database_url))
            rate = SendRate(database, RecordingSender(), share=1)
            start.wait(60)
            granted[number] = askers[number](rate, over)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(askers))]
        for thread in threads:
            thread.start()
        started = bucket.now
        while bucket.now < started + timedelta(seconds=SECONDS):
            over.wait(0.05)
        over.set()
        for thread in threads:
            thread.join()
        return granted

    yield ask
    for database in databases:
        database.close()


def greedy(*, bulk: bool) -> Callable[[SendRate, threading.Event], int]:
    def ask(rate: SendRate, over: threading.Event) -> int:
        granted = 0
        while not over.is_set():
            grant = rate.take(10, bulk=bulk)
            granted += grant.tokens
            if not grant.tokens:
                over.wait(grant.wait_seconds)
        return granted

    return ask


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    per_second=st.floats(0.01, 5_000),
    filled=st.floats(0, 1),
    age=st.floats(0, 60),
    wanted=st.integers(1, 100),
    bulk=st.booleans(),
)
# A bucket that holds some and less than is wanted, which chance seldom draws.
@example(per_second=50, filled=0.2, age=0, wanted=50, bulk=False)
@example(per_second=50, filled=0.5, age=0, wanted=50, bulk=True)
def test_a_grant_is_what_the_bucket_holds(
    database: Database, bucket: Bucket, per_second: float, filled: float, age: float, wanted: int, bulk: bool
) -> None:
    reserve = max(1, per_second / 5)
    capacity = max(per_second, reserve + 1)
    before = bucket.fill(per_second, filled * capacity, age=age)
    with database.transaction() as connection:
        grant = take(connection, wanted, bulk=bulk)
    elapsed = (bucket.refilled_at - before).total_seconds()
    assert elapsed >= age - 1e-5
    tokens = min(capacity, filled * capacity + per_second * elapsed)
    free = tokens - (reserve if bulk else 0)
    fewest = min(wanted, max(1, math.floor(per_second / 10)))
    most = min(wanted, max(1, math.floor(per_second)))

    def granted_of(free: float) -> int:
        return min(most, math.floor(free)) if free >= fewest else 0

    # The two sides may round differently.
    assert grant.tokens in (granted_of(free - 1e-6), granted_of(free + 1e-6))
    assert bucket.tokens == pytest.approx(tokens - grant.tokens, abs=1e-6)
    if not grant.tokens:
        assert grant.wait_seconds == pytest.approx((fewest - free) / per_second, rel=1e-6, abs=1e-6)


def test_those_who_ask_at_once_get_the_rate_together(
    bucket: Bucket, asking: Callable[..., list[int]]
) -> None:
    started = bucket.fill(RATE)
    granted = sum(asking(bucket, *[greedy(bulk=False) for _ in range(6)]))
    # It was empty, so nothing but what has come since may have been granted.
    assert granted <= RATE * (bucket.now - started).total_seconds()
    assert granted >= 0.9 * RATE * (bucket.refilled_at - started).total_seconds()


def test_a_full_bucket_adds_a_seconds_rate_and_no_more(
    bucket: Bucket, asking: Callable[..., list[int]]
) -> None:
    bucket.fill(RATE, age=3_600)
    started = bucket.now
    granted = sum(asking(bucket, *[greedy(bulk=False) for _ in range(6)]))
    assert granted <= RATE * (bucket.now - started).total_seconds() + RATE
    assert granted >= 0.9 * RATE * (bucket.refilled_at - started).total_seconds() + 0.9 * RATE


def test_the_clock_is_read_when_the_row_is_held(
    database: Database, database_url: str, bucket: Bucket
) -> None:
    """A transaction that began before another one's grant must not count the time before that grant again."""
    bucket.fill(RATE, RATE)
    other = Database(database_url)
    with database.transaction() as early:
        early.execute("SELECT now()")
        with other.transaction() as connection:
            take(connection, 100, bulk=False)
        last = bucket.refilled_at
        take(early, 1, bulk=False)
    other.close()
    assert bucket.refilled_at >= last


def test_whoever_waits_for_the_row_reads_the_clock_after_it(
    database: Database, database_url: str, bucket: Bucket, connection: Connection
) -> None:
    bucket.fill(RATE, RATE)
    waiting, grants = Database(database_url), list[Grant]()
    with waiting.transaction() as opened:
        pid = opened.info.backend_pid

    def wait_and_take() -> None:
        with waiting.transaction() as opened:
            grants.append(take(opened, 1, bulk=False))

    with database.transaction() as holding:
        take(holding, 1, bulk=False)
        thread = threading.Thread(target=wait_and_take)
        thread.start()
        while not bucket._one("SELECT cardinality(pg_blocking_pids(%s))", pid):
            pass
        released = bucket.now
    thread.join()
    waiting.close()
    assert [grant.tokens for grant in grants] == [1]
    assert bucket.refilled_at >= released


@pytest.mark.parametrize("per_second", [0.1, 1.0, 1.5, 2.0, 14.0, 200.0, 1_000.0])
def test_the_bulk_lane_alone_reaches_the_full_rate(
    database: Database, bucket: Bucket, per_second: float
) -> None:
    reserve = max(1, per_second / 5)
    bucket.fill(per_second, reserve)
    passed, granted = 0.0, 0
    for _ in range(100):
        # Only the time that it is told to wait shall pass, however slow the test is.
        with database.transaction() as connection:
            grant = take(connection, 10, bulk=True)
        granted += grant.tokens
        bucket.fill(per_second, bucket.tokens, age=grant.wait_seconds)
        passed += grant.wait_seconds
    assert passed > 0
    assert granted >= 0.9 * per_second * passed - 1
    assert bucket.tokens >= reserve - 1e-6


def test_bulk_leaves_the_others_what_they_ask_for_and_takes_the_rest(
    bucket: Bucket, asking: Callable[..., list[int]]
) -> None:
    bucket.fill(RATE, RATE)
    asks = [0]

    def half_the_rate(rate: SendRate, over: threading.Event) -> int:
        granted = 0
        while not over.is_set():
            grant = rate.take(5, bulk=False)
            granted += grant.tokens
            asks[0] += 1
            over.wait(5 / (RATE / 2))
        return granted

    started = bucket.now
    normal, *bulk = asking(bucket, half_the_rate, *[greedy(bulk=True) for _ in range(4)])
    assert normal == 5 * asks[0]
    elapsed = (bucket.refilled_at - started).total_seconds()
    assert normal + sum(bulk) >= 0.9 * RATE * elapsed
    assert sum(bulk) > 0


def test_a_pause_holds_for_everybody_and_gathers_nothing(
    rate: SendRate, bucket: Bucket, database_url: str
) -> None:
    bucket.fill(RATE, RATE)
    rate.pause(30)
    rate.pause(10)
    other = SendRate(Database(database_url), RecordingSender(), share=1)
    grant = other.take(5, bulk=False)
    assert grant.tokens == 0
    assert 29 - 5 < grant.wait_seconds <= 30 + 5 / RATE + 1e-6
    bucket.let_pass(grant.wait_seconds - 5)
    assert other.take(5, bulk=False).tokens == 0
    bucket.let_pass(5.001)
    assert other.take(5, bulk=False).tokens == 5
    other._database.close()


# Looking the rate up.


def test_the_rate_is_looked_up_every_five_minutes_and_shared_out(
    rate: SendRate, bucket: Bucket, sender: RecordingSender
) -> None:
    sender.rate = 14
    rate.look_up()
    assert bucket.rate == 7
    sender.rate = 50
    bucket.let_pass(290)
    rate.look_up()
    assert bucket.rate == 7
    bucket.let_pass(11)
    rate.look_up()
    assert bucket.rate == 25


def test_one_of_many_looks_up(database_url: str, bucket: Bucket) -> None:
    bucket.fill(10)
    bucket.let_pass(301)
    together, asked = threading.Barrier(8), list[int]()

    def count() -> float:
        asked.append(1)
        return 20

    def look_up() -> None:
        sender = RecordingSender()
        sender.max_send_rate = count  # type: ignore[method-assign]
        database = Database(database_url)
        together.wait(60)
        SendRate(database, sender, share=1).look_up()
        database.close()

    threads = [threading.Thread(target=look_up) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert bucket.rate == 20


def test_where_ses_does_not_tell_the_last_rate_holds(
    rate: SendRate,
    bucket: Bucket,
    sender: RecordingSender,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse() -> float:
        raise RateUnknown("SES refused GetAccount: TooManyRequestsException")

    monkeypatch.setattr(sender, "max_send_rate", refuse)
    with pytest.raises(SendingStopped, match="never learned: SES refused GetAccount"):
        rate.look_up()
    bucket.fill(10)
    bucket.let_pass(301)
    rate.look_up()
    assert bucket.rate == 10
    assert "the send rate was not told, the last one holds" in caplog.text
