"""A pipeline of the email job, with a job and queues that remember."""

import uuid
from collections.abc import Iterator

import psycopg
import pytest

from campaign_jobs.catalog import EMAIL
from campaign_jobs.database.connection import Database
from campaign_jobs.worker.pipeline import Pipeline
from local.postgres import PostgresServer
from tests.conftest import TEMPLATE_DATABASE
from tests.integration.invocations import RecordingQueues, ScriptedJob
from tests.integration.pipeline.pipelines import pipeline_of, set_database


@pytest.fixture
def queues() -> RecordingQueues:
    return RecordingQueues()


@pytest.fixture
def job() -> ScriptedJob:
    return ScriptedJob()


@pytest.fixture(scope="module", autouse=True)
def _one_database(postgres_server: PostgresServer) -> Iterator[None]:
    """For all tests here: but for heartbeats, an invocation leaves nothing in it, whatever its end."""
    name = f"test_{uuid.uuid4().hex}"
    url = postgres_server.create_database(name, template=TEMPLATE_DATABASE)
    database = Database(url)
    set_database(database)
    yield
    with psycopg.connect(url) as connection:
        for table in ("batch_markers", "solo_starts"):
            assert connection.execute(f"SELECT * FROM campaign_jobs.{table}").fetchall() == []
    database.close()
    postgres_server.drop_database(name)


@pytest.fixture
def pipeline(job: ScriptedJob, queues: RecordingQueues) -> Pipeline:
    return pipeline_of(EMAIL, job, queues)
