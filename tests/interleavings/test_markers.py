"""Races of invocations that mark their records before they work on them."""

from typing import Any

from campaign_jobs.catalog import EMAIL
from campaign_jobs.database.connection import Connection
from campaign_jobs.worker.pipeline import Pipeline
from tests.integration.invocations import Context, RecordingQueues, ScriptedJob, settings_of
from tests.integration.test_isolation import RETRY, batch, killed, left
from tests.interleavings.stepping import Race, Side


def a_pipeline(side: Side) -> tuple[Pipeline, ScriptedJob, RecordingQueues]:
    job, queues = ScriptedJob(), RecordingQueues()
    return Pipeline(EMAIL, job, settings_of(EMAIL), side.database, queues=queues), job, queues


def worked_on(job: ScriptedJob) -> list[int]:
    """The offsets that a job was given; they are the ids of their events."""
    offsets = [int(delivery.event.id) for deliveries in job.batches for delivery in deliveries]
    job.batches.clear()
    return offsets


def handed_on(queues: RecordingQueues) -> list[int]:
    offsets = [body["offset"] for body in queues.take(RETRY)]
    assert not queues.sent
    return offsets


def test_two_invocations_with_common_records_lose_none_and_leave_no_marker(
    race: Race, connection: Connection
) -> None:
    (first, first_job, first_queues), (second, second_job, second_queues) = map(
        a_pipeline, (race.first, race.second)
    )
    for schedule in race.schedules():
        counts: tuple[Any, Any] = schedule.run(
            lambda: first.handle(batch(40, 42), Context()), lambda: second.handle(batch(42, 44), Context())
        )
        for job, queues, offsets in (
            (first_job, first_queues, [40, 41, 42]),
            (second_job, second_queues, [42, 43, 44]),
        ):
            worked, handed = worked_on(job), handed_on(queues)
            # All of a batch is worked on, or all of it is handed on.
            assert sorted(worked + handed) == offsets
            assert not (worked and handed)
        assert set(counts[0]) | set(counts[1]) <= {"processed", "isolated"}
        assert left(connection) == (0, 0)


def test_the_marker_of_a_killed_invocation_isolates_whoever_comes_first(
    race: Race, connection: Connection
) -> None:
    (first, first_job, first_queues), (second, second_job, second_queues) = map(
        a_pipeline, (race.first, race.second)
    )
    for schedule in race.schedules():
        killed(first, first_job, batch(40, 44))
        assert left(connection) == (1, 0)
        schedule.run(
            lambda: first.handle(batch(40, 44), Context()), lambda: second.handle(batch(40, 44), Context())
        )
        worked = [worked_on(job) for job in (first_job, second_job)]
        handed = [handed_on(queues) for queues in (first_queues, second_queues)]
        # The killer goes through the retry queue, where it is alone, whatever the other does.
        assert [40, 41, 42, 43, 44] in handed
        for one in zip(worked, handed, strict=True):
            assert sorted(one[0] + one[1]) == [40, 41, 42, 43, 44]
        assert left(connection) == (0, 0)
