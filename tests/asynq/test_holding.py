"""Leases, fences and tokens, against what Asynq's own servers and other moves do meanwhile."""

import threading
import time
from concurrent.futures import Future
from typing import Any

from campaign_jobs.testing import RecordingProducer
from campaign_jobs_cli.asynq.holding import Batch, Holder
from campaign_jobs_cli.asynq.queues import AsynqRedis, State, Task
from tests.asynq.conftest import MakeMover
from tests.asynq.old_world import OldWorld, ids_by_user, user_id, verification
from tests.asynq.test_moving import HOUR, MINUTE, move, wait_until

LONG_AGO = 2 * MINUTE


def look(client: Any) -> list[Task]:
    redis = AsynqRedis(client)
    return [*redis.pending("high", 0, 100), *(task for task, _ in redis.active("high"))]


def take(client: Any) -> Batch:
    """As a move does; its process may then be thought of as gone."""
    client.set("asynq:{high}:paused", 1)
    return Holder(client).take("high", look(client), abandoned_by_workers=False)


def event_ids(batch: Batch) -> set[str]:
    return {taken.event_id for taken in batch.held.values()}


def test_what_another_has_taken_meanwhile_is_left_to_it(old: OldWorld, client: Any) -> None:
    old.enqueue(verification(1, id="a"), verification(2, id="b", retention_seconds=HOUR))
    first = take(client)
    old.time_passes("high", MINUTE)
    second = take(client)
    assert event_ids(first) == event_ids(second) and len(second.held) == 2

    holder = Holder(client)
    assert holder.finish(first, ["a", "b"]) == []
    holder.hand_back(first, ["a", "b"], published=False)
    holder.extend(first)
    assert first.held == {}
    assert old.seen() == {"a": "active", "b": "active"}
    assert not [task for task in old.inspect()["tasks"] if task["Orphaned"]]

    assert sorted(holder.finish(second, ["a", "b"])) == ["a", "b"]
    assert old.seen() == {"b": "completed"}


def test_a_held_task_is_nobody_elses(old: OldWorld, client: Any) -> None:
    old.enqueue(verification(1, id="a"))
    held = take(client)
    assert take(client).held == {}
    with old.working("done", "high") as worker:
        # It has looked for abandoned tasks at its start, before it reports itself.
        wait_until(lambda: client.zcard("asynq:servers"))
        assert old.seen() == {"a": "active"}
        assert worker.end() == []
    assert Holder(client).finish(held, ["a"]) == ["a"]


def test_a_worker_s_task_is_not_finished_by_who_held_it_before(old: OldWorld, client: Any) -> None:
    old.enqueue(verification(1, id="a"))
    held = take(client)
    old.time_passes("high", LONG_AGO)
    old.unpause("high")
    with old.working("hang", "high") as worker:
        # It takes the task back, and runs it.
        wait_until(lambda: old.seen() == {"a": "retry"})
        old.time_passes("high", HOUR)
        worker.wait_until_begun(1)
        assert Holder(client).finish(held, ["a"]) == []
        assert old.seen() == {"a": "active"}
        worker.kill()


def test_a_task_that_is_not_as_it_was_looked_at_is_not_taken(old: OldWorld, client: Any) -> None:
    old.enqueue(verification(1, id="a"), verification(2, id="b"), verification(3, id="c", in_seconds=HOUR))
    redis = AsynqRedis(client)
    looked_at = [*look(client), *redis.by_time("high", State.SCHEDULED, 0, 10)]
    # Gone, and another one of that id; and one that an operator has deleted.
    client.delete("asynq:{high}:t:a", "asynq:{high}:t:b")
    client.delete("asynq:{high}:pending")
    old.enqueue(verification(4, id="a"))
    client.set("asynq:{high}:paused", 1)
    assert Holder(client).take("high", looked_at, abandoned_by_workers=True).held == {}
    assert old.seen() == {"a": "pending", "c": "scheduled"}


def test_an_event_s_id_is_the_enqueuing_s_and_not_the_task_s(old: OldWorld, client: Any) -> None:
    old.enqueue(verification(1, id="a"))
    first = take(client)
    Holder(client).hand_back(first, ["a"], published=True)
    again = take(client)
    assert event_ids(again) == event_ids(first)
    assert [taken.asked_at for taken in again.held.values()] == [
        taken.asked_at for taken in first.held.values()
    ]
    Holder(client).finish(again, ["a"])
    old.enqueue(verification(1, id="a", retention_seconds=HOUR))
    second = take(client)
    assert event_ids(second).isdisjoint(event_ids(first))
    Holder(client).finish(second, ["a"])
    # A completed task that an operator runs once more.
    old.run_now("high", "a")
    assert len(event_ids(take(client)) - event_ids(second)) == 1


def test_a_token_stays_as_long_as_an_event_may_have_been_published(old: OldWorld, client: Any) -> None:
    def token() -> bytes | None:
        found: bytes | None = client.hget("asynq:{high}:t:a", "campaign_jobs_token")
        return found

    old.enqueue(verification(1, id="a"))
    holder, batch = Holder(client), take(client)
    holder.hand_back(batch, ["a"], published=False)
    assert token() is None and old.seen() == {"a": "pending"} and old.info("high")["Latency"] > 0
    batch = take(client)
    holder.hand_back(batch, ["a"], published=True)
    assert token() is not None
    # It was held before, so what this one knows of says nothing of what was published then.
    batch = take(client)
    holder.hand_back(batch, ["a"], published=False)
    assert token() is not None


def test_leases_are_extended_while_kafka_takes_its_time(old: OldWorld, client: Any, mover: MakeMover) -> None:
    acknowledged: Future[None] = Future()

    class Slow(RecordingProducer):
        def submit(self, messages: Any) -> "Future[None]":
            recorded = super().submit(messages)
            return acknowledged if messages else recorded

    def lease() -> float:
        return client.zscore("asynq:{high}:lease", "a") or 0

    old.enqueue(verification(1, id="a"))
    slow = Slow()
    moving = mover(producer=slow, lease_seconds=2)
    moving.prepare(wait_seconds=0)
    thread = threading.Thread(target=moving.run)
    thread.start()
    try:
        wait_until(lease)
        first_end = lease()
        # Longer than it would have held without an extension.
        wait_until(lambda: time.time() > first_end + 0.5)
        assert lease() > first_end
        assert take(client).held == {}
    finally:
        acknowledged.set_result(None)
        thread.join()
    assert moving.totals.moved.total() == 1 and old.seen() == {}


def test_what_asynq_s_server_takes_back_is_moved_under_the_same_id(
    old: OldWorld, client: Any, mover: MakeMover
) -> None:
    """A move is stopped after publishing; the queue has a server, and one of the tasks no retry left."""
    old.enqueue(verification(1, id="a"), verification(2, id="last", max_retry=0))
    held = take(client)
    old.time_passes("high", LONG_AGO)
    with old.working(f"fail={HOUR}", "high") as worker:
        wait_until(lambda: old.seen() == {"a": "retry", "last": "archived"})
        recording = RecordingProducer()
        # It is not due, and Asynq has given up the other; but neither is Asynq's any more.
        move(mover(producer=recording))
        assert worker.end() == []
    assert {event.id for event in recording.events} == event_ids(held)
    assert old.seen() == {}


def test_a_task_that_a_worker_has_given_up_stays_though_a_move_once_held_it(
    old: OldWorld, client: Any, mover: MakeMover
) -> None:
    old.enqueue(verification(1, id="a"))
    Holder(client).hand_back(take(client), ["a"], published=True)
    old.unpause("high")
    old.work("archive", "high", tasks=1)
    recording = RecordingProducer()
    move(mover(producer=recording))
    assert recording.messages == [] and old.seen() == {"a": "archived"}


def test_it_waits_for_what_a_stopped_move_has_in_hand(old: OldWorld, client: Any, mover: MakeMover) -> None:
    old.enqueue(verification(1, id="a"), verification(2))
    client.set("asynq:{high}:paused", 1)
    [task] = [task for task in look(client) if task.id == "a"]
    stopped = Holder(client, lease_seconds=2).take("high", [task], abandoned_by_workers=False)
    recording = RecordingProducer()
    move(mover(producer=recording))
    assert len(recording.messages) == 2 and old.seen() == {}
    assert event_ids(stopped) < {event.id for event in recording.events}


def test_several_movers_move_each_task_and_none_under_two_ids(old: OldWorld, mover: MakeMover) -> None:
    old.enqueue(*(verification(user) for user in range(60)))
    recording = RecordingProducer()
    movers = [mover(producer=recording, batch=3) for _ in range(3)]
    for each in movers:
        each.prepare(wait_seconds=0)
    threads = [threading.Thread(target=each.run) for each in movers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = ids_by_user([value for _, value in recording.messages])
    assert found.keys() == {user_id(user) for user in range(60)}
    assert all(len(ids) == 1 for ids in found.values())
    assert sum(each.totals.moved.total() for each in movers) == 60 and old.seen() == {}
