"""One connection for each execution environment, opened when it is first needed and opened again when it was lost.

Nothing waits for ever, on either side. The server ends a statement, a wait for a lock and a transaction that nobody
goes on with, so that a process that vanished without a word holds no lock for long. We give an answer up that is later
than the server could have been, or that no longer helps the invocation.
"""

import json
import selectors
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final, LiteralString, Protocol, TypeVar

import psycopg
from psycopg import IsolationLevel
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from campaign_jobs.errors import DatabaseUnavailable, OutOfTime
from campaign_jobs.settings import DatabaseSettings

Connection = psycopg.Connection[tuple[Any, ...]]
Answer = TypeVar("Answer")

LONGEST_FUNCTION_SECONDS: Final = 900
"""Lambda's own limit for a function."""
CONNECT_SECONDS: Final = 10
ON_THE_WAY_SECONDS: Final = 5.0
"""An answer that is later than the statement's own time-out by this much will not come."""
DEAD_PEER_SECONDS: Final = 20
"""When either side takes the other for gone that acknowledges nothing any more."""


class Ending(Protocol):
    """When somebody must have ended."""

    def remaining_seconds(self) -> float: ...


@dataclass(frozen=True)
class Timeouts:
    """How long the server lets a connection of ours do something; in seconds."""

    statement: float
    lock: float
    """For each lock that a statement waits for. Short, for jobs keep back five seconds for what they record at the end,
    and who waited in vain has to find the rows that are locked (`in_batch`)."""
    idle_in_transaction: float

    @classmethod
    def within(cls, timeout_seconds: float) -> "Timeouts":
        """Those that suit a function with this time-out of its own."""
        return cls(
            statement=timeout_seconds / 2, lock=timeout_seconds / 40, idle_in_transaction=timeout_seconds / 6
        )

    def as_options(self) -> str:
        """For the start-up packet: a SET command would cost a round trip, and pin the connection in RDS Proxy.

        https://www.postgresql.org/docs/current/runtime-config-client.html
        https://www.postgresql.org/docs/current/runtime-config-connection.html
        """
        milliseconds = {
            "statement_timeout": self.statement,
            "lock_timeout": self.lock,
            "idle_in_transaction_session_timeout": self.idle_in_transaction,
            "tcp_user_timeout": DEAD_PEER_SECONDS,
            # Without it a backend learns that its client is gone only when it has something to say.
            "client_connection_check_interval": 5,
        }
        options = [f"-c {name}={max(1, round(seconds * 1000))}" for name, seconds in milliseconds.items()]
        options += [f"-c tcp_keepalives_{name}={value}" for name, value in _KEEPALIVES.items()]
        return " ".join(options)


_KEEPALIVES: Final = {"idle": 10, "interval": 5, "count": 2}


class Database:
    """Hands out transactions, and single statements, on one lazily opened connection; used by one thread at a time.

    `timeout_seconds` is the time-out of the function that works with it; those of the connection stay below.
    """

    def __init__(
        self,
        conninfo: str | Callable[[], str],
        *,
        application_name: str = "campaign-jobs",
        timeout_seconds: float = LONGEST_FUNCTION_SECONDS,
    ) -> None:
        self._conninfo = conninfo if callable(conninfo) else lambda: conninfo
        self._application_name = application_name
        self._timeouts = Timeouts.within(timeout_seconds)
        self._ending: Ending | None = None
        self._connection: Connection | None = None

    @classmethod
    def from_settings(
        cls, settings: DatabaseSettings, *, application_name: str, timeout_seconds: float
    ) -> "Database":
        return cls(
            lambda: conninfo_of(settings),
            application_name=application_name,
            timeout_seconds=timeout_seconds,
        )

    @contextmanager
    def within(self, ending: Ending) -> Iterator[None]:
        """In the block, an answer that is not there by then is given up: OutOfTime, and the connection is closed."""
        outer, self._ending = self._ending, ending
        try:
            yield
        finally:
            self._ending = outer

    @contextmanager
    def transaction(self, isolation: IsolationLevel | None = None) -> Iterator[Connection]:
        """A transaction that commits at the end of the block and rolls back when it raises.

        Raises DatabaseUnavailable when the server does not answer in time or the connection is lost on the way; the
        next transaction then opens a new connection. Where it was lost in committing, nobody knows whether it has.
        """
        with self._connected() as connection:
            # Between two transactions the isolation level is the client's alone, so it leaves no state behind.
            connection.isolation_level = isolation
            with connection.transaction():
                yield connection

    def statement(
        self, query: LiteralString, parameters: Sequence[Any] = ()
    ) -> "psycopg.Cursor[tuple[Any, ...]]":
        """A statement that is a transaction of its own: one round trip, where `transaction` takes three.

        Raises DatabaseUnavailable as `transaction` does.
        """
        with self._connected() as connection:
            return connection.execute(query, parameters)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """The connection, whose trouble is told from that of the data."""
        connection = self._open()
        try:
            yield connection
        except psycopg.Error as error:
            if connection.broken or connection.closed:
                self.close()
                kind = OutOfTime if self._seconds_left() <= 0 else DatabaseUnavailable
                raise kind(f"the connection to PostgreSQL was lost: {_first_line(error)}") from error
            if _is_servers_own(error):
                raise DatabaseUnavailable(f"PostgreSQL cannot serve: {_first_line(error)}") from error
            raise

    def _open(self) -> Connection:
        if self._connection is not None and not (self._connection.closed or self._connection.broken):
            if self._is_silent(self._connection):
                return self._connection
            self.close()
        if self._seconds_left() <= 0:
            raise OutOfTime("no time was left to connect to PostgreSQL")
        conninfo = self._conninfo()
        # What the URL itself asks for comes last and wins.
        options = f"{self._timeouts.as_options()} {conninfo_to_dict(conninfo).get('options') or ''}"
        try:
            connection = _BoundedConnection.connect(
                conninfo,
                autocommit=True,
                application_name=self._application_name,
                # libpq takes whole seconds, and no fewer than two.
                connect_timeout=max(2, int(min(CONNECT_SECONDS, self._seconds_left()))),
                # RDS Proxy pins a connection for each prepared statement.
                prepare_threshold=None,
                options=options.strip(),
                tcp_user_timeout=DEAD_PEER_SECONDS * 1000,
                keepalives_idle=_KEEPALIVES["idle"],
                keepalives_interval=_KEEPALIVES["interval"],
                keepalives_count=_KEEPALIVES["count"],
            )
        except psycopg.OperationalError as error:
            raise DatabaseUnavailable(f"PostgreSQL does not answer: {_first_line(error)}") from error
        connection.longest_wait = self._longest_wait
        self._connection = connection
        return connection

    def _seconds_left(self) -> float:
        return float("inf") if self._ending is None else self._ending.remaining_seconds()

    def _longest_wait(self) -> float:
        return min(self._timeouts.statement + ON_THE_WAY_SECONDS, self._seconds_left())

    @staticmethod
    def _is_silent(connection: Connection) -> bool:
        """Whether nothing waits to be read: to an idle connection, a server only has to say that it hangs up.

        An environment may have been frozen for hours, and this shows it without a round trip.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(connection.fileno(), selectors.EVENT_READ)
            return not selector.select(timeout=0)

    def close(self) -> None:
        """Close the connection; the next transaction opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _BoundedConnection(psycopg.Connection[tuple[Any, ...]]):
    """Gives up an answer that does not come, however alive the way to the server looks.

    Keep-alives and tcp_user_timeout find a peer that is gone, but not a server that stands still, nor one behind a
    proxy or load balancer that goes on acknowledging.
    """

    longest_wait: Callable[[], float]

    def wait(self, gen: PQGen[Answer], interval: float = 0.1, timeout: float | None = None) -> Answer:
        if timeout is not None or not hasattr(self, "longest_wait"):
            return super().wait(gen, interval, timeout)
        ends_at = time.monotonic() + (seconds := self.longest_wait())
        try:
            return super().wait(gen, interval, seconds)
        except psycopg.OperationalError as error:
            if error.sqlstate is None and time.monotonic() >= ends_at:
                # Closed, so that the late answer is not taken for that of another statement, and the server hears it.
                self.pgconn.finish()
            raise


# Undefined table, column and function, insufficient privilege, invalid schema, and a server that is still read-only.
_NOT_DEPLOYED_YET: Final = {"42P01", "42703", "42883", "42501", "3F000", "25006"}


def _is_servers_own(error: psycopg.Error) -> bool:
    """Whether the trouble is the server's, not the data's, so that the same statement succeeds once it is gone.

    By class of SQLSTATE: resources used up, shutting down, input/output, refused connections; and a schema or a
    privilege that a deployment has not brought yet. A cancelled statement is not among them.
    https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    state = error.sqlstate or ""
    return state != "57014" and (state[:2] in ("53", "57", "58", "08", "28") or state in _NOT_DEPLOYED_YET)


def conninfo_of(settings: DatabaseSettings) -> str:
    """How to connect; read anew each time, since a secret may have been rotated. Raises DatabaseUnavailable."""
    if settings.database_url is not None:
        return settings.database_url
    authorities = settings.database_ca_file or files(__package__).joinpath("rds-authorities.pem")
    return _conninfo_from_secret(str(settings.database_secret_arn), str(authorities))


def _conninfo_from_secret(arn: str, authorities: str) -> str:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    # boto3's own would wait a minute for each of five attempts.
    config = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 2})
    try:
        answer = boto3.client("secretsmanager", config=config).get_secret_value(SecretId=arn)
        secret = json.loads(answer["SecretString"])
        return make_conninfo(
            host=secret["host"],
            port=secret["port"],
            user=secret["username"],
            password=secret["password"],
            dbname=secret["dbname"],
            sslmode="verify-full",
            sslrootcert=authorities,
        )
    except (BotoCoreError, ClientError, KeyError, ValueError) as error:
        # Not the events' fault: they wait until the secret can be read. The error's text could hold parts of it.
        raise DatabaseUnavailable(f"the database's secret cannot be read: {type(error).__name__}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
