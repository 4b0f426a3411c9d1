"""Connections that die without a word: who holds a lock for how long, and what our own side waits for."""

from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import psycopg
import pytest

from campaign_jobs.catalog import (
    ANALYTICS,
    EMAIL,
    FEEDBACK,
    FRAUD,
    POSITION,
    RELAY,
    REWARD,
    EventJobType,
    QueueJobType,
    ScheduledJobType,
)
from campaign_jobs.database.batches import Refusal, in_batch
from campaign_jobs.database.connection import Connection, Database, Timeouts
from campaign_jobs.errors import DatabaseUnavailable, OutOfTime
from campaign_jobs.settings import DatabaseSettings
from tests.integration.half_open import HalfOpenProxy
from tests.integration.reward_campaign import deadline

LOCK_ALL = "SELECT FROM campaign_jobs.email_suppressions FOR UPDATE"
# Three quarters of a second for a statement, a quarter in the midst of a transaction.
SHORT = 1.5


@pytest.fixture
def proxy(database_url: str) -> Iterator[HalfOpenProxy]:
    with HalfOpenProxy(urlsplit(database_url).port or 5432) as proxy:
        yield proxy


def through(proxy: HalfOpenProxy, database_url: str) -> DatabaseSettings:
    port = urlsplit(database_url).port
    return DatabaseSettings(database_url=database_url.replace(f":{port}/", f":{proxy.port}/"))


@pytest.fixture
def far(proxy: HalfOpenProxy, database_url: str) -> Iterator[Database]:
    database = Database.from_settings(
        through(proxy, database_url), application_name="far", timeout_seconds=SHORT
    )
    yield database
    database.close()


@pytest.fixture
def row(connection: Connection) -> None:
    connection.execute("INSERT INTO campaign_jobs.email_suppressions VALUES ('a@example.com', 'manual')")


@pytest.mark.usefixtures("row")
def test_a_connection_that_dies_in_a_transaction_lets_its_lock_go(
    far: Database, proxy: HalfOpenProxy, connection: Connection
) -> None:
    connection.execute("SET statement_timeout = '60s'")
    freed = False
    with pytest.raises(DatabaseUnavailable), far.transaction() as inside:
        inside.execute(LOCK_ALL)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            connection.execute(LOCK_ALL + " NOWAIT")
        proxy.freeze()
        # It would wait for ever if nothing but the connection's end freed the lock.
        connection.execute(LOCK_ALL)
        freed = True
        inside.execute("SELECT 1")
    assert freed
    with far.transaction() as inside:
        assert inside.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.usefixtures("row")
@pytest.mark.parametrize("moment", ["begin", "statement", "commit"])
def test_an_answer_that_never_comes_is_given_up_and_the_next_transaction_connects_anew(
    far: Database, proxy: HalfOpenProxy, moment: str
) -> None:
    with far.transaction() as inside:
        pid = inside.info.backend_pid
    with pytest.raises(DatabaseUnavailable) as caught:
        if moment == "begin":
            proxy.freeze()
        with far.transaction() as inside:
            if moment == "statement":
                proxy.freeze()
            inside.execute(LOCK_ALL)
            proxy.freeze()
    assert not isinstance(caught.value, OutOfTime)
    with far.transaction() as inside:
        assert inside.info.backend_pid != pid


def test_a_server_that_accepts_and_says_nothing_is_given_up(far: Database, proxy: HalfOpenProxy) -> None:
    proxy.freeze(new_ones=True)
    with pytest.raises(DatabaseUnavailable), far.within(deadline(2)), far.transaction():
        pass
    proxy.serve_new_ones()
    with far.transaction() as inside:
        inside.execute("SELECT 1")


def test_no_answer_is_waited_for_beyond_the_end_of_the_invocation(database: Database) -> None:
    """The server would have taken minutes here, and goes on until it finds the client gone."""
    with pytest.raises(OutOfTime), database.within(deadline(0.5)), database.transaction() as inside:
        inside.execute("SELECT pg_sleep(300)")
    with pytest.raises(OutOfTime), database.within(deadline(0)), database.transaction():
        pass
    with database.transaction() as inside:
        assert inside.execute("SELECT 1").fetchone() == (1,)


def test_the_server_ends_the_statement_of_a_client_that_is_gone(
    database: Database, connection: Connection
) -> None:
    with pytest.raises(OutOfTime), database.within(deadline(0.5)), database.transaction() as inside:
        pid = inside.info.backend_pid
        inside.execute("SELECT pg_sleep(300)")
    connection.execute("SET statement_timeout = '60s'")
    connection.execute(
        "DO $$ BEGIN WHILE EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s) LOOP"
        " PERFORM pg_sleep(0.1); PERFORM pg_stat_clear_snapshot(); END LOOP; END $$".replace("%s", str(pid))
    )


@pytest.mark.parametrize(
    "job_type", [EMAIL, POSITION, REWARD, ANALYTICS, FRAUD, RELAY, FEEDBACK], ids=lambda it: it.name
)
def test_every_timeout_is_below_the_functions(
    database_url: str, job_type: EventJobType | QueueJobType | ScheduledJobType
) -> None:
    database = Database.from_settings(
        DatabaseSettings(database_url=database_url),
        application_name="test",
        timeout_seconds=job_type.timeout_seconds,
    )
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    names += ("tcp_user_timeout", "tcp_keepalives_idle", "client_connection_check_interval")
    with database.transaction() as inside:
        found = dict(
            inside.execute(
                "SELECT name, extract(epoch FROM (setting || coalesce(nullif(unit, ''), 's'))::interval)"
                " FROM pg_settings WHERE name = ANY (%s)",
                [list(names)],
            ).fetchall()
        )
    database.close()
    # The two of TCP show 0 where the connection goes by a Unix socket; the tests' does not.
    assert set(found) == set(names)
    assert all(0 < seconds < job_type.timeout_seconds for seconds in found.values()), found
    assert found["lock_timeout"] < found["idle_in_transaction_session_timeout"] < found["statement_timeout"]


def test_the_urls_own_options_win(database_url: str) -> None:
    separator = "&" if "?" in database_url else "?"
    database = Database(f"{database_url}{separator}options=-c%20statement_timeout%3D123")
    with database.transaction() as inside:
        assert inside.execute("SHOW statement_timeout").fetchone() == ("123ms",)
        assert inside.execute("SHOW client_connection_check_interval").fetchone() == ("5s",)
    database.close()


@pytest.mark.parametrize(
    ("rows", "locked", "lock_seconds", "seconds"),
    [
        pytest.param(20, [7], 0.05, 100, id="one row"),
        # In halves, each of a dozen parts would wait its second.
        pytest.param(500, [7, 222, 450], 1, 10, id="some rows of many, within an invocation"),
        # As where a service locks the campaign's row, which all of a batch refer to.
        pytest.param(100, range(100), 0.1, 10, id="every row, within an invocation"),
    ],
)
def test_rows_that_somebody_else_keeps_locked_do_not_fail_their_batch(
    database_url: str,
    connection: Connection,
    rows: int,
    locked: Sequence[int],
    lock_seconds: float,
    seconds: float,
) -> None:
    addresses = [f"{number:03}@example.com" for number in range(rows)]
    connection.execute(
        "INSERT INTO campaign_jobs.email_suppressions SELECT unnest(%s::text[]), 'manual'", [addresses]
    )
    database = Database(database_url, timeout_seconds=lock_seconds * 40)
    kept = [addresses[number] for number in locked]

    def work(inside: Connection, rows: object) -> list[str]:
        updated = inside.execute(
            "UPDATE campaign_jobs.email_suppressions SET reason = 'manual' WHERE address = ANY (%s)"
            " RETURNING address",
            [rows],
        )
        return [address for (address,) in updated]

    with connection.transaction(), database.within(deadline(seconds)):
        connection.execute(
            "SELECT FROM campaign_jobs.email_suppressions WHERE address = ANY (%s) FOR UPDATE", [kept]
        )
        done, refused = in_batch(database, addresses, work)
    database.close()
    assert sorted(address for part in done for address in part) == sorted(set(addresses) - set(kept))
    refusal = Refusal("canceling statement due to lock timeout; SQLSTATE 55P03", passing=True)
    assert refused == [(address, refusal) for address in kept]


def test_who_waited_in_vain_waits_for_other_locks_as_ever_in_the_next_batch(
    database_url: str, connection: Connection
) -> None:
    database = Database(database_url, timeout_seconds=40)
    connection.execute("INSERT INTO campaign_jobs.email_suppressions VALUES ('a@example.com', 'manual')")
    found: list[object] = []

    def work(inside: Connection, rows: object) -> None:
        found.append(inside.execute("SHOW lock_timeout").fetchone())
        inside.execute("UPDATE campaign_jobs.email_suppressions SET reason = 'manual'")

    with connection.transaction():
        connection.execute(LOCK_ALL)
        in_batch(database, ["first", "second"], work)
    in_batch(database, ["third"], work)
    database.close()
    assert found == [("1s",), ("100ms",), ("100ms",), ("1s",)]


def test_a_statement_that_one_row_makes_too_long_is_split_down_to_that_row(database_url: str) -> None:
    database = Database(database_url, timeout_seconds=2)

    def work(inside: Connection, rows: object) -> None:
        inside.execute("SELECT pg_sleep(n) FROM unnest(%s::float[]) AS n", [rows])

    _, refused = in_batch(database, [0.0, 0.0, 0.0, 100.0, 0.0], work)
    database.close()
    assert [(row, refusal.passing) for row, refusal in refused] == [(100.0, True)]


def test_timeouts_are_shares_of_the_functions() -> None:
    assert Timeouts.within(120) == Timeouts(statement=60, lock=3, idle_in_transaction=20)
