"""The servers that all sides of a run share: PostgreSQL, Redis and Apache Kafka, each keeping what it acknowledges."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks.environments import CACHE, BenchmarkError
from campaign_jobs.database import migrations
from campaign_jobs.database.connection import Connection
from local.kafka import KafkaBroker
from local.postgres import PostgresServer
from local.processes import HOST, ChildProcess, pick_port

EFFECTS = "CREATE TABLE effects (event_id text PRIMARY KEY, campaign_id uuid NOT NULL)"
"""The effect that every side has: one row for each event."""


@dataclass(frozen=True)
class Servers:
    database_url: str
    connection: Connection
    redis_url: str
    brokers: str
    logs: Path
    """Where the processes of a round write theirs."""


@contextmanager
def running(directory: Path) -> Iterator[Servers]:
    """All three, in a directory of their own. Raises BenchmarkError where Redis is not installed."""
    with (
        postgres(directory) as server,
        redis(directory / "redis") as redis_url,
        KafkaBroker(directory / "kafka") as kafka,
    ):
        url = server.create_database("bench")
        migrations.apply(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(EFFECTS)
            yield Servers(url, connection, redis_url, kafka.bootstrap_servers, CACHE / "logs")


@contextmanager
def postgres(directory: Path) -> Iterator[PostgresServer]:
    """A durable server (fsync and synchronous_commit are on) that keeps the time of each commit."""
    with PostgresServer(directory / "postgres") as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
        server.stop()
        server.start()
        yield server


@contextmanager
def redis(directory: Path) -> Iterator[str]:
    """The URL of a server that appends each command to a file and syncs it every second, as Redis advises."""
    program = shutil.which("redis-server")
    if program is None:
        raise BenchmarkError(
            "redis-server is not on the path, and most peers need it: install your system's package redis-server"
        )
    directory.mkdir(parents=True)
    port = pick_port()
    process = ChildProcess(
        "Redis",
        [
            program,
            *("--bind", HOST, "--port", str(port), "--dir", directory),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        ],
        log_file=directory.with_suffix(".log"),
    )
    with process:
        process.wait_until(lambda: _answers(port), timeout_seconds=20)
        yield f"redis://{HOST}:{port}/0"


def flush(redis_url: str) -> None:
    """Forget everything, so that no round sees another's jobs."""
    answer = _command(int(redis_url.rsplit(":", 1)[1].partition("/")[0]), b"FLUSHALL")
    assert answer.startswith(b"+OK"), answer


def _answers(port: int) -> bool:
    try:
        return _command(port, b"PING").startswith(b"+PONG")
    except OSError:
        return False


def _command(port: int, command: bytes) -> bytes:
    # Two commands without an argument are not worth a client.
    with socket.create_connection((HOST, port), timeout=10) as connection:
        connection.sendall(command + b"\r\n")
        return connection.recv(100)
