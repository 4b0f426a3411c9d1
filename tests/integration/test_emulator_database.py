"""The emulated Aurora lets in who has the password, over TLS, and nobody else."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from local.certificates import make_certificates
from local.emulator.database import DatabaseServer
from local.processes import HOST


@pytest.fixture(scope="module")
def server_and_url() -> Iterator[tuple[DatabaseServer, str]]:
    # Not below pytest's own directory, which is closed to the other user that PostgreSQL runs as under root.
    with tempfile.TemporaryDirectory(prefix="campaign-jobs-emulator-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        certificates = make_certificates(directory, [HOST])
        with DatabaseServer(directory / "postgres", certificates) as server:
            server.create("jobs", "owner", "right")
            place = f"{HOST}:{server.tls_port}/jobs?sslmode=verify-full&sslrootcert={certificates.ca_file}"
            yield server, f"postgresql://owner:right@{place}"


def test_the_owner_comes_in_and_is_no_superuser(server_and_url: tuple[DatabaseServer, str]) -> None:
    _, url = server_and_url
    with psycopg.connect(url) as connection:
        assert connection.pgconn.ssl_in_use
        row = connection.execute("SELECT current_user, usesuper FROM pg_user WHERE usename = current_user")
        assert row.fetchone() == ("owner", False)
        # More than one read of the front's takes.
        large = connection.execute("SELECT repeat('x', 1000000)").fetchone()
        assert large is not None and len(large[0]) == 1_000_000


@pytest.mark.parametrize(
    ("instead_of", "given", "reason"),
    [
        ("owner:right", "owner:wrong", "password authentication failed"),
        ("sslmode=verify-full", "sslmode=disable", "without TLS"),
        ("@127.0.0.1", "@localhost", "does not match host name"),
    ],
    ids=["wrong password", "no TLS", "another host"],
)
def test_others_are_refused(
    server_and_url: tuple[DatabaseServer, str], instead_of: str, given: str, reason: str
) -> None:
    _, url = server_and_url
    assert instead_of in url
    with pytest.raises(psycopg.OperationalError, match=reason):
        psycopg.connect(url.replace(instead_of, given))


def test_what_is_dropped_is_gone(server_and_url: tuple[DatabaseServer, str]) -> None:
    server, _ = server_and_url
    server.create("other", "other_owner", "password")
    assert server.databases() == {"jobs", "other"}
    server.drop("other", "other_owner")
    assert server.databases() == {"jobs"}
