"""What becomes of a transaction when the server, the secret or the schema is not there."""

import os
import socket
from collections.abc import Iterator

import boto3
import psycopg
import pytest
from psycopg import sql

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.errors import DatabaseUnavailable
from campaign_jobs.settings import DatabaseSettings
from local.postgres import PostgresServer


def test_a_transaction_commits_or_rolls_back(database: Database, connection: Connection) -> None:
    with database.transaction() as inside:
        inside.execute("INSERT INTO campaign_jobs.email_suppressions VALUES ('a@example.com', 'manual')")
    with pytest.raises(ZeroDivisionError), database.transaction() as inside:
        inside.execute("DELETE FROM campaign_jobs.email_suppressions")
        raise ZeroDivisionError
    assert connection.execute("SELECT count(*) FROM campaign_jobs.email_suppressions").fetchone() == (1,)


def test_a_lost_connection_is_opened_again(database: Database, connection: Connection) -> None:
    with database.transaction() as inside:
        pid = inside.info.backend_pid
    connection.execute("SELECT pg_terminate_backend(%s)", [pid])
    while connection.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone() != (
        0,
    ):
        pass
    with database.transaction() as inside:
        assert inside.info.backend_pid != pid


def test_a_connection_lost_on_the_way_is_the_databases_fault(
    database: Database, connection: Connection
) -> None:
    with pytest.raises(DatabaseUnavailable), database.transaction() as inside:
        connection.execute("SELECT pg_terminate_backend(%s)", [inside.info.backend_pid])
        inside.execute("SELECT pg_sleep(10)")
    with database.transaction() as inside:
        assert inside.execute("SELECT 1").fetchone() == (1,)


def test_a_connection_cut_without_a_word_is_the_databases_fault(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable, match="lost"), database.transaction() as inside:
        with socket.socket(fileno=os.dup(inside.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)
        inside.execute("SELECT 1")
    with database.transaction() as inside:
        assert inside.execute("SELECT 1").fetchone() == (1,)


def test_no_server_and_no_schema_are_the_databases_fault(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable), Database("postgresql://x@127.0.0.1:1/none").transaction():
        pass
    with pytest.raises(DatabaseUnavailable, match="not_there"), database.transaction() as inside:
        inside.execute("SELECT * FROM campaign_jobs.not_there")


def test_a_wrong_statement_and_wrong_data_are_not(database: Database) -> None:
    for statement in ("SELEC 1", "SELECT 1/0", "SELECT 'x'::integer"):
        with pytest.raises(psycopg.Error), database.transaction() as inside:
            inside.execute(statement.encode())


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import moto

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        client = boto3.client("secretsmanager")
        yield client.create_secret(Name="database", SecretString='{"host": "127.0.0.1"}')["ARN"]


def test_a_secret_that_cannot_be_read_is_the_databases_fault(secrets: str) -> None:
    for arn, why in ((secrets, "KeyError"), (secrets + "x", "ResourceNotFoundException")):
        settings = DatabaseSettings(database_secret_arn=arn)
        database = Database.from_settings(settings, application_name="test", timeout_seconds=60)
        with pytest.raises(DatabaseUnavailable, match=why), database.transaction():
            pass


def test_the_isolation_level_of_one_transaction_is_not_the_next_ones(database: Database) -> None:
    show = sql.SQL("SHOW transaction_isolation")
    with database.transaction(psycopg.IsolationLevel.REPEATABLE_READ) as inside:
        assert inside.execute(show).fetchone() == ("repeatable read",)
    with database.transaction() as inside:
        assert inside.execute(show).fetchone() == ("read committed",)


def test_a_server_that_comes_back_serves_again(postgres_server: PostgresServer, database: Database) -> None:
    with database.transaction() as inside:
        inside.execute("SELECT 1")
    postgres_server.stop()
    with pytest.raises(DatabaseUnavailable), database.transaction() as inside:
        inside.execute("SELECT 1")
    postgres_server.start()
    with database.transaction() as inside:
        assert inside.execute("SELECT 1").fetchone() == (1,)
