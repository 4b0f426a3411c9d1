"""A worker's database, set back before each run to what services wrote; a copy for each would take longer than runs."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from campaign_jobs.database.connection import Connection
from local.postgres import PostgresServer
from tests.conftest import TEMPLATE_DATABASE

_TABLES: Final = """
SELECT relname, array_agg(attname ORDER BY attnum) FILTER (WHERE attgenerated = '')
FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
WHERE relnamespace = 'campaign_jobs'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
GROUP BY relname ORDER BY relname
"""
_SEQUENCES: Final = """
SELECT relname FROM pg_class WHERE relnamespace = 'campaign_jobs'::regnamespace AND relkind = 'S' ORDER BY relname
"""
# What a process leaves to the server, which notices at once that the connection is gone.
_OTHERS: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND backend_type = 'client backend'"
)

Contents = dict[str, list[Any]]
"""The rows of each table and the state of each sequence, with every value."""


@dataclass(frozen=True)
class Seeded:
    """What services wrote before a scenario's invocation."""

    template: str
    deliveries: list[Any]
    contents: Contents
    setting_back: sql.Composed
    """The statements that bring `contents` back, in a copy of the template; together they are one transaction."""


def seed(server: PostgresServer, write: Callable[[Connection], Sequence[Any]]) -> Seeded:
    template = f"crash_{uuid.uuid4().hex}"
    with psycopg.connect(
        server.create_database(template, template=TEMPLATE_DATABASE), autocommit=True
    ) as connection:
        deliveries = list(write(connection))
        return Seeded(template, deliveries, contents(connection), _keep(connection))


def _keep(connection: Connection) -> sql.Composed:
    # No trigger and no foreign key has a say in it. TRUNCATE makes new files, which takes ten times as long.
    statements: list[sql.Composable] = [sql.SQL("SET LOCAL session_replication_role = replica")]
    connection.execute("CREATE SCHEMA seeded")
    for table, columns in connection.execute(_TABLES).fetchall():
        own, kept = (sql.Identifier(schema, table) for schema in ("campaign_jobs", "seeded"))
        statements.append(sql.SQL("DELETE FROM {}").format(own))
        if connection.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(own)).fetchone() is not None:
            connection.execute(sql.SQL("CREATE TABLE {} AS TABLE {}").format(kept, own))
            names = sql.SQL(", ").join(map(sql.Identifier, columns))
            statements.append(
                sql.SQL("INSERT INTO {} ({names}) OVERRIDING SYSTEM VALUE SELECT {names} FROM {}").format(
                    own, kept, names=names
                )
            )
    for sequence, state in _sequences(connection).items():
        statements.append(sql.SQL("SELECT setval({}, {}, {})").format(f"campaign_jobs.{sequence}", *state))
    return sql.SQL("; ").join(statements)


def contents(connection: Connection) -> Contents:
    rows = {
        table: sorted(
            row
            for (row,) in connection.execute(
                sql.SQL("SELECT row::text FROM {} AS row").format(sql.Identifier("campaign_jobs", table))
            )
        )
        for table, _ in connection.execute(_TABLES).fetchall()
    }
    return {**rows, **{sequence: [state] for sequence, state in _sequences(connection).items()}}


def _sequences(connection: Connection) -> dict[str, tuple[Any, ...]]:
    states = {}
    for (sequence,) in connection.execute(_SEQUENCES).fetchall():
        query = sql.SQL("SELECT last_value, is_called FROM {}").format(
            sql.Identifier("campaign_jobs", sequence)
        )
        ((*state,),) = connection.execute(query)
        states[sequence] = tuple(state)
    return states


class WorkersDatabase:
    """One database at a time, that of the scenario which the worker runs."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        # One name for all, because a handler that has been loaded with the URL serves several scenarios.
        self._name = f"crash_{uuid.uuid4().hex}"
        self._seeded: Seeded | None = None
        self.url = server.url(self._name)
        self.connection: Connection

    def set_back_to(self, seeded: Seeded) -> None:
        """Whatever is in it, services wrote, and no process is connected to it but we."""
        if self._seeded is not seeded:
            self.close()
            self._server.create_database(self._name, template=seeded.template)
            self.connection = psycopg.connect(self.url, autocommit=True)
            self._seeded = seeded
        self.wait_for_the_server()
        self.connection.execute(seeded.setting_back)

    def wait_for_the_server(self) -> None:
        """Until it has noticed that a process is gone."""
        while self.connection.execute(_OTHERS).fetchone() != (0,):
            pass

    def close(self) -> None:
        if self._seeded is not None:
            self.connection.close()
            self._server.drop_database(self._name)
            self._seeded = None
