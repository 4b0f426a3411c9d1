"""Pipelines over one database, since no invocation leaves anything in it."""

from typing import Any

from campaign_jobs.catalog import UNROUTABLE, EventJobType
from campaign_jobs.database.connection import Database
from campaign_jobs.worker.pipeline import Pipeline
from campaign_jobs.worker.unroutable import Unroutable
from tests.integration.invocations import ScriptedJob, settings_of

_database: Database | None = None


def set_database(database: Database) -> None:
    """What the pipelines of the tests that follow work with; they are made in functions that take no fixtures."""
    global _database  # noqa: PLW0603
    _database = database


def database() -> Database:
    assert _database is not None
    return _database


def pipeline_of(job_type: EventJobType, job: ScriptedJob, queues: Any) -> Pipeline:
    return Pipeline(job_type, job, settings_of(job_type), database(), queues=queues)


def unroutable_of(queues: Any) -> Unroutable:
    return Unroutable(settings_of(UNROUTABLE), database(), queues=queues)  # type: ignore[arg-type]
