"""The peers, each as its own documentation sets it up for work that must not be lost."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import environment
from benchmarks.servers import Servers

PEERS_DIRECTORY = Path(__file__).parent
_PATH = PEERS_DIRECTORY.parent


@dataclass(frozen=True, kw_only=True)
class Peer:
    name: str
    package: str
    worker: str
    """The command that starts its workers."""
    prepare: str | None = None
    """A command before the first job."""
    setup: str
    """What that is, for the table."""
    durability: str
    better: str
    """What it has that campaign-jobs has not."""
    jobs: int
    """How many jobs a round has: some seconds of work, since peers differ by a factor of ten."""

    @property
    def directory(self) -> Path:
        return PEERS_DIRECTORY / self.package

    @property
    def version(self) -> str:
        """The pinned one."""
        locked = (self.directory / "requirements.txt").read_text(encoding="utf-8")
        found = re.search(rf"^{self.package}(?:\[\w+\])?==(\S+)", locked, re.MULTILINE)
        assert found is not None, f"{self.package} is not pinned"
        return found[1]

    def command(self, line: str) -> list[str]:
        program, *arguments = line.split()
        programs = environment(self.package, self.directory / "requirements.txt")
        return [str(programs / program), *arguments]

    def send_command(self, round_: str, count: int, rate: float | None) -> list[str]:
        paced = [] if rate is None else ["--rate", str(rate)]
        # -P: the directories beside the script have the names of packages.
        return [*self.command("python -P"), str(PEERS_DIRECTORY / "send.py"), round_, str(count), *paced]

    def environment(self, servers: Servers) -> dict[str, str]:
        """What its processes see."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{self.directory}{os.pathsep}{_PATH}",
            "DATABASE_URL": servers.database_url,
            "REDIS_URL": servers.redis_url,
        }


_REDIS = "Redis killed: nothing lost; power cut: the last second"

PEERS = (
    Peer(
        name="Celery",
        package="celery",
        worker="celery -A tasks worker --concurrency 4",
        setup="Redis, 4 processes, `acks_late`",
        durability=f"worker killed: the job comes again after an hour (visibility time-out). {_REDIS}",
        better="workflows (chains, chords), many brokers, Flower, twenty years of answers",
        jobs=3_000,
    ),
    Peer(
        name="Dramatiq",
        package="dramatiq",
        worker="dramatiq tasks --processes 2 --threads 8",
        setup="Redis, 2 processes of 8 threads",
        durability=f"worker killed: the job comes again once its heartbeat is a minute old. {_REDIS}",
        better="the least ceremony for one function in the background, rate limiters, RabbitMQ",
        jobs=8_000,
    ),
    Peer(
        name="Taskiq",
        package="taskiq",
        worker="taskiq worker tasks:broker --workers 2 --log-level WARNING",
        setup="Redis streams, 2 processes, asyncio, pool of 8",
        durability=f"worker killed: the job comes again after ten minutes (idle time-out). {_REDIS}",
        better="asyncio throughout, dependency injection as in FastAPI, many brokers",
        jobs=5_000,
    ),
    Peer(
        name="Procrastinate",
        package="procrastinate",
        prepare="procrastinate --app tasks.app schema --apply",
        worker="procrastinate --app tasks.app worker --concurrency 8",
        setup="PostgreSQL, 1 process, asyncio, 8 at once",
        durability="worker killed: the job stays `doing` until a task of your own retries stalled jobs. PostgreSQL"
        " killed or power cut: nothing lost",
        better="no broker at all: a job is enqueued in the transaction of its cause, locks by name, a job's table"
        " to query",
        jobs=1_500,
    ),
    Peer(
        name="Huey",
        package="huey",
        worker="huey_consumer tasks.huey -k thread -w 8",
        setup="Redis, 1 process of 8 threads",
        durability=f"worker killed: its jobs in hand are lost. {_REDIS}",
        better="small enough to read in an evening; SQLite, PostgreSQL or files in place of Redis",
        jobs=5_000,
    ),
)
