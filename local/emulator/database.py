"""The embedded PostgreSQL as Aurora is: passwords, over TLS alone, and an owner who is no superuser."""

from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from local.certificates import Certificates
from local.emulator.tls import TlsFront
from local.postgres import SUPERUSER, PostgresServer
from local.processes import HOST


class DatabaseServer(PostgresServer):
    """Everybody but the superuser needs a password, and comes in by `tls_port`."""

    def __init__(self, data_directory: Path, certificates: Certificates) -> None:
        super().__init__(data_directory, durable=False)
        self._front = TlsFront(self.port, certificates)

    @property
    def tls_port(self) -> int:
        return self._front.port

    def start(self) -> None:
        """Raises StartError."""
        super().start()
        rules = [f"host all {SUPERUSER} {HOST}/32 trust", f"host all all {HOST}/32 scram-sha-256"]
        (self.data_directory / "pg_hba.conf").write_text("\n".join(rules) + "\n", encoding="ascii")
        self._execute("SELECT pg_reload_conf()")
        self._front.start()

    def stop(self) -> None:
        self._front.stop()
        super().stop()

    def create(self, database: str, owner: str, password: str) -> None:
        """Create a role and its database. Raises psycopg.Error."""
        role, name = sql.Identifier(owner), sql.Identifier(database)
        self._execute(
            sql.SQL("CREATE ROLE {} LOGIN CREATEROLE CREATEDB PASSWORD {}").format(
                role, sql.Literal(password)
            ),
            sql.SQL("CREATE DATABASE {} OWNER {}").format(name, role),
        )

    def drop(self, database: str, owner: str) -> None:
        """Drop a database and its owner, where they are there. Raises psycopg.Error."""
        self.drop_database(database)
        self._execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(owner)))

    def databases(self) -> set[str]:
        """The names of all databases that were created here."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            rows = connection.execute("SELECT datname FROM pg_database WHERE NOT datistemplate").fetchall()
        return {name for (name,) in rows} - {"postgres"}

    def _execute(self, *statements: Any) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)
