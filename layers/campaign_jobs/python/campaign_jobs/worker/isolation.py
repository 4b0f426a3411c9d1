"""A record that kills its process (crash, hang, memory) costs its partition two deliveries, and its neighbors nothing.

From Kafka, an invocation commits a marker of its records before it decodes any. An orderly end removes it, so a marker
that is found tells of an invocation that was killed, or is still at work. Whoever finds one hands all its records on to
the retry queue, where each is alone. There its starts are counted in the same way, and after three that did not end it
is a dead letter.

Two invocations that mark the same records at the same moment do not see each other, and both work on them. That is a
doubled delivery like any other; if either is killed its marker stays, and the next delivery finds it. An invocation
that is still at work, and whose marker is taken away, goes on to its end; its records then come from the retry queue as
well. Nor do doubled messages of one record make a killer of it: a lane works on two at once, which is one unfinished
start for each. An orderly end that could not be written down, because the database was gone, is written down by the
process's next invocation; only where there is none, a start is spent that ended well.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from typing import Any, Final, LiteralString
from uuid import UUID, uuid4

import psycopg
from aws_lambda_powertools import Logger

from campaign_jobs.catalog import Lane
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.errors import DatabaseUnavailable
from campaign_jobs.settings import EventJobSettings
from campaign_jobs.worker.delivery import Coordinates
from campaign_jobs.worker.messages import Received, UnreadableMessage, from_kafka, read_body
from campaign_jobs.worker.outcomes import Rejected
from campaign_jobs.worker.settle import Settlement, Settler

MAX_UNFINISHED_STARTS: Final = 3
KILLED_ALONE: Final = "it ended the function three times when it was alone (crash, time-out or memory)"
MARKERS_KEPT: Final = timedelta(days=1)
STARTS_KEPT: Final = timedelta(days=15)
"""A day longer than a queue keeps the message."""

# The snapshot is older than the statement's own rows, so it finds only those of others. Nobody waits until the disk has
# it: a marker outlives its own process, which is all that it is for. One that PostgreSQL forgets in a crash costs the
# partition of a killer one delivery more. The setting ends with the transaction; a SET command would pin the connection
# in RDS Proxy.
_MARK: Final = """
WITH mine AS (
    INSERT INTO campaign_jobs.batch_markers
        (consumer_group, topic, partition, marker_id, first_offset, last_offset)
    SELECT %s, topic, partition, %s, first_offset, last_offset
    FROM unnest(%s::text[], %s::integer[], %s::bigint[], %s::bigint[])
        AS batch (topic, partition, first_offset, last_offset)
    WHERE set_config('synchronous_commit', 'off', true) = 'off'
    RETURNING *
)
SELECT DISTINCT other.marker_id
FROM campaign_jobs.batch_markers AS other JOIN mine USING (consumer_group, topic, partition)
WHERE other.first_offset <= mine.last_offset AND other.last_offset >= mine.first_offset
"""

# Not waited for either: what PostgreSQL forgets of it in a crash is a marker left behind.
_REMOVE_MARKERS: Final[LiteralString] = """
DELETE FROM campaign_jobs.batch_markers
WHERE consumer_group = %s AND marker_id = ANY (%s) AND set_config('synchronous_commit', 'off', true) = 'off'
"""

_COUNT_STARTS: Final = """
INSERT INTO campaign_jobs.solo_starts AS known
    (consumer_group, topic, partition, record_offset, starts, last_started_at)
SELECT %s, topic, partition, record_offset, 1, clock_timestamp()
FROM unnest(%s::text[], %s::integer[], %s::bigint[]) AS started (topic, partition, record_offset)
ON CONFLICT (consumer_group, topic, partition, record_offset) DO UPDATE
SET starts = known.starts + 1, last_started_at = clock_timestamp()
RETURNING topic, partition, record_offset, starts
"""

_CLEAR_STARTS: Final[LiteralString] = """
DELETE FROM campaign_jobs.solo_starts AS known
USING unnest(%s::text[], %s::integer[], %s::bigint[]) AS ended (topic, partition, record_offset)
WHERE known.consumer_group = %s
    AND (known.topic, known.partition, known.record_offset)
        = (ended.topic, ended.partition, ended.record_offset)
"""

_FORGET_MARKERS: Final = """
DELETE FROM campaign_jobs.batch_markers WHERE created_at < clock_timestamp() - %s
"""

_FORGET_STARTS: Final = """
DELETE FROM campaign_jobs.solo_starts WHERE last_started_at < clock_timestamp() - %s
"""


class Isolation:
    """Lets a job type's invocations have their records, but not those that may kill them together with others."""

    def __init__(
        self, database: Database, settings: EventJobSettings, settler: Settler, logger: Logger
    ) -> None:
        self._database = database
        self._settings = settings
        self._settler = settler
        self._logger = logger
        # What orderly ends could not remove, because the database was gone.
        self._left_behind: list[tuple[LiteralString, list[Any]]] = []

    def records_of(
        self, event: dict[str, Any], lane: Lane, *, now: datetime, counts: Counter[str]
    ) -> AbstractContextManager[list[Received]]:
        """The records of an invocation that are to be worked on; leaving the block is the invocation's orderly end.

        What is not to be worked on is settled and added to `counts`. Entering raises DatabaseUnavailable or
        QueueUnavailable; leaving passes on what the block raises, and raises nothing of its own.
        """
        left_behind, self._left_behind = self._left_behind, []
        for statement, parameters in left_behind:
            self._end(statement, parameters)
        group = lane.consumer_group(self._settings.kafka_job_consumer_group)
        of_event = self._of_kafka if "records" in event else self._of_retry_queue
        return of_event(event, group, self._settings.retry_queue_url(lane), now, counts)

    @contextmanager
    def _of_kafka(
        self, event: dict[str, Any], group: str, retry_queue_url: str, now: datetime, counts: Counter[str]
    ) -> Iterator[list[Received]]:
        marker = uuid4()
        found = self._mark(group, marker, event["records"])
        finished = [marker]
        with self._orderly_end(_REMOVE_MARKERS, [group, finished]):
            received = from_kafka(event, now=now)
            if found:
                self._settler.isolate(received, retry_queue_url)
                # Not before the queue has the records: the next delivery would work on all of them together.
                finished += found
                counts["isolated"] += len(received)
                received = []
            yield received

    @contextmanager
    def _of_retry_queue(
        self, event: dict[str, Any], group: str, retry_queue_url: str, now: datetime, counts: Counter[str]
    ) -> Iterator[list[Received]]:
        received = self._read(event["Records"], now, counts)
        starts = self._count_starts(group, {item.coordinates for item in received})
        killers = [item for item in received if starts[item.coordinates] > MAX_UNFINISHED_STARTS]
        others = [item for item in received if starts[item.coordinates] <= MAX_UNFINISHED_STARTS]
        with self._orderly_end(_CLEAR_STARTS, [*_columns({item.coordinates for item in others}), group]):
            if killers:
                rejected = Rejected(KILLED_ALONE)
                settlements = [Settlement(item, rejected, retry_queue_url) for item in killers]
                counts.update(self._settler.settle(settlements, now=now))
                # If this fails, so does the invocation: with the count left, a redrive would not begin anew.
                killed = _columns({item.coordinates for item in killers})
                self._database.statement(_CLEAR_STARTS, [*killed, group])
            yield others

    def _mark(self, group: str, marker: UUID, records: Mapping[str, list[dict[str, Any]]]) -> list[UUID]:
        """Mark the records as being worked on. Returns the markers of others that overlap."""
        ranges = sorted(
            (
                batch[0]["topic"],
                batch[0]["partition"],
                min(record["offset"] for record in batch),
                max(record["offset"] for record in batch),
            )
            for batch in records.values()
            if batch
        )
        columns = [list(column) for column in zip(*ranges, strict=True)] or [[], [], [], []]
        found = self._database.statement(_MARK, [group, marker, *columns]).fetchall()
        if found:
            self._logger.warning(
                "batch isolated",
                extra={"consumer_group": group, "ranges": ranges, "markers": [str(row[0]) for row in found]},
            )
        return [row[0] for row in found]

    def _read(
        self, messages: Sequence[dict[str, Any]], now: datetime, counts: Counter[str]
    ) -> list[Received]:
        """The messages' records; one that cannot be read is a dead letter at once.

        That has no coordinates to count by. Nothing but this reads it, SQS bounds its size, and the queue's own
        receive limit is behind it.
        """
        received = []
        for message in messages:
            try:
                received.append(read_body(message["body"], now=now))
            except UnreadableMessage as error:
                self._settler.reject_unreadable(message["body"], str(error), now=now)
                counts["dead_lettered"] += 1
        return received

    def _count_starts(self, group: str, coordinates: set[Coordinates]) -> dict[Coordinates, int]:
        """Count one more start of each. Returns the starts that had no orderly end, this one among them."""
        if not coordinates:
            return {}
        rows = self._database.statement(_COUNT_STARTS, [group, *_columns(coordinates)])
        return {Coordinates(topic, partition, offset): starts for topic, partition, offset, starts in rows}

    @contextmanager
    def _orderly_end(self, statement: LiteralString, parameters: list[Any]) -> Iterator[None]:
        """Execute the statement at the end of the block, unless the process is being ended (SystemExit)."""
        try:
            yield
        except Exception:
            self._end(statement, parameters)
            raise
        self._end(statement, parameters)

    def _end(self, statement: LiteralString, parameters: list[Any]) -> None:
        try:
            self._database.statement(statement, parameters)
        except (DatabaseUnavailable, psycopg.Error) as error:
            # What the invocation has done is done. The process's next invocation tries again; where there is none, a
            # marker costs only the way through the retry queue, and a count one of the starts.
            self._left_behind.append((statement, parameters))
            self._logger.warning("marker left behind", extra={"error": type(error).__name__})


def forget_left_behind(connection: Connection) -> int:
    """Remove what no delivery has come to find for so long that none will. Returns the number of rows."""
    return (
        connection.execute(_FORGET_MARKERS, [MARKERS_KEPT]).rowcount
        + connection.execute(_FORGET_STARTS, [STARTS_KEPT]).rowcount
    )


def _columns(coordinates: set[Coordinates]) -> list[list[Any]]:
    """Sorted, so that invocations that share some take their locks in the same order."""
    ordered = sorted((each.topic, each.partition, each.offset) for each in coordinates)
    return [list(column) for column in zip(*ordered, strict=True)] or [[], [], []]
