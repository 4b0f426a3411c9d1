"""Brings the schema up to date when the stack is deployed, before other functions get their new code."""

from typing import Any

from campaign_jobs.database.connection import conninfo_of
from campaign_jobs.database.deployment import deploy
from campaign_jobs.settings import MigrationsSettings

settings = MigrationsSettings.load()


def handler(event: dict[str, Any], context: Any) -> list[str]:
    return deploy(
        event,
        conninfo=lambda: conninfo_of(settings),
        seconds=context.get_remaining_time_in_millis() / 1000,
        log_stream=context.log_stream_name,
    )
