"""The email job on a database of its own, with a sender that records."""

from collections.abc import Iterator

import psycopg
import pytest

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email.job import EmailJob
from tests.integration.email.jobs import Holder, job_of
from tests.integration.email_campaign import MailCampaign, RecordingSender


@pytest.fixture
def sender() -> RecordingSender:
    return RecordingSender()


@pytest.fixture
def job(database: Database, sender: RecordingSender) -> EmailJob:
    return job_of(database, sender)


@pytest.fixture
def campaign(connection: Connection) -> MailCampaign:
    return MailCampaign(connection)


@pytest.fixture
def second_database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def impatient(database_url: str) -> Iterator[Database]:
    """That of a function with so short a time-out: its statements wait half a second for a lock."""
    database = Database(database_url, timeout_seconds=12)
    yield database
    database.close()


@pytest.fixture
def holder(database_url: str) -> Iterator[Holder]:
    with psycopg.connect(database_url) as connection:
        yield Holder(connection)
