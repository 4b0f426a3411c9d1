"""Whoever turns jobs into rows, peers and ourselves alike: how its jobs are sent and its workers started."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.environments import REPOSITORY, BenchmarkError
from benchmarks.peers import Peer
from benchmarks.servers import Servers
from campaign_jobs.catalog import TOPIC_PARTITIONS
from local.kafka import create_topic
from local.processes import ChildProcess

GRACE_SECONDS = 2
"""For leaving; by then all is measured."""
OUR_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": f"{REPOSITORY / 'layers' / 'campaign_jobs' / 'python'}{os.pathsep}{REPOSITORY}",
}


class Side(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def jobs(self) -> int:
        """How many a round has: some seconds of work."""
        ...

    def prepare(self, servers: Servers, round_: str) -> None:
        """Make what a round needs before its first job."""
        ...

    def send(
        self, servers: Servers, round_: str, count: int, *, prefix: str, rate: float | None = None
    ) -> dict[str, float]:
        """Enqueue jobs whose ids follow from `prefix`. With a rate, returns when each was given to the client."""
        ...

    def working(
        self, servers: Servers, round_: str, logs: Path
    ) -> AbstractContextManager[list[ChildProcess]]:
        """In the block its workers work."""
        ...


@dataclass
class PeerSide:
    peer: Peer
    _prepared: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        return self.peer.name

    @property
    def jobs(self) -> int:
        return self.peer.jobs

    def prepare(self, servers: Servers, round_: str) -> None:
        del round_
        if self.peer.prepare is not None and not self._prepared:
            run(self.peer.command(self.peer.prepare), self.peer.environment(servers))
        self._prepared = True

    def send(
        self, servers: Servers, round_: str, count: int, *, prefix: str, rate: float | None = None
    ) -> dict[str, float]:
        del round_
        return moments(run(self.peer.send_command(prefix, count, rate), self.peer.environment(servers)))

    @contextmanager
    def working(self, servers: Servers, round_: str) -> Iterator[list[ChildProcess]]:
        del round_
        command, environment = self.peer.command(self.peer.worker), self.peer.environment(servers)
        with child(self.name, command, environment, servers.logs) as process:
            yield [process]


@dataclass(frozen=True)
class OurSide:
    """Apache Kafka, and a stand-in for Lambda's poller with a function's process, some of them side by side."""

    jobs: int
    members: int
    name: str = "campaign-jobs"

    def prepare(self, servers: Servers, round_: str) -> None:
        create_topic(servers.brokers, round_, partitions=TOPIC_PARTITIONS)

    def send(
        self, servers: Servers, round_: str, count: int, *, prefix: str, rate: float | None = None
    ) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.ours.send", servers.brokers, round_, prefix, str(count)]
        return moments(run([*command, *paced(rate)], OUR_ENVIRONMENT))

    @contextmanager
    def working(self, servers: Servers, round_: str) -> Iterator[list[ChildProcess]]:
        command = [sys.executable, "-m", "benchmarks.ours.member", servers.brokers, round_]
        command += [servers.database_url, str(servers.logs / "functions")]
        with ExitStack() as stack:
            yield [
                stack.enter_context(child(self.name, command, OUR_ENVIRONMENT, servers.logs))
                for _ in range(self.members)
            ]


def child(name: str, command: list[str], environment: dict[str, str], logs: Path) -> ChildProcess:
    return ChildProcess(
        name, command, log_file=logs / f"{name}.log", environment=environment, grace_seconds=GRACE_SECONDS
    )


def paced(rate: float | None) -> list[str]:
    return [] if rate is None else ["--rate", str(rate)]


def run(command: list[str], environment: dict[str, str]) -> str:
    """The command's output. Raises BenchmarkError that shows its errors."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def moments(printed: str) -> dict[str, float]:
    """What a paced sender printed: when each job was given to the client, by its id."""
    return {event_id: float(moment) for event_id, moment in (line.split() for line in printed.splitlines())}
