"""One connection for each execution environment, opened when it is first needed and opened again when it was lost."""

import json
import selectors
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import IsolationLevel
from psycopg.conninfo import make_conninfo

from campaign_jobs.errors import DatabaseUnavailable
from campaign_jobs.settings import DatabaseSettings

Connection = psycopg.Connection[tuple[Any, ...]]


class Database:
    """Hands out transactions on one lazily opened connection; used by one thread at a time."""

    def __init__(self, conninfo: str | Callable[[], str], *, application_name: str = "campaign-jobs") -> None:
        self._conninfo = conninfo if callable(conninfo) else lambda: conninfo
        self._application_name = application_name
        self._connection: Connection | None = None

    @classmethod
    def from_settings(cls, settings: DatabaseSettings, *, application_name: str) -> "Database":
        if settings.database_url is not None:
            return cls(settings.database_url, application_name=application_name)
        arn = str(settings.database_secret_arn)
        return cls(lambda: _conninfo_from_secret(arn), application_name=application_name)

    @contextmanager
    def transaction(self, isolation: IsolationLevel | None = None) -> Iterator[Connection]:
        """A transaction that commits at the end of the block and rolls back when it raises.

        Raises DatabaseUnavailable when the server does not answer or the connection is lost on the way; the next
        transaction then opens a new connection.
        """
        connection = self._open()
        try:
            # Between two transactions the isolation level is the client's alone, so it leaves no state behind.
            connection.isolation_level = isolation
            with connection.transaction():
                yield connection
        except psycopg.Error as error:
            if connection.broken or connection.closed:
                self.close()
                raise DatabaseUnavailable(
                    f"the connection to PostgreSQL was lost: {_first_line(error)}"
                ) from error
            if _is_servers_own(error):
                raise DatabaseUnavailable(f"PostgreSQL cannot serve: {_first_line(error)}") from error
            raise

    def _open(self) -> Connection:
        if self._connection is not None and not (self._connection.closed or self._connection.broken):
            if self._is_silent(self._connection):
                return self._connection
            self.close()
        try:
            self._connection = psycopg.connect(
                self._conninfo(),
                autocommit=True,
                application_name=self._application_name,
                connect_timeout=10,
                # RDS Proxy pins a connection for each prepared statement.
                prepare_threshold=None,
                keepalives_idle=30,
                keepalives_interval=10,
                keepalives_count=3,
            )
        except psycopg.OperationalError as error:
            raise DatabaseUnavailable(f"PostgreSQL does not answer: {_first_line(error)}") from error
        return self._connection

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


def _conninfo_from_secret(arn: str) -> str:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = boto3.client("secretsmanager").get_secret_value(SecretId=arn)
        secret = json.loads(answer["SecretString"])
        return make_conninfo(
            host=secret["host"],
            port=secret["port"],
            user=secret["username"],
            password=secret["password"],
            dbname=secret["dbname"],
            sslmode="verify-full",
            sslrootcert="system",
        )
    except (BotoCoreError, ClientError, KeyError, ValueError) as error:
        # Not the events' fault: they wait until the secret can be read. The error's text could hold parts of it.
        raise DatabaseUnavailable(f"the database's secret cannot be read: {type(error).__name__}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
