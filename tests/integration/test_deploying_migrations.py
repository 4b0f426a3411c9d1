"""The custom resource that brings the schema up to date: what CloudFormation asks, and what it is answered."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from campaign_jobs.database import connection as database_connection
from campaign_jobs.database import migrations
from campaign_jobs.database.connection import Database, conninfo_of
from campaign_jobs.database.deployment import ANSWERING_SECONDS, NotDeployedYet, deploy
from campaign_jobs.errors import DatabaseUnavailable
from campaign_jobs.settings import DatabaseSettings
from local.certificates import make_certificates
from local.postgres import PostgresServer
from tests.integration.postgres_tls import TlsProxy

LATEST = migrations.names()[-1]


class Receiver:
    """Where answers go: S3's place, for a moment."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.content_types: list[str | None] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.answers.append(json.loads(body))
                receiver.content_types.append(self.headers["Content-Type"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/answer"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()
    thread.join()


def request(receiver: Receiver, type_: str = "Create", latest: str = LATEST) -> dict[str, Any]:
    return {
        "RequestType": type_,
        "ResponseURL": receiver.url,
        "StackId": "arn:aws:cloudformation:us-east-1:000000000000:stack/campaign-jobs-test/1",
        "RequestId": "request",
        "LogicalResourceId": "Schema",
        "ResourceProperties": {"Latest": latest, "Content": "any"},
    }


def ask(event: dict[str, Any], conninfo: str, seconds: float = 100) -> list[str]:
    return deploy(event, conninfo=lambda: conninfo, seconds=seconds, log_stream="stream")


@pytest.fixture
def empty(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database without our schema."""
    yield postgres_server.create_database("deploying")
    postgres_server.drop_database("deploying")


def tables(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'campaign_jobs'"
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_creating_brings_the_schema_and_updating_nothing_more(receiver: Receiver, empty: str) -> None:
    assert ask(request(receiver), empty) == migrations.names()
    assert ask(request(receiver, "Update"), empty) == []
    for answer in receiver.answers:
        assert answer == {
            "Status": "SUCCESS",
            "PhysicalResourceId": "campaign-jobs-schema",
            "StackId": request(receiver)["StackId"],
            "RequestId": "request",
            "LogicalResourceId": "Schema",
            "Data": {"Latest": LATEST},
        }
    # The signature of S3's URL is for a request without one.
    assert receiver.content_types == ["", ""]


def test_deleting_the_stack_and_rolling_it_back_leave_the_schema_alone(
    receiver: Receiver, empty: str
) -> None:
    for event in (request(receiver, "Delete"), request(receiver, "Update", migrations.names()[-2])):
        assert ask(event, empty) == []
    assert [answer["Status"] for answer in receiver.answers] == ["SUCCESS", "SUCCESS"]
    assert tables(empty) == 0


def test_a_migration_that_the_code_does_not_have_fails_the_deployment(receiver: Receiver, empty: str) -> None:
    with pytest.raises(NotDeployedYet, match="9999_later"):
        ask(request(receiver, "Update", "9999_later"), empty)
    (answer,) = receiver.answers
    assert answer["Status"] == "FAILED"
    assert f"whose last is {LATEST}" in answer["Reason"]


def test_a_migration_that_fails_is_the_deployment_s_answer_and_leaves_those_before_it(
    receiver: Receiver, empty: str
) -> None:
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA campaign_jobs; CREATE TABLE campaign_jobs.email_messages ()")
    with pytest.raises(psycopg.errors.DuplicateTable):
        ask(request(receiver), empty)
    (answer,) = receiver.answers
    assert answer["Status"] == "FAILED"
    assert answer["Reason"] == 'DuplicateTable: relation "email_messages" already exists (log stream)'
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("DROP TABLE campaign_jobs.email_messages")
    applied = ask(request(receiver), empty)
    assert applied == [name for name in migrations.names() if name >= "0003"]


def test_a_table_that_somebody_locks_fails_the_deployment_in_time(receiver: Receiver, empty: str) -> None:
    with psycopg.connect(empty) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('campaign_jobs.migrations', 0))")
        with pytest.raises(psycopg.errors.QueryCanceled):
            ask(request(receiver), empty, seconds=ANSWERING_SECONDS + 1)
    assert receiver.answers[-1]["Status"] == "FAILED"


def test_no_database_fails_the_deployment_without_its_password(receiver: Receiver) -> None:
    nowhere = make_conninfo(host="127.0.0.1", port=1, user="owner", password="s3cret", dbname="none")
    with pytest.raises(psycopg.OperationalError):
        ask(request(receiver), nowhere)
    (answer,) = receiver.answers
    assert answer["Status"] == "FAILED"
    assert "s3cret" not in answer["Reason"]


def test_a_process_that_is_killed_in_the_midst_keeps_nobody_from_migrating(
    empty: str, repository: Path
) -> None:
    """yoyo's own lock is a row, which would stay."""
    program = (
        "import os, sys; from yoyo.backends import DatabaseBackend;"
        "DatabaseBackend.apply_migrations = lambda *arguments, **named: os._exit(7);"
        "from campaign_jobs.database import migrations; migrations.apply(sys.argv[1])"
    )
    path = repository / "layers" / "campaign_jobs" / "python"
    killed = subprocess.run(
        [sys.executable, "-c", program, empty], env={**os.environ, "PYTHONPATH": str(path)}, check=False
    )
    assert killed.returncode == 7
    assert migrations.apply(empty) == migrations.names()


def test_the_content_is_another_one_with_any_migration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = migrations.content_hash()
    source = Path(migrations.__file__).parent
    for name in migrations.names():
        shutil.copy(source / f"{name}.sql", tmp_path)
    monkeypatch.setattr(migrations, "files", lambda _: tmp_path)
    assert migrations.content_hash() == before
    (tmp_path / "9999_later.sql").write_text("SELECT 1;")
    assert migrations.content_hash() != before


# The way to the database: over TLS, to nobody but the server that is meant.


@pytest.fixture
def tls(postgres_server: PostgresServer, empty: str, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The port of a server with a certificate, and who signed it."""
    certificates = make_certificates(tmp_path, ["127.0.0.1"])
    with TlsProxy(postgres_server.port, certificates.certificate_file, certificates.key_file) as proxy:
        yield proxy.port, certificates.ca_file


@pytest.fixture
def secret(tls: tuple[int, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A secret as RDS writes it."""
    import moto

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    content = {
        "host": "127.0.0.1",
        "port": tls[0],
        "username": "postgres",
        "password": "any",
        "dbname": "deploying",
        "engine": "postgres",
    }
    with moto.mock_aws():
        client = boto3.client("secretsmanager")
        yield client.create_secret(Name="database", SecretString=json.dumps(content))["ARN"]


def test_a_secret_leads_to_the_server_over_tls(secret: str, tls: tuple[int, Path]) -> None:
    settings = DatabaseSettings(database_secret_arn=secret, database_ca_file=tls[1])
    database = Database.from_settings(settings, application_name="test", timeout_seconds=60)
    with database.transaction() as connection:
        assert connection.pgconn.ssl_in_use
    database.close()
    assert migrations.apply(conninfo_of(settings)) == migrations.names()


def test_a_server_that_amazon_s_authorities_have_not_signed_gets_no_password(secret: str) -> None:
    settings = DatabaseSettings(database_secret_arn=secret)
    database = Database.from_settings(settings, application_name="test", timeout_seconds=60)
    with pytest.raises(DatabaseUnavailable, match="certificate verify failed"), database.transaction():
        pass


def test_the_authorities_are_those_of_rds_in_every_region_and_of_its_proxy() -> None:
    file = Path(database_connection.__file__).with_name("rds-authorities.pem")
    context = ssl.create_default_context(cafile=file)
    names = {
        str(dict(entry[0] for entry in authority["subject"]).get("commonName"))
        for authority in context.get_ca_certs()
    }
    assert {
        "Amazon RDS us-east-1 Root CA RSA2048 G1",
        "Amazon RDS eu-central-1 Root CA ECC384 G1",
        "Amazon RDS ap-southeast-2 Root CA RSA4096 G1",
        "Amazon Root CA 1",
    } <= names
