"""The old world: a Redis server, and the real Go library as producer, worker and operator (tests/asynq/go)."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from redis import Redis

from local.certificates import Certificates
from local.processes import HOST, ChildProcess, answers, die_with_parent, in_lasting_thread, pick_port

CAMPAIGN = "6f1c2a34-0000-4000-8000-00000000c000"
_GO = shutil.which("go", path=f"{os.environ['PATH']}{os.pathsep}/usr/local/go/bin")
_REDIS = shutil.which("redis-server")


def build_tool(directory: Path) -> Path:
    """The Go program, built; skips the test where there is no Go."""
    if _GO is None:
        pytest.skip("go is not installed, and the real Asynq is a Go library")
    tool = directory / "asynqtool"
    done = subprocess.run(
        [_GO, "build", "-mod=readonly", "-o", tool, "."],
        cwd=Path(__file__).parent / "go",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tool


@contextmanager
def redis_server(
    directory: Path, *, certificates: Certificates | None = None, cluster: bool = False
) -> Iterator[int]:
    """A Redis server on a free port, which is given; skips the test where none is installed."""
    if _REDIS is None:
        pytest.skip("redis-server is not installed")
    port = pick_port()
    plain, tls = ("0", str(port)) if certificates else (str(port), "0")
    options = ["--bind", HOST, "--port", plain, "--tls-port", tls, "--save", "", "--dir", str(directory)]
    if certificates:
        options += ["--tls-cert-file", str(certificates.certificate_file)]
        options += ["--tls-key-file", str(certificates.key_file), "--tls-auth-clients", "no"]
        options += ["--tls-ca-cert-file", str(certificates.ca_file)]
    if cluster:
        options += ["--cluster-enabled", "yes", "--cluster-port", str(pick_port())]
    server = ChildProcess("Redis", [_REDIS, *options], log_file=directory / "redis.log")
    with server:
        server.wait_until(lambda: answers(port), timeout_seconds=30)
        yield port


def payload(user: int, **more: Any) -> str:
    """An email task's, as the base-server writes it, for the user of that number."""
    return json.dumps(
        {
            "type": "verification",
            "campaign_id": CAMPAIGN,
            "user_id": user_id(user),
            "template_data": None,
            **more,
        }
    )


def user_id(user: int) -> str:
    return str(UUID(int=0x6F1C2A34_0000_4000_8000_000000000000 + user))


def verification(user: int, **more: Any) -> dict[str, Any]:
    """A task that is moved."""
    return {"type": "email:verification", "payload": payload(user), "queue": "high", **more}


@dataclass
class Worker:
    """A process of old workers."""

    process: subprocess.Popen[str]
    begun: list[str] = field(default_factory=list)

    def wait_until_begun(self, tasks: int) -> None:
        assert self.process.stdout is not None
        while len(self.begun) < tasks:
            line = self.process.stdout.readline()
            assert line, "the worker ended"
            self.begun.append(line.split()[1])

    def kill(self) -> None:
        self.process.kill()
        self._rest()

    def end(self) -> list[str]:
        """The ids of all tasks that it has begun."""
        self.process.terminate()
        self._rest()
        return self.begun

    def _rest(self) -> None:
        rest, _ = self.process.communicate(timeout=30)
        self.begun += [line.split()[1] for line in rest.splitlines()]


@dataclass
class OldWorld:
    tool: Path
    address: str
    client: Any

    def enqueue(self, *tasks: Mapping[str, Any]) -> list[str]:
        return self._run("enqueue", given=json.dumps(tasks)).split()

    @contextmanager
    def working(self, mode: str, *queues: str) -> Iterator[Worker]:
        process = in_lasting_thread(
            lambda: subprocess.Popen(
                [self.tool, self.address, "serve", mode, *queues],
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - it only calls prctl
            )
        )
        worker = Worker(process)
        try:
            yield worker
        finally:
            if process.poll() is None:
                worker.kill()

    def work(self, mode: str, *queues: str, tasks: int) -> None:
        """Have so many tasks begun, and the worker ended in order."""
        with self.working(mode, *queues) as worker:
            worker.wait_until_begun(tasks)
            worker.end()

    def unpause(self, queue: str) -> None:
        self._run("unpause", queue)

    def run_now(self, queue: str, task_id: str) -> None:
        self._run("run", queue, task_id)

    def inspect(self) -> dict[str, Any]:
        """What Asynq's Inspector sees. Fails where it cannot make sense of a queue."""
        seen: dict[str, Any] = json.loads(self._run("inspect"))
        return seen

    def seen(self) -> dict[str, str]:
        """The state of each task by its id, as the Inspector sees it."""
        return {task["ID"]: task["State"] for task in self.inspect()["tasks"]}

    def info(self, queue: str) -> dict[str, Any]:
        return next(each for each in self.inspect()["queues"] if each["Queue"] == queue)

    def time_passes(self, queue: str, seconds: float) -> None:
        """As if it were so much later for all that waits for a time in this queue."""
        for name in ("scheduled", "retry", "lease"):
            key = f"asynq:{{{queue}}}:{name}"
            for member, score in self.client.zrange(key, 0, -1, withscores=True):
                self.client.zadd(key, {member: score - seconds})

    def _run(self, *words: str, given: str | None = None) -> str:
        done = subprocess.run(
            [self.tool, self.address, *words], input=given, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"asynqtool {words}: {done.stderr}"
        return done.stdout


def contents(client: "Redis") -> dict[bytes, tuple[bytes, int]]:
    """Everything in Redis, to put it back later: each key's value and how long it still lives."""
    return {key: (client.dump(key), max(0, client.pttl(key))) for key in client.scan_iter()}


def put_back(client: "Redis", saved: Mapping[bytes, tuple[bytes, int]]) -> None:
    client.flushall()
    for key, (value, lives) in saved.items():
        client.restore(key, lives, value)


def ids_by_user(values: Sequence[bytes]) -> dict[str, set[str]]:
    """Which ids the events of each user have."""
    found: dict[str, set[str]] = {}
    for value in values:
        event = json.loads(value)
        found.setdefault(event["data"]["user_id"], set()).add(event["id"])
    return found
