"""The email job on a database of its own, with a sender that records."""

from collections.abc import Iterator

import pytest

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email.job import EmailJob
from tests.integration.email.jobs import job_of
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
