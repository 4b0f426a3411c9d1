"""Moving with the real Asynq, Redis and Kafka: what becomes events, what stays, and what Asynq makes of it."""

import json
import threading
import time
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.cluster import RedisCluster

from campaign_jobs.errors import BrokersUnreachable, PublishError
from campaign_jobs.producer import EventProducer, JobProducer
from campaign_jobs.testing import RecordingProducer
from campaign_jobs_cli.asynq.connecting import connected
from campaign_jobs_cli.asynq.deciding import Kind
from campaign_jobs_cli.asynq.errors import NotPaused, RedisTrouble, WorkersRunning
from campaign_jobs_cli.asynq.mapping import INCLUDED, TaskMapping
from campaign_jobs_cli.asynq.moving import Mover
from campaign_jobs_cli.asynq.queues import AsynqRedis, State
from campaign_jobs_cli.asynq.survey import take_survey
from local.certificates import make_certificates
from local.processes import HOST
from tests.asynq.conftest import MakeMover
from tests.asynq.old_world import CAMPAIGN, OldWorld, ids_by_user, redis_server, user_id, verification
from tests.crash.worker import Topic

HOUR = 3_600
MINUTE = 60


def move(mover: Mover) -> Mover:
    mover.prepare(wait_seconds=0)
    mover.run()
    return mover


def decoded(topic: Topic) -> list[dict[str, Any]]:
    return [json.loads(value) for value in topic.read()]


def wait_until(condition: Any) -> None:
    """The time-out is pytest's."""
    while not condition():
        time.sleep(0.02)


class Watched(RecordingProducer):
    """Calls back when events are handed over, before they count as acknowledged."""

    def __init__(self, on_events: Any) -> None:
        super().__init__()
        self._on_events = on_events

    def submit(self, messages: Any) -> "Future[None]":
        future = super().submit(messages)
        if messages:
            self._on_events()
        return future


def test_all_that_can_be_moved_is_moved_once_and_asynq_sees_a_consistent_rest(
    old: OldWorld, mover: MakeMover, events: Topic
) -> None:
    old.enqueue(verification(1), verification(2))
    old.work(f"fail={HOUR}", "high", tasks=2)
    old.time_passes("high", 2 * HOUR)  # Both retry now; what follows is later.
    old.enqueue(verification(3, id="given-up"))
    with old.working("archive", "high") as worker:
        # Those due again are given up, too, so bring them back as they were.
        worker.wait_until_begun(1)
        worker.end()
    for task_id, state in old.seen().items():
        if state == "archived" and task_id != "given-up":
            old.run_now("high", task_id)
    old.enqueue(
        verification(4),
        verification(5, unique_seconds=HOUR),
        verification(6, retention_seconds=HOUR, unique_seconds=HOUR),
        verification(7, id="due", in_seconds=HOUR / 2),
    )
    old.time_passes("high", HOUR)
    old.enqueue(
        verification(8, id="later", in_seconds=HOUR),
        verification(9, id="grouped", group="a group"),
        verification(10, id="unknown", type="email:tracking"),
        {**verification(11, id="no-json"), "payload": "user=11"},
        {**verification(12, id="no-payload"), "payload": None},
        {**verification(13, id="other-mail"), "type": "email:welcome"},
        {"type": "webhook:delivery", "payload": "{}", "queue": "medium", "id": "webhook"},
        {"type": "fraud:detection", "payload": "{}", "queue": "medium"},
        {"type": "analytics:aggregation", "payload": None, "queue": "default"},
        {"type": "reward:delivery", "payload": json.dumps({"user_reward_id": user_id(14)}), "queue": "high"},
        {
            "type": "position:recalculation",
            "payload": json.dumps({"campaign_id": CAMPAIGN, "user_ids": [user_id(1)]}),
            "queue": "medium",
        },
    )
    before = {name: old.info(name)["Processed"] for name in ("high", "medium", "default")}

    done = move(mover("high", "medium", "default"))

    found = decoded(events)
    assert len({event["id"] for event in found}) == len(found)
    assert sorted(event["data"].get("user_id", event["type"]) for event in found) == sorted(
        [*(user_id(user) for user in (1, 2, 4, 5, 6, 7)), "job.reward.deliver", "job.position.recalculate"]
    )
    assert done.totals.moved.total() == len(found)
    assert done.totals.dropped == {("medium", "fraud:detection"): 1, ("default", "analytics:aggregation"): 1}

    completed = next(task for task in old.inspect()["tasks"] if task["State"] == "completed")
    assert old.seen() == {
        "given-up": "archived",
        "later": "scheduled",
        "grouped": "aggregating",
        **dict.fromkeys(("unknown", "no-json", "no-payload", "other-mail", "webhook"), "pending"),
        completed["ID"]: "completed",
    }
    assert not [task for task in old.inspect()["tasks"] if task["Orphaned"]]
    after = {name: old.info(name) for name in before}
    assert {name: info["Processed"] - before[name] for name, info in after.items()} == {
        "high": 7,
        "medium": 2,
        "default": 1,
    }
    assert all(info["Paused"] and not info["Active"] for info in after.values())
    # Their locks are free: as unique as before, they can be enqueued again.
    old.enqueue(verification(5, unique_seconds=HOUR), verification(6, unique_seconds=HOUR))
    move(mover("high"))
    assert {user for user, ids in ids_by_user(events.read()).items() if len(ids) == 1} == {
        user_id(5),
        user_id(6),
    }


def test_more_than_a_batch_goes_with_what_stays_in_between(
    old: OldWorld, mover: MakeMover, events: Topic
) -> None:
    staying = [old.enqueue(verification(900, type="data:export"), verification(n))[0] for n in range(25)]
    old.enqueue(
        *(
            verification(100 + n, type="data:export" if n % 3 == 0 else "email:verification")
            for n in range(40)
        )
    )
    move(mover(batch=7))
    assert len(ids_by_user(events.read())) == 25 + 26
    assert old.info("high")["Pending"] == 25 + 14
    assert set(staying) <= old.seen().keys()


def test_it_follows_what_old_producers_write_and_what_becomes_due_and_no_sooner(
    old: OldWorld, mover: MakeMover, events: Topic
) -> None:
    following = mover()
    following.prepare(wait_seconds=0)
    thread = threading.Thread(target=following.follow)
    thread.start()
    try:
        due = datetime.now(UTC).timestamp() + 2
        old.enqueue(verification(1), verification(2, in_seconds=2))
        old.enqueue(verification(3))
        wait_until(lambda: following.totals.moved.total() == 3)
    finally:
        following.stop()
        thread.join()
    found = {event["data"]["user_id"]: event for event in decoded(events)}
    assert found.keys() == {user_id(1), user_id(2), user_id(3)}
    # Asynq keeps whole seconds. The event's time is the one that the task was due at.
    assert int(due) <= datetime.fromisoformat(found[user_id(2)]["timestamp"]).timestamp() <= int(due) + 1
    assert old.seen() == {}


def test_it_takes_on_a_queue_that_is_new_once_no_worker_is_at_it(
    old: OldWorld, mover: MakeMover, events: Topic
) -> None:
    new: list[str] = []
    following = mover(on_new_queue=new.append)
    following.prepare(wait_seconds=0)
    with old.working("hang", "low") as worker:
        old.enqueue(verification(1, queue="low"))
        worker.wait_until_begun(1)
        old.enqueue(verification(2, queue="low", in_seconds=1))
        thread = threading.Thread(target=following.follow)

        def wait_for_moved(tasks: int) -> None:
            wait_until(lambda: following.totals.moved.total() == tasks or not thread.is_alive())

        thread.start()
        try:
            for user in (3, 4):
                # Each within a pass of its own, which would have found a worker at work.
                old.enqueue(verification(user))
                wait_for_moved(user - 2)
            assert new == ["low"] and old.info("low")["Paused"] and thread.is_alive()
            assert "low" not in following.queues and worker.begun == worker.begun[:1]
            worker.kill()
            old.client.delete("asynq:servers")  # It reports no more.
            old.time_passes("low", 2 * MINUTE)
            wait_for_moved(4)
        finally:
            following.stop()
            thread.join()
    assert new == ["low"] and old.seen() == {}
    assert ids_by_user(events.read()).keys() == {user_id(user) for user in range(1, 5)}


def test_a_scheduled_task_stays_until_it_is_due(old: OldWorld, mover: MakeMover, events: Topic) -> None:
    old.enqueue(verification(1, id="later", in_seconds=HOUR))
    move(mover())
    assert events.read() == [] and old.seen() == {"later": "scheduled"}
    old.time_passes("high", HOUR)
    move(mover())
    assert ids_by_user(events.read()).keys() == {user_id(1)} and old.seen() == {}


@pytest.mark.parametrize("put_off", [1e12, float("inf")])
@pytest.mark.parametrize("state", ["scheduled", "retry"])
def test_a_task_that_is_put_off_for_longer_than_a_calendar_waits_and_hinders_no_other(
    old: OldWorld, mover: MakeMover, events: Topic, client: Any, put_off: float, state: str
) -> None:
    old.enqueue(verification(1, id="never", in_seconds=HOUR), verification(2))
    client.zrem("asynq:{high}:scheduled", "never")
    client.zadd(f"asynq:{{high}}:{state}", {"never": put_off})
    client.hset("asynq:{high}:t:never", "state", state)
    [waiting] = take_survey(AsynqRedis(client), ["high"], TaskMapping.load(INCLUDED)).of(Kind.WAITS)
    assert waiting.last is not None and waiting.last.year == 9999
    move(mover())
    assert ids_by_user(events.read()).keys() == {user_id(2)}
    assert client.zscore(f"asynq:{{high}}:{state}", "never") == put_off


@pytest.mark.parametrize("since", ["", "yesterday", "-1", "9" * 30])
def test_a_task_that_does_not_say_since_when_it_is_pending_is_moved(
    old: OldWorld, mover: MakeMover, events: Topic, client: Any, since: str
) -> None:
    [task_id] = old.enqueue(verification(1))
    client.hset(f"asynq:{{high}}:t:{task_id}", "pending_since", since)
    move(mover())
    assert ids_by_user(events.read()).keys() == {user_id(1)}


def test_tasks_are_read_by_their_time(client: Any) -> None:
    scores = {"a": 10, "b": 20, "c": 20.5, "d": 30}
    client.zadd("asynq:{high}:retry", scores)

    def read(skipped: int, most: int, **borders: float) -> str:
        moments = {name: datetime.fromtimestamp(seconds, UTC) for name, seconds in borders.items()}
        found = AsynqRedis(client).by_time("high", State.RETRY, skipped, most, **moments)
        assert [task.since.timestamp() for task in found if task.since] == [scores[task.id] for task in found]
        return "".join(task.id for task in found)

    assert [read(0, 9), read(0, 2), read(2, 9), read(4, 9)] == ["abcd", "ab", "cd", ""]
    assert [read(0, 9, until=20), read(0, 1, until=20), read(1, 9, until=20)] == ["ab", "a", "b"]
    assert [read(2, 9, until=20), read(5, 9, until=20), read(0, 9, until=5)] == ["", "", ""]
    assert [read(0, 9, after=20), read(0, 1, after=20), read(1, 9, after=20)] == ["cd", "c", "d"]
    assert [read(2, 9, after=20), read(0, 9, after=30), read(0, 9, after=5)] == ["", "", "abcd"]


def test_workers_that_go_on_running_take_nothing_of_a_paused_queue(
    old: OldWorld, mover: MakeMover, events: Topic
) -> None:
    with old.working("done", "high") as worker:
        old.enqueue(verification(1))
        worker.wait_until_begun(1)
        wait_until(lambda: old.info("high")["Active"] == 0)
        preparing = mover()
        preparing.prepare(wait_seconds=MINUTE)
        old.enqueue(*(verification(user) for user in range(2, 30)))
        preparing.run()
        assert len(worker.end()) == 1
    assert len(ids_by_user(events.read())) == 28


def test_it_does_not_begin_while_a_worker_is_at_work(old: OldWorld, mover: MakeMover, events: Topic) -> None:
    old.enqueue(verification(1, id="slow"), verification(2))
    with old.working("hang", "high") as worker:
        worker.wait_until_begun(2)
        old.enqueue(verification(3))
        with pytest.raises(WorkersRunning, match="2 tasks"):
            mover().prepare(wait_seconds=0)
        assert old.info("high")["Paused"] and events.read() == []
        worker.kill()
    # Asynq waits for half a minute more than the lease, in case the clocks differ.
    old.client.delete("asynq:servers")  # They report no more.
    old.time_passes("high", 45)
    with pytest.raises(WorkersRunning):
        mover().prepare(wait_seconds=0)
    old.time_passes("high", 20)
    move(mover())
    assert ids_by_user(events.read()).keys() == {user_id(1), user_id(2), user_id(3)}
    assert old.seen() == {}


def test_what_dead_workers_left_is_their_servers_affair_where_there_is_one(
    old: OldWorld, mover: MakeMover, events: Topic
) -> None:
    old.enqueue(verification(1))
    with old.working("hang", "high") as worker:
        worker.wait_until_begun(1)
        worker.kill()
    old.time_passes("high", 2 * MINUTE)
    preparing = mover()
    old.client.zadd("asynq:servers", {b"asynq:servers:{other}": datetime.now(UTC).timestamp() + 99})
    # What a server writes of itself, with the one field that matters here: queues, with high in it.
    old.client.set("asynq:servers:{other}", b"\x2a\x08\x0a\x04high\x10\x01")
    with pytest.raises(WorkersRunning, match="takes it back within a minute"):
        preparing.prepare(wait_seconds=0)
    with old.working("done", "high"):
        # It recovers at its start.
        preparing.prepare(wait_seconds=MINUTE)
        old.time_passes("high", HOUR)
        preparing.run()
    assert ids_by_user(events.read()).keys() == {user_id(1)}


def test_a_worker_without_a_lease_is_waited_for(old: OldWorld, mover: MakeMover, client: Any) -> None:
    """As those of Asynq were before it had leases: nobody can tell how long it will take."""
    [task_id] = old.enqueue(verification(1))
    with old.working("hang", "high") as worker:
        worker.wait_until_begun(1)
        worker.kill()
    client.delete("asynq:servers", "asynq:{high}:lease")
    with pytest.raises(WorkersRunning, match="no lease"):
        mover().prepare(wait_seconds=0)
    assert old.seen() == {task_id: "active"}


def test_the_last_attempt_of_a_dead_worker_is_not_moved(
    old: OldWorld, mover: MakeMover, events: Topic
) -> None:
    old.enqueue(verification(1, id="last", max_retry=0))
    with old.working("hang", "high") as worker:
        worker.wait_until_begun(1)
        worker.kill()
    old.client.delete("asynq:servers")
    old.time_passes("high", 2 * MINUTE)
    move(mover())
    assert events.read() == [] and old.seen() == {"last": "active"}
    old.unpause("high")
    with old.working("done", "high") as worker:
        wait_until(lambda: old.seen() == {"last": "archived"})
        assert worker.end() == []


def test_it_stops_as_soon_as_the_queue_is_resumed(old: OldWorld, mover: MakeMover) -> None:
    old.enqueue(*(verification(user) for user in range(5)))
    resuming = Watched(lambda: old.unpause("high"))
    moving = mover(producer=resuming, batch=2)
    moving.prepare(wait_seconds=0)
    with pytest.raises(NotPaused):
        moving.run()
    # The batch in hand was ended, and none begun after it.
    assert len(resuming.messages) == moving.totals.moved.total() == 2
    assert sorted(old.seen().values()) == ["pending"] * 3
    with pytest.raises(NotPaused):
        mover().run()
    # Nothing has to be there to be taken for it to be noticed.
    with pytest.raises(NotPaused):
        mover("empty").run()


def test_it_stops_when_a_worker_got_a_task_after_all(old: OldWorld, mover: MakeMover) -> None:
    old.enqueue(verification(1))
    moving = mover()
    with old.working("hang", "high") as worker:
        worker.wait_until_begun(1)
        old.client.set("asynq:{high}:paused", 1)
        with pytest.raises(WorkersRunning):
            moving.run()


def test_what_kafka_does_not_acknowledge_is_pending_again_under_the_same_event_id(
    old: OldWorld, mover: MakeMover, events: Topic, producer: EventProducer
) -> None:
    class Failing(RecordingProducer):
        def submit(self, messages: Any) -> "Future[None]":
            if not messages:
                return super().submit(messages)
            # All of it arrives, and Kafka only says so of the first.
            producer.publish(messages)
            future: Future[None] = Future()
            future.set_exception(BrokersUnreachable("no answer", range(1, len(messages))))
            return future

    old.enqueue(*(verification(user) for user in range(3)))
    with pytest.raises(PublishError):
        move(mover(producer=Failing()))
    seen = old.inspect()
    assert [task["State"] for task in seen["tasks"]] == ["pending", "pending"]
    assert old.info("high")["Latency"] > 0 and old.info("high")["Processed"] == 1
    move(mover())
    values = events.read()
    assert len(values) == 5 and len(set(values)) == 3
    assert [len(ids) for ids in ids_by_user(values).values()] == [1, 1, 1]
    assert old.seen() == {}


def test_without_kafka_nothing_is_changed(old: OldWorld, mover: MakeMover) -> None:
    old.enqueue(verification(1))
    before = old.client.keys()
    with (
        JobProducer(brokers="127.0.0.1:9", connect_timeout_seconds=1) as away,
        pytest.raises(BrokersUnreachable),
    ):
        mover(producer=away).prepare(wait_seconds=0)
    assert old.client.keys() == before


def test_a_lock_that_somebody_else_has_by_now_is_not_freed(
    old: OldWorld, mover: MakeMover, client: Any
) -> None:
    [mine] = old.enqueue(verification(1, unique_seconds=1))
    [lock] = client.keys("asynq:{high}:unique:*")
    wait_until(lambda: not client.exists(lock))
    [theirs] = old.enqueue(verification(1, unique_seconds=HOUR, in_seconds=HOUR))
    move(mover())
    assert client.get(lock).decode() == theirs != mine


def test_a_message_that_names_another_queue_s_keys_frees_none_of_them(
    old: OldWorld, mover: MakeMover, client: Any, events: Topic
) -> None:
    [task_id] = old.enqueue(verification(1))
    client.set("precious", task_id)
    message = client.hget(f"asynq:{{high}}:t:{task_id}", "msg")
    client.hset(f"asynq:{{high}}:t:{task_id}", "msg", message + b"\x52\x08precious")
    move(mover())
    assert len(events.read()) == 1 and client.exists("precious")


@pytest.mark.parametrize("left", ["the list's entry", "a broken message", "another task's message"])
def test_what_cannot_be_read_stays(
    old: OldWorld, mover: MakeMover, client: Any, events: Topic, left: str
) -> None:
    [broken, other] = old.enqueue(verification(1), verification(2))
    key = f"asynq:{{high}}:t:{broken}"
    if left == "the list's entry":
        client.delete(key)
    elif left == "a broken message":
        client.hset(key, "msg", b"\x0a\xff")
    else:
        client.hset(key, "msg", client.hget(f"asynq:{{high}}:t:{other}", "msg"))
    move(mover())
    assert ids_by_user(events.read()).keys() == {user_id(2)}
    assert client.lrange("asynq:{high}:pending", 0, -1) == [broken.encode()]
    assert client.llen("asynq:{high}:active") == 0


def test_in_a_cluster(
    tool: Path, tmp_path: Path, producer: EventProducer, mapping: TaskMapping, events: Topic
) -> None:
    with redis_server(tmp_path, cluster=True) as port, Redis(host=HOST, port=port) as node:
        with pytest.raises(RedisTrouble), connected(f"redis://{HOST}:{port}"):
            pytest.fail("nobody has given it a slot")
        node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        wait_until(lambda: node.info("cluster") and node.cluster("INFO")["cluster_state"] == "ok")
        old = OldWorld(tool, f"cluster:{HOST}:{port}", node)
        old.enqueue(
            verification(1, unique_seconds=HOUR), verification(2, retention_seconds=HOUR, unique_seconds=HOUR)
        )
        old.enqueue(verification(3, queue="low"))
        with connected(f"redis://{HOST}:{port}") as client:
            assert isinstance(client, RedisCluster)
            move(Mover(client, producer, mapping, ["high", "low"]))
        assert list(old.seen().values()) == ["completed"]
    assert len(ids_by_user(events.read())) == 3


def test_over_tls(tool: Path, tmp_path: Path, producer: EventProducer, mapping: TaskMapping) -> None:
    certificates = make_certificates(tmp_path, [HOST])
    with redis_server(tmp_path, certificates=certificates) as port:
        url = f"rediss://{HOST}:{port}?ssl_ca_certs={certificates.ca_file}"
        with connected(url) as client:
            client.sadd("asynq:queues", "high")
            assert move(Mover(client, producer, mapping, ["high"])).totals.settled == 0
            assert client.exists("asynq:{high}:paused")
