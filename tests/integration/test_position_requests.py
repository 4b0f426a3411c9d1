"""Requests: coalesced while a run goes on, never lost, and none too many."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import IsolationLevel

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.events import PositionEvent, parse
from campaign_jobs.position import job as job_module
from campaign_jobs.position import run as run_module
from campaign_jobs.position.job import RUN_RESERVE_SECONDS, PositionJob
from campaign_jobs.position.run import Run, recalculate
from campaign_jobs.position.waiting import request_waiting
from campaign_jobs.worker.delivery import Deadline
from campaign_jobs.worker.outcomes import Done, Later, Rejected, Retry
from tests.integration.position_campaign import LAUNCH, Campaign, delivery, far_deadline, refer

SHORT = timedelta(seconds=1)


@contextmanager
def somebody_running(database_url: str, campaign: Campaign) -> Iterator[Connection]:
    """A run that has taken its snapshot and its requests; it commits at the end of the block."""
    with psycopg.connect(database_url) as other:
        other.isolation_level = IsolationLevel.REPEATABLE_READ
        parameters = {"campaign_id": campaign.id, "work_mem": run_module.WORK_MEM, "ranked": True}
        assert other.execute(run_module._LOCK, parameters).fetchone() is not None
        other.execute(run_module._TAKE_REQUESTS, parameters)
        other.execute(run_module._RANK, parameters)
        yield other
        other.execute(run_module._RECORD, parameters)


def test_requests_during_a_run_cause_exactly_one_more(
    database: Database, database_url: str, connection: Connection
) -> None:
    campaign = Campaign(connection)
    users = campaign.add_users(5)
    job = PositionJob(database)
    with somebody_running(database_url, campaign):
        campaign.refer(users[4], users[0])
        for _ in range(7):
            assert job.process([delivery(campaign.id)], far_deadline()) == [Done()], (
                "who fails to get the lock is done"
            )
        assert campaign.runs() == 0
        assert campaign.positions() == {}
        assert campaign.waiting() == 9, "one of them the run has already counted in"
    # The runner looks again after its commit.
    assert recalculate(database, campaign.id) == Run(8, True, changed=2, left=0, told=1)
    assert recalculate(database, campaign.id) is None
    assert (campaign.runs(), campaign.waiting()) == (2, 0)


def test_a_runner_looks_again_after_its_commit(
    database: Database, database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = Campaign(connection)
    users = campaign.add_users(5)
    repeat_on_conflict = run_module.repeat_on_conflict
    seen: list[Run | None] = []

    def interrupted(
        runner: Database, work: Callable[[Connection], Run | None], *, isolation: IsolationLevel | None
    ) -> Run | None:
        def work_with_company(run_connection: Connection) -> Run | None:
            result = work(run_connection)
            if runner is database and not seen:
                campaign.refer(users[4], users[0])
                other = Database(database_url)
                assert PositionJob(other).process([delivery(campaign.id)] * 3, far_deadline()) == [Done()] * 3
                other.close()
            return result

        result = repeat_on_conflict(runner, work_with_company, isolation=isolation)
        if runner is database:
            seen.append(result)
        return result

    monkeypatch.setattr(run_module, "repeat_on_conflict", interrupted)
    assert PositionJob(database).process([delivery(campaign.id)], far_deadline()) == [Done()]
    assert seen == [Run(2, True, changed=5, left=0, told=0), Run(2, True, changed=2, left=0, told=1)]
    assert (campaign.runs(), campaign.waiting()) == (2, 0)


def test_a_batch_of_requests_is_one_run(database: Database, connection: Connection) -> None:
    first, second = Campaign(connection), Campaign(connection)
    first.add_users(3)
    second.add_users(2)
    deliveries = [delivery(campaign.id) for _ in range(20) for campaign in (first, second)]
    assert PositionJob(database).process(deliveries, far_deadline()) == [Done()] * 40
    assert [campaign.runs() for campaign in (first, second)] == [1, 1]
    assert [len(campaign.positions()) for campaign in (first, second)] == [3, 2]


def test_no_request_is_lost_and_no_two_runs_overlap_whatever_comes_together(
    database: Database, database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = Campaign(connection)
    users = campaign.add_users(60)
    # Of each committed run: its transaction and what its snapshot saw.
    runs: list[tuple[str, str]] = []
    repeat_on_conflict = run_module.repeat_on_conflict

    def watched(
        database: Database, work: Callable[[Connection], Run | None], *, isolation: IsolationLevel | None
    ) -> Run | None:
        def watched_work(run_connection: Connection) -> tuple[Run | None, str, str]:
            result = work(run_connection)
            row = run_connection.execute(
                "SELECT pg_current_xact_id()::text, pg_current_snapshot()::text"
            ).fetchone()
            assert row is not None
            return result, *row

        result, transaction, snapshot = repeat_on_conflict(database, watched_work, isolation=isolation)
        # Who finds that somebody else has taken the requests has not run.
        if result is not None and result.requests:
            runs.append((transaction, snapshot))
        return result

    monkeypatch.setattr(run_module, "repeat_on_conflict", watched)

    def service(number: int) -> None:
        own_database = Database(database_url)
        job = PositionJob(own_database)
        with psycopg.connect(database_url, autocommit=True) as own:
            for step in range(5):
                refer(own, campaign.id, users[30 + number * 5 + step], users[number * 5 + step])
                outcomes = job.process([delivery(campaign.id) for _ in range(3)], far_deadline())
                assert outcomes == [Done()] * 3
        own_database.close()

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(service, number) for number in range(6)]:
            done.result()
    assert campaign.waiting() == 0
    assert campaign.runs() == len(runs) <= 31
    overlapping = connection.execute(
        "WITH run AS (SELECT * FROM unnest(%s::xid8[], %s::pg_snapshot[]) AS run (transaction, snapshot))"
        " SELECT one.transaction, other.transaction FROM run AS one JOIN run AS other"
        " ON one.transaction < other.transaction"
        " WHERE NOT pg_visible_in_snapshot(one.transaction, other.snapshot)"
        " AND NOT pg_visible_in_snapshot(other.transaction, one.snapshot)",
        ([transaction for transaction, _ in runs], [snapshot for _, snapshot in runs]),
    ).fetchall()
    assert overlapping == []
    assert list(campaign.positions().values()) == list(range(1, 61))
    assert recalculate(database, campaign.id, thorough=True) == Run(0, True, changed=0, left=0, told=0)


def test_a_run_with_a_stale_snapshot_does_not_commit(
    database: Database, database_url: str, connection: Connection
) -> None:
    campaign = Campaign(connection)
    users = campaign.add_users(3)
    recalculate(database, campaign.id)
    with psycopg.connect(database_url) as late:
        late.isolation_level = IsolationLevel.REPEATABLE_READ
        # Its snapshot is taken here, as between the start of the locking statement and the lock itself.
        late.execute("SELECT 1")
        campaign.refer(users[2], users[0])
        recalculate(database, campaign.id)
        parameters = {"campaign_id": campaign.id, "work_mem": run_module.WORK_MEM}
        with pytest.raises(psycopg.errors.SerializationFailure):
            late.execute(run_module._LOCK, parameters)
    assert campaign.positions()[users[2]] == 2


def test_a_run_that_is_killed_runs_again(
    database: Database, database_url: str, connection: Connection
) -> None:
    campaign = Campaign(connection)
    campaign.add_users(4)
    with pytest.raises(KeyboardInterrupt), somebody_running(database_url, campaign):
        raise KeyboardInterrupt
    assert (campaign.positions(), campaign.waiting(), campaign.runs()) == ({}, 1, 0)
    assert recalculate(database, campaign.id) == Run(1, True, changed=4, left=0, told=0)


REQUESTS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(("a", "B", "b", "ä")), st.integers(0, 5)),
    unique_by=lambda request: request[:2],
    min_size=1,
    max_size=6,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=REQUESTS, data=st.data())
def test_the_latest_points_win_whatever_the_order_and_however_often_they_come(
    database: Database, connection: Connection, requests: list[tuple[int, str, int]], data: st.DataObject
) -> None:
    campaign = Campaign(connection, points=9)
    run_id = uuid.uuid4().hex
    deliveries = [
        delivery(
            campaign.id, points=points, event_id=f"{run_id} {name}{minute}", timestamp=LAUNCH + minute * SHORT
        )
        for minute, name, points in requests
    ]
    order = data.draw(
        st.permutations([*deliveries, *data.draw(st.lists(st.sampled_from(deliveries), max_size=4))])
    )
    job = PositionJob(database)
    while order:
        size = data.draw(st.integers(1, 3))
        batch, order = order[:size], order[size:]
        assert job.process(batch, far_deadline()) == [Done()] * len(batch)
    naming = [one.event for one in deliveries if one.event.data.points_per_referral]
    latest = max(naming, key=lambda event: (event.timestamp, event.id.encode()), default=None)
    assert campaign.points_now() == (latest.data.points_per_referral if latest else 9)


def test_a_late_redelivery_changes_nothing(database: Database, connection: Connection) -> None:
    campaign = Campaign(connection)
    users = campaign.add_users(4)
    campaign.refer(users[3], users[0])
    job = PositionJob(database)
    old = delivery(campaign.id, points=1, timestamp=LAUNCH)
    new = delivery(campaign.id, points=3, timestamp=LAUNCH + SHORT)
    job.process([old, new], far_deadline())
    before = campaign.positions()
    assert before[users[3]] == 1
    assert job.process([old], far_deadline()) == [Done()]
    assert (campaign.points_now(), campaign.positions(), campaign.waiting()) == (3, before, 0)


def test_a_request_alone_ranks_only_a_campaign_that_was_never_ranked(
    database: Database, connection: Connection
) -> None:
    campaign = Campaign(connection)
    connection.execute("SET session_replication_role = replica")
    campaign.add_users(3)
    connection.execute("SET session_replication_role = origin")
    campaign.request("first")
    assert recalculate(database, campaign.id) == Run(1, True, changed=3, left=0, told=0)
    campaign.request("second")
    assert recalculate(database, campaign.id) == Run(1, False, changed=0, left=0, told=0)
    campaign.request("third")
    assert recalculate(database, campaign.id, thorough=True) == Run(1, True, changed=0, left=0, told=0)


def test_points_in_a_request_rank_again_and_ask_for_no_further_run(
    database: Database, connection: Connection
) -> None:
    campaign = Campaign(connection)
    users = campaign.add_users(5)
    campaign.refer(users[4], users[0])
    job = PositionJob(database)
    job.process([delivery(campaign.id)], far_deadline())
    assert campaign.positions()[users[4]] == 4
    job.process([delivery(campaign.id, points=4)], far_deadline())
    assert campaign.positions()[users[4]] == 1
    assert (campaign.runs(), campaign.waiting()) == (2, 0)


def test_a_campaign_that_is_not_there_is_waited_for_and_then_given_up(
    database: Database, connection: Connection
) -> None:
    campaign = Campaign(connection)
    campaign.add_users(2)
    missing = uuid.uuid4()
    job = PositionJob(database, missing_row_patience=timedelta(minutes=10))
    waits = [timedelta(), timedelta(minutes=1), timedelta(minutes=9)]
    outcomes = job.process(
        [*(delivery(missing, waited=wait) for wait in waits), delivery(campaign.id)], far_deadline()
    )
    laters = [outcome for outcome in outcomes if isinstance(outcome, Later)]
    assert outcomes == [*laters, Done()], "its neighbor is unaffected"
    delays = [outcome.after for outcome in laters]
    assert len(delays) == 3 and delays == sorted(delays) and delays[0] < delays[2]
    (outcome,) = job.process([delivery(missing, waited=timedelta(minutes=10))], far_deadline())
    assert isinstance(outcome, Rejected) and str(missing) in outcome.reason
    row = connection.execute(
        "SELECT count(*) FROM campaign_jobs.position_requests WHERE campaign_id = %s", (missing,)
    ).fetchone()
    assert row == (0,)


def test_without_time_for_a_run_the_event_is_handed_on_with_its_request_kept(
    database: Database, connection: Connection
) -> None:
    campaign = Campaign(connection)
    campaign.add_users(2)
    events = [delivery(campaign.id) for _ in range(3)]
    job = PositionJob(database)
    near = Deadline.of_invocation(lambda: int(RUN_RESERVE_SECONDS * 1000) - 1)
    # One comes again for all: their requests are there.
    assert [type(outcome) for outcome in job.process(events, near)] == [Later, Done, Done]
    assert (campaign.runs(), campaign.waiting()) == (0, 4)
    assert job.process(events[:1], far_deadline()) == [Done()]
    assert (campaign.runs(), campaign.waiting()) == (1, 0)


def test_a_run_that_takes_too_long_is_tried_again_by_one_event_for_all(
    database: Database, database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "RUN_RESERVE_SECONDS", 0.0)
    campaign, other = Campaign(connection), Campaign(connection)
    for each in (campaign, other):
        each.add_users(2)
    events = [delivery(id_) for id_ in (campaign.id, other.id) for _ in range(3)]
    with psycopg.connect(database_url) as blocking:
        blocking.execute("LOCK TABLE campaign_jobs.user_positions IN EXCLUSIVE MODE")
        outcomes = PositionJob(database).process(events, Deadline.of_invocation(lambda: 500))
    kinds = {
        id_: [type(outcome) for outcome in outcomes[at : at + 3]]
        for at, id_ in ((0, campaign.id), (3, other.id))
    }
    first, second = sorted(kinds)
    assert kinds == {first: [Retry, Done, Done], second: [Later, Done, Done]}
    assert (campaign.waiting(), other.waiting()) == (4, 4)
    assert PositionJob(database).process([events[0], events[3]], far_deadline()) == [Done(), Done()]
    assert (campaign.waiting(), other.waiting()) == (0, 0)


def test_a_campaign_that_cannot_be_ranked_is_tried_again_and_does_not_stop_another(
    database: Database, connection: Connection
) -> None:
    broken, well = Campaign(connection), Campaign(connection)
    broken.add_users(2)
    well.add_users(2)
    connection.execute(
        f"ALTER TABLE campaign_jobs.user_positions ADD CHECK (campaign_id <> '{broken.id}')"  # type: ignore[arg-type]
    )
    outcomes = PositionJob(database).process(
        [delivery(id_) for id_ in (broken.id, well.id, broken.id)], far_deadline()
    )
    assert isinstance(outcomes[0], Retry) and outcomes[1:] == [Done(), Done()]
    assert (broken.waiting(), well.waiting()) == (3, 0)


def test_requests_that_wait_with_nobody_running_are_asked_for_once_a_minute(
    database: Database, database_url: str, connection: Connection
) -> None:
    waiting, fresh, running, settled = (Campaign(connection) for _ in range(4))
    for campaign in (waiting, running):
        campaign.add_users(1)
    connection.execute("UPDATE campaign_jobs.position_requests SET created_at = now() - interval '1 hour'")
    fresh.add_users(1)
    with somebody_running(database_url, running):
        assert request_waiting(connection, older_than=timedelta(minutes=1)) == 1
    assert request_waiting(connection, older_than=timedelta(minutes=1)) == 0, "not again so soon"
    row = connection.execute("SELECT event_id, partition_key, event FROM campaign_jobs.outbox").fetchone()
    assert row is not None
    event = parse(row[2], recorded_at=datetime.now(UTC))
    assert isinstance(event, PositionEvent)
    assert (event.id, row[1], event.data.campaign_id) == (row[0], str(waiting.id), waiting.id)
    assert event.data.points_per_referral == 0
    connection.execute("UPDATE campaign_jobs.position_runs SET woken_at = woken_at - interval '1 minute'")
    assert request_waiting(connection, older_than=timedelta(minutes=1)) == 1
    assert settled.waiting() == 0
