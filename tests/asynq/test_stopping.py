"""A move stopped by SIGKILL between every two steps, and then run again: nothing is lost, doubled or left behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from local.processes import HOST, die_with_parent, in_lasting_thread
from tests.asynq.old_world import OldWorld, contents, ids_by_user, put_back, user_id, verification
from tests.asynq.test_moving import HOUR, MINUTE
from tests.crash.worker import Topic

BATCH = 3


@pytest.fixture
def moves(redis_port: int, events: Topic, repository: Any) -> Iterator[Any]:
    """Runs a move in a process of its own; how it ended, and the boundaries that it reached."""
    runner = in_lasting_thread(
        lambda: subprocess.Popen(
            [sys.executable, "-m", "tests.asynq.stopping"],
            cwd=repository,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - it only calls prctl
        )
    )
    assert runner.stdin is not None and runner.stdout is not None

    def move(stop_at: int | None) -> dict[str, Any]:
        request = {
            "redis": f"redis://{HOST}:{redis_port}",
            "brokers": events.bootstrap_servers,
            "topic": events.name,
            "queues": ["high"],
            "batch": BATCH,
            "stop_at": stop_at,
        }
        runner.stdin.write(json.dumps(request) + "\n")
        runner.stdin.flush()
        answer: dict[str, Any] = json.loads(runner.stdout.readline())
        return answer

    with runner:
        yield move
        runner.stdin.close()


def seed(old: OldWorld) -> None:
    """At least one task of each kind that is moved, and some that are not."""
    old.enqueue(verification(1, unique_seconds=HOUR))
    old.work(f"fail={HOUR / 2}", "high", tasks=1)
    old.enqueue(verification(2, in_seconds=HOUR / 2))
    old.time_passes("high", HOUR)
    old.enqueue(
        verification(3),
        verification(4, unique_seconds=HOUR),
        verification(5, id="kept", retention_seconds=HOUR),
        verification(6, max_retry=0),
        verification(90, id="unknown", type="data:export"),
        verification(91, id="later", in_seconds=HOUR),
        verification(92, id="grouped", group="a group"),
        {"type": "fraud:detection", "payload": "{}", "queue": "high"},
    )


def end_of(old: OldWorld) -> tuple[object, ...]:
    """All that is left, and must be the same however often the move was stopped."""
    info = old.info("high")
    return (
        old.seen(),
        sorted(old.client.keys()),
        sorted(old.client.hkeys("asynq:{high}:t:kept")),
        [info[name] for name in ("Paused", "Active", "Processed", "Failed", "ProcessedTotal", "Size")],
    )


def test_stopped_between_every_two_steps(old: OldWorld, moves: Any, events: Topic) -> None:
    seed(old)
    seeded = contents(old.client)
    # Once more than is looked at, because the first one puts the scripts into Redis.
    assert moves(stop_at=None)["exit"] == 0 and events.read()
    put_back(old.client, seeded)
    undisturbed = moves(stop_at=None)
    assert undisturbed["exit"] == 0
    users = {user_id(user) for user in range(1, 7)}
    values = events.read()
    assert len(values) == len(users) and ids_by_user(values).keys() == users
    expected = end_of(old)
    assert expected[0] == {
        "kept": "completed",
        "unknown": "pending",
        "later": "scheduled",
        "grouped": "aggregating",
    }

    boundaries, repeated = undisturbed["boundaries"], 0
    # Each kind of step is there: pausing, reading, taking and finishing (scripts), and publishing.
    assert {"SET", "LRANGE", "pipeline", "EVALSHA", "publication"} <= set(boundaries)
    for number, boundary in enumerate(boundaries):
        put_back(old.client, seeded)
        assert moves(stop_at=number)["exit"] == -signal.SIGKILL, boundary
        stopped = old.inspect()  # The Inspector makes sense of what is there now.
        assert all(queue["Size"] >= len(expected[0]) for queue in stopped["queues"]), boundary
        old.time_passes("high", MINUTE)
        assert moves(stop_at=None)["exit"] == 0, boundary

        values = events.read()
        ids = ids_by_user(values)
        assert ids.keys() == users, f"lost, stopped after {boundary} ({number})"
        assert all(len(each) == 1 for each in ids.values()), (
            f"another id, stopped after {boundary} ({number})"
        )
        # What is published twice is the same to the last byte, and no more than was in hand.
        assert len(set(values)) == len(users) and len(values) - len(users) <= BATCH, boundary
        assert end_of(old) == expected, f"stopped after {boundary} ({number})"
        repeated += len(values) > len(users)
    # Stopped between publishing and finishing, at least; otherwise nothing was shown.
    assert repeated >= 2
    sys.stdout.write(f"{len(boundaries)} boundaries, {repeated} with repeated events\n")
