"""What relay tells CloudWatch each minute: how far everybody has got.

A process that is dead reports nothing, so nobody reports of himself. Nothing here raises: whatever cannot be told is
logged, and missing data is the alarm; the outbox goes out all the same.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from campaign_jobs.catalog import HEARTBEAT_AGE, OUTBOX_AGE, RELAY, WATERMARK_AGE
from campaign_jobs.database.connection import Database
from campaign_jobs.errors import CampaignJobsError
from campaign_jobs.observability import logger_of, publish_metrics
from campaign_jobs.relay import schedules
from campaign_jobs.relay.heartbeats import Heartbeats
from campaign_jobs.relay.schedules import Rules
from campaign_jobs.worker.delivery import Deadline

EVERY_SECONDS: Final = 60.0
LEAST_SECONDS: Final = 20.0
"""What must be left of an invocation to begin with heartbeats: connecting to Kafka may take fifteen."""
END_SECONDS: Final = 5.0
"""How long the end of a run waits for Kafka to acknowledge heartbeats: afterwards Lambda freezes the process."""

_OUTBOX_AGE: Final = """
SELECT coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
FROM campaign_jobs.outbox WHERE published_at IS NULL AND refused IS NULL
"""


class Progress:
    """Heartbeats out, figures up."""

    def __init__(self, database: Database, heartbeats: Heartbeats, rules: Rules) -> None:
        self._database = database
        self._heartbeats = heartbeats
        self._rules = rules
        self._schedules: dict[str, str] = {}
        self._reported_at = self._beat_at = float("-inf")

    @contextmanager
    def of_run(self) -> Iterator[None]:
        """Around each of relay's runs: it looks at the rules, and waits a moment for what is on its way to Kafka.

        Both without relay's lease, so that a slow answer holds up nothing.
        """
        self._schedules = self._rules.schedules()
        # Whatever the clock did while Lambda had frozen the process.
        self._reported_at = self._beat_at = float("-inf")
        try:
            yield
        finally:
            self._try("heartbeats not published", lambda: self._heartbeats.wait(END_SECONDS))

    def report(self) -> None:
        """Publish the figures, where this run has not done that within the last minute."""
        if time.monotonic() - self._reported_at >= EVERY_SECONDS:
            self._reported_at = time.monotonic()
            # Each by itself, so that one that cannot be had takes no other along.
            for figure in (self._heartbeat_age, self._outbox_age, self._watermark_age):
                self._try("progress not reported", figure)

    def beat(self, deadline: Deadline) -> None:
        """Publish heartbeats, where this run has not done that within the last minute and there is time."""
        if (
            time.monotonic() - self._beat_at >= EVERY_SECONDS
            and deadline.remaining_seconds() >= LEAST_SECONDS
        ):
            self._beat_at = time.monotonic()
            # Of the minute before.
            self._try("heartbeats not published", lambda: self._heartbeats.wait(0))
            self._try("heartbeats not published", self._heartbeats.publish)

    def _heartbeat_age(self) -> None:
        with self._database.transaction() as connection:
            ages = self._heartbeats.ages(connection)
        for consumer_group, age in ages.items():
            told_apart = HEARTBEAT_AGE.dimensions(consumer_group)
            publish_metrics(RELAY.name, {}, {HEARTBEAT_AGE.name: age}, **told_apart)

    def _outbox_age(self) -> None:
        with self._database.transaction() as connection:
            (age,) = connection.execute(_OUTBOX_AGE).fetchone() or (0.0,)
        publish_metrics(RELAY.name, {}, {OUTBOX_AGE.name: max(age, 0.0)})

    def _watermark_age(self) -> None:
        with self._database.transaction() as connection:
            ages = schedules.ages(connection, self._schedules)
        for job_type, age in ages.items():
            told_apart = WATERMARK_AGE.dimensions(job_type)
            publish_metrics(RELAY.name, {}, {WATERMARK_AGE.name: age}, **told_apart)

    @staticmethod
    def _try(otherwise: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  It is logged, and the missing figure raises the alarm.
            reason = str(error) if isinstance(error, CampaignJobsError) else type(error).__name__
            logger_of(RELAY.name).warning(otherwise, extra={"reason": reason})
