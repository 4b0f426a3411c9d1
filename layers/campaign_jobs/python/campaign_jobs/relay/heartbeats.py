"""Heartbeats: what relay publishes to every partition each minute, and how old the last one is that each group has had.

A quiet lane has nothing to show that it is alive, and Lambda commits the offsets of records that its filter keeps out
only when it invokes the function. A heartbeat passes every filter, so it makes Lambda do both.
"""

import json
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol
from uuid import uuid4

from campaign_jobs.catalog import EVENT_JOB_TYPES, HEARTBEAT_EVENT_TYPE
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.errors import PublishError
from campaign_jobs.relay.lease import Lease
from campaign_jobs.settings import RelaySettings

NOT_AGAIN_FOR: Final = timedelta(seconds=50)
"""A little less than the minute between two ticks, so that each tick's run finds the next heartbeat due."""

_AWAIT: Final = """
INSERT INTO campaign_jobs.heartbeats (consumer_group, topic, partition)
SELECT consumer_group, %s, partition
FROM unnest(%s::text[]) AS consumer_group CROSS JOIN generate_series(0, %s - 1) AS partition
ORDER BY consumer_group, partition
ON CONFLICT DO NOTHING
"""

_AGES: Final = """
SELECT consumer_group, extract(epoch FROM clock_timestamp() - min(coalesce(published_at, awaited_since)))::float8
FROM campaign_jobs.heartbeats WHERE topic = %s AND consumer_group = ANY (%s)
GROUP BY consumer_group
"""


class ToEachPartition(Protocol):
    """Writes to every partition of the topic."""

    def submit_to_each_partition(self, value_of: Callable[[int], bytes]) -> "tuple[int, Future[None]]":
        """Begin to publish; how many partitions there are, and a future. Raises PublishError."""
        ...


class Heartbeats:
    """Relay's side of them."""

    def __init__(self, database: Database, producer: ToEachPartition, settings: RelaySettings) -> None:
        self._database = database
        self._producer = producer
        self._topic = settings.kafka_job_topic
        self._groups = [
            lane.consumer_group(settings.kafka_job_consumer_group)
            for job_type in EVENT_JOB_TYPES
            for lane in job_type.lanes
        ]
        self._turn = Lease(database, "heartbeat", NOT_AGAIN_FOR)
        self._under_way: Future[None] | None = None

    def publish(self) -> None:
        """Begin to publish one to every partition, unless that was done within NOT_AGAIN_FOR, by whichever process.

        Nobody waits for the acknowledgements: one partition without a leader would hold up what goes to the others.
        Raises PublishError and DatabaseUnavailable.
        """
        if not self._turn.take():
            return
        now = datetime.now(UTC)
        partitions, self._under_way = self._producer.submit_to_each_partition(
            lambda partition: heartbeat(partition, now)
        )
        with self._database.transaction() as connection:
            connection.execute(_AWAIT, [self._topic, self._groups, partitions])

    def wait(self, seconds: float) -> None:
        """Wait until what is under way is acknowledged, this long at most.

        Raises PublishError where it is not; the next ones go out a minute later.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return
        try:
            under_way.result(seconds)
        except TimeoutError:
            raise PublishError("Kafka has not acknowledged yet") from None

    def ages(self, connection: Connection) -> dict[str, float]:
        """Seconds since the last heartbeat that a group has got through was published, by consumer group.

        Of its partitions, the one that is behind most counts. A partition that never had one counts from when it was
        first awaited.
        """
        rows = connection.execute(_AGES, [self._topic, self._groups]).fetchall()
        return {group: max(age, 0.0) for group, age in rows}


def heartbeat(partition: int, now: datetime) -> bytes:
    """The value of a heartbeat's record."""
    event = {
        "id": str(uuid4()),
        "type": HEARTBEAT_EVENT_TYPE,
        "data": {"partition": partition},
        "timestamp": now.isoformat(),
    }
    return json.dumps(event, separators=(",", ":")).encode()
