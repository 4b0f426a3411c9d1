"""Races of those who store heartbeats, and of those who publish them."""

import logging
from datetime import datetime, timedelta

from aws_lambda_powertools import Logger

from campaign_jobs.database.connection import Connection
from campaign_jobs.relay.heartbeats import Heartbeats
from campaign_jobs.worker.delivery import Coordinates
from campaign_jobs.worker.messages import Received
from campaign_jobs.worker.progress import store_heartbeats
from tests.integration.test_heartbeats import GROUP, NOON, TOPIC, RecordingPartitions, settings, stored
from tests.interleavings.stepping import Race, Side

LATER = NOON + timedelta(minutes=1)


class _Complaints(Logger):
    """What is not stored is only logged."""

    def warning(self, *arguments: object, **named: object) -> None:
        raise AssertionError(f"{arguments} {named}")


def _store(side: Side, moment: datetime, partitions: list[int]) -> None:
    heartbeats = [
        Received(Coordinates(TOPIC, partition, 7), b"", recorded_at=moment, first_received_at=moment)
        for partition in partitions
    ]
    store_heartbeats(side.database, GROUP, heartbeats, _Complaints(level=logging.WARNING))


def test_the_latest_one_stays_whoever_stores_last(race: Race, connection: Connection) -> None:
    for schedule in race.schedules():
        connection.execute("TRUNCATE campaign_jobs.heartbeats")
        schedule.run(
            lambda: _store(race.first, NOON, [0, 1, 2]), lambda: _store(race.second, LATER, [2, 1, 0])
        )
        assert stored(connection) == {(GROUP, partition): LATER for partition in range(3)}


def test_two_runs_of_relay_publish_one(race: Race, connection: Connection) -> None:
    partitions = RecordingPartitions()
    first, second = (Heartbeats(side.database, partitions, settings()) for side in (race.first, race.second))
    for schedule in race.schedules():
        connection.execute("TRUNCATE campaign_jobs.heartbeats, campaign_jobs.leases")
        partitions.published.clear()
        schedule.run(first.publish, second.publish)
        assert len(partitions.published) == 3
        assert len(first.ages(connection)) == 5
