"""`campaign-jobs asynq`, as an operator runs it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from campaign_jobs_cli.app import run
from campaign_jobs_cli.asynq.holding import Holder
from local.processes import HOST, pick_port
from tests.asynq.old_world import OldWorld, ids_by_user, user_id, verification
from tests.asynq.test_holding import look
from tests.asynq.test_moving import HOUR, wait_until
from tests.crash.worker import Topic

DONE, FAILED, WRONG_USAGE, DECLINED = 0, 1, 2, 3


class CommandLine:
    def __init__(self, directory: Path, redis_port: int, capsys: pytest.CaptureFixture[str]) -> None:
        self.common = ["--directory", str(directory), "--redis", f"redis://{HOST}:{redis_port}"]
        self._capsys = capsys
        self.result, self.notes = "", ""

    def __call__(self, *words: str) -> int:
        code = run(["asynq", *words, *self.common])
        self.result, self.notes = self._capsys.readouterr()
        return code

    def json(self, *words: str) -> Any:
        assert self(*words, "--output", "json") == DONE, self.notes
        return json.loads(self.result)


@pytest.fixture
def asynq(
    tmp_path: Path, redis_port: int, old: OldWorld, events: Topic, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    """The command, with a local environment whose Kafka is the tests'."""
    endpoints = {
        "kafka": events.bootstrap_servers,
        "topic": events.name,
        "region": "eu-central-1",
        "consumer_group": "job-workers",
        "default_sender": "hello@example.com",
        "database_url": "postgresql://nowhere",
    }
    (tmp_path / "endpoints.json").write_text(json.dumps(endpoints))
    return CommandLine(tmp_path, redis_port, capsys)


def test_status(old: OldWorld, asynq: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    old.enqueue(
        verification(1),
        verification(2),
        verification(3, id="later", in_seconds=HOUR),
        verification(4, id="strange", type="data:export"),
        {"type": "fraud:detection", "payload": None, "queue": "medium"},
    )
    with old.working("hang", "low") as worker:
        old.enqueue(verification(5, queue="low"))
        worker.wait_until_begun(1)
        wait_until(lambda: old.client.zcard("asynq:servers"))
        found = asynq.json("status")
        assert [(server["pid"], server["queues"]) for server in found["servers"]] == [
            (worker.process.pid, ["low"])
        ]
    queues = {queue["queue"]: queue for queue in found["queues"]}
    assert queues.keys() == {"high", "medium", "low"}
    high = queues["high"]
    assert (high["pending"], high["scheduled"], high["paused"], high["servers"]) == (3, 1, False, 0)
    assert high["oldest_pending"] is not None and queues["low"]["active"] == 1
    assert {
        kind: found[kind] for kind in ("moves", "drops", "waits", "stays", "runs", "held", "interrupted")
    } == {
        "moves": 2,
        "drops": 1,
        "waits": 1,
        "stays": 1,
        "runs": 1,
        "held": 0,
        "interrupted": 0,
    }
    by_fate = {task["fate"]: task for task in found["tasks"]}
    assert (by_fate["moves"]["count"], by_fate["moves"]["becomes"]) == (2, "job.email.verification")
    assert by_fate["waits"]["first"] == by_fate["waits"]["last"] is not None
    assert by_fate["stays"]["example"] == "strange" and "does not know" in by_fate["stays"]["why"]
    assert (by_fate["drops"]["becomes"], by_fate["drops"]["state"]) == ("nothing", "pending")

    monkeypatch.setenv("COLUMNS", "200")
    assert asynq("status", "--queue", "high") == DONE
    assert "email:verification" in asynq.result and "fraud" not in asynq.result
    assert "2 can be moved" in asynq.notes


def test_move_asks_first_and_tells_what_it_did(
    old: OldWorld, asynq: CommandLine, events: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    old.enqueue(verification(1), verification(2, id="strange", type="data:export"))
    before = sorted(old.client.keys())
    monkeypatch.setenv("COLUMNS", "200")
    assert asynq("move") == DECLINED
    assert "email:verification" in asynq.notes and "stay paused" in asynq.notes and asynq.result == ""
    assert sorted(old.client.keys()) == before and events.read() == []

    done = asynq.json("move", "--yes")
    assert done["moved"] == [
        {"queue": "high", "type": "email:verification", "event": "job.email.verification", "count": 1}
    ]
    assert [task["example"] for task in done["left"]] == ["strange"]
    assert ids_by_user(events.read()).keys() == {user_id(1)}
    assert old.info("high")["Paused"]
    assert asynq("move") == DONE and "Nothing can be moved now" in asynq.notes
    assert "Moved: nothing" in asynq.notes and "data:export" in asynq.result


def test_move_refuses_while_workers_are_at_work(old: OldWorld, asynq: CommandLine, events: Topic) -> None:
    old.enqueue(verification(1))
    with old.working("hang", "high") as worker:
        worker.wait_until_begun(1)
        old.enqueue(verification(2))
        assert asynq("move", "--yes", "--wait", "0") == FAILED
        assert "still at work" in asynq.notes and events.read() == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["move", "--yes", "--mapping", "nowhere.toml"], WRONG_USAGE, "nowhere.toml"),
        (["move", "--yes", "--queue", "unheard-of"], FAILED, "unheard-of"),
        (["status", "--redis", "http://secret@host"], WRONG_USAGE, "rediss://"),
        (["status", "--redis", f"redis://:secret@{HOST}:{pick_port()}"], FAILED, f"connecting to {HOST}"),
    ],
)
def test_what_is_wrong_changes_nothing(
    old: OldWorld, asynq: CommandLine, words: list[str], code: int, says: str
) -> None:
    old.enqueue(verification(1))
    asynq.common = asynq.common[:2] if "--redis" in words else asynq.common
    assert asynq(*words) == code
    assert says in asynq.notes and "secret" not in asynq.notes
    assert not old.info("high")["Paused"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_following_ends_in_order(
    old: OldWorld, asynq: CommandLine, events: Topic, number: signal.Signals
) -> None:
    old.enqueue(verification(1))
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "campaign_jobs_cli", "asynq", "move", "--follow", "--yes"),
            *("--output", "json", *asynq.common),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        wait_until(lambda: old.client.get("asynq:{high}:processed") == b"1")
        old.enqueue(verification(2))
        wait_until(lambda: old.client.get("asynq:{high}:processed") == b"2")
        old.enqueue(verification(3, queue="new"))
        wait_until(lambda: old.client.get("asynq:{new}:processed") == b"1")
        following.send_signal(number)
        result, notes = following.communicate(timeout=60)
    assert following.returncode == DONE, notes
    assert {row["queue"]: row["count"] for row in json.loads(result)["moved"]} == {"high": 2, "new": 1}
    assert "every queue that is new" in notes and "Queue new is new" in notes
    assert len(ids_by_user(events.read())) == 3


def test_following_named_queues_leaves_others_alone(old: OldWorld, asynq: CommandLine) -> None:
    old.enqueue(verification(1))
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "campaign_jobs_cli", "asynq", "move", "--follow", "--yes"),
            *("--queue", "high", *asynq.common),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        wait_until(lambda: old.client.get("asynq:{high}:processed") == b"1")
        old.enqueue(verification(2, queue="new"))
        for processed in (b"2", b"3"):
            old.enqueue(verification(3))
            wait_until(lambda processed=processed: old.client.get("asynq:{high}:processed") == processed)
        following.send_signal(signal.SIGTERM)
        _, notes = following.communicate(timeout=60)
    assert "new" not in notes
    assert not old.info("new")["Paused"] and old.info("new")["Pending"] == 1


def test_resume_gives_the_queues_back_but_not_with_tasks_that_may_have_been_moved(
    old: OldWorld, asynq: CommandLine, client: Any
) -> None:
    old.enqueue(verification(1), verification(2, queue="low"))
    client.set("asynq:{high}:paused", 1)
    batch = Holder(client, lease_seconds=1).take("high", look(client), abandoned_by_workers=False)
    assert asynq("resume", "--yes") == FAILED and "1 tasks" in asynq.notes
    Holder(client).hand_back(batch, list(batch.held), published=True)
    assert asynq("resume", "--yes") == FAILED
    assert asynq("status") == DONE and "held 1 of them" in asynq.notes
    assert old.info("high")["Paused"]
    asynq.json("move", "--yes", "--queue", "high")
    assert asynq("resume") == DECLINED and old.info("high")["Paused"]
    assert asynq("resume", "--yes") == DONE and not old.info("high")["Paused"]
    assert asynq("resume", "--yes") == DONE and "No queue is paused" in asynq.notes
