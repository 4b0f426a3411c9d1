"""One PostgreSQL server and one Kafka broker for the whole run; each test gets a database and a topic of its own."""

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import psycopg
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from campaign_jobs.database import migrations
from campaign_jobs.database.connection import Connection, Database
from local.aws import AccountSettings, AwsStandIn, prepare
from local.kafka import KafkaBroker, create_topic
from local.postgres import PostgresServer

# Of this run alone, because runs over different trees may share a server (tests/mutants).
TEMPLATE_DATABASE = f"campaign_jobs_template_{uuid.uuid4().hex}"


SENDER_DOMAIN = "mail.example.com"

ROOMS = ("tests/crash/", "tests/e2e/system/", "tests/infrastructure/")
"""Whose tests share what takes long: imports, a whole system, templates."""

LONGEST = (
    "tests/e2e/test_chaos",
    "tests/crash/",
    "tests/integration/test_killers",
    "tests/e2e/test_release_before",
    "tests/integration/test_deadlines",
    "tests/e2e/test_demo",
    "tests/infrastructure/",
    "tests/e2e/system/",
    "tests/cli/operating/test_dead_letters",
    "tests/interleavings/test_mails",
    "tests/interleavings/test_fraud",
    "tests/e2e/test_operating",
    "tests/asynq/test_stopping",
)
"""Where the tests begin that take longest, the longest first; the others follow in any order."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-boundary",
        action="store_true",
        help="stop processes in tests/crash also where a stop leaves the same behind as another one (make crash)",
    )


def pytest_configure() -> None:
    """A run in the background of a shell ignores Ctrl-C, and so would the processes that tests send it to."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class ByRoom(LoadFileScheduling):
    """A file at a time for each worker, or a room of ROOMS."""

    def _split_scope(self, nodeid: str) -> str:
        return next((room for room in ROOMS if nodeid.startswith(room)), super()._split_scope(nodeid))


class SharedServer(PostgresServer):
    """A server that somebody else has started on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port


def _in_memory() -> Path | None:
    """Where files are memory, when there is room: a database for each test is many small files."""
    shared_memory = Path("/dev/shm")
    roomy = shared_memory.is_dir() and shutil.disk_usage(shared_memory).free > 4 * 2**30
    return shared_memory if roomy and os.access(shared_memory, os.W_OK) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """What each worker takes (`make test`)."""
    return ByRoom(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest begin first, since each file or room stays with one worker."""

    def rank(item: pytest.Item) -> int:
        return next(
            (rank for rank, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST)
        )

    items.sort(key=rank)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    if (port := os.environ.get("CAMPAIGN_JOBS_TEST_POSTGRES_PORT")) is not None:
        shared = SharedServer(int(port))
        migrations.apply(shared.create_database(TEMPLATE_DATABASE))
        yield shared
        shared.drop_database(TEMPLATE_DATABASE)
        return
    # Not below pytest's own directory, which each run closes to other users: as root, the server runs as another one.
    with (
        tempfile.TemporaryDirectory(prefix="campaign-jobs-postgres-", dir=_in_memory()) as directory,
        PostgresServer(Path(directory) / "data", durable=False) as server,
    ):
        migrations.apply(server.create_database(TEMPLATE_DATABASE))
        yield server


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a fresh, migrated database."""
    name = f"test_{uuid.uuid4().hex}"
    yield postgres_server.create_database(name, template=TEMPLATE_DATABASE)
    postgres_server.drop_database(name)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """What the code under test works with."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """A connection of the test's own, in autocommit mode, to arrange and to look."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    with KafkaBroker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def topic(kafka_broker: KafkaBroker) -> str:
    """The name of a fresh topic with as many partitions as in production."""
    name = f"test-{uuid.uuid4().hex}"
    create_topic(kafka_broker.bootstrap_servers, name)
    return name


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def _stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsStandIn]:
    with AwsStandIn(tmp_path_factory.mktemp("aws") / "mails") as stand_in:
        yield stand_in


@pytest.fixture
def aws(_stand_in: AwsStandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsStandIn]:
    """SES and SQS for whatever makes a boto3 client from the environment; SES accepts all of SENDER_DOMAIN."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", _stand_in.endpoint_url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    prepare(boto3.client("sesv2"), boto3.client("sqs"), [SENDER_DOMAIN], [])
    yield _stand_in
    _stand_in.play([])
    _stand_in.set_account(AccountSettings())
