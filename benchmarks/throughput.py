"""Jobs to the same durable row: how many a second from a backlog, and how long a single one takes."""

import subprocess
import sys
import time

from benchmarks import servers
from benchmarks.environments import REPOSITORY, BenchmarkError
from benchmarks.memory import proportional_mb
from benchmarks.servers import Servers
from benchmarks.sides import OUR_ENVIRONMENT, OurSide, Side

LONGEST_SECONDS = 120
WARM_UP_JOBS = 20

# By PostgreSQL's own time of each commit. The first tenth is left out: workers start, connections open.
_RATE = """
WITH done AS (SELECT pg_xact_commit_timestamp(xmin) AS at FROM effects),
     start AS (SELECT percentile_disc(0.1) WITHIN GROUP (ORDER BY at) AS at FROM done)
SELECT (count(*) FILTER (WHERE done.at > start.at) / extract(epoch FROM max(done.at) - min(start.at)))::float8
FROM done, start
"""

_COMMITTED = "SELECT event_id, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM effects"


def backlog(side: Side, shared: Servers, round_: str, count: int) -> tuple[float, float]:
    """Enqueue, then start the workers. Returns jobs per second, and the workers' memory at the end in MiB."""
    clean(shared)
    side.prepare(shared, round_)
    side.send(shared, round_, count, prefix=f"{side.name} {round_}")
    with side.working(shared, round_) as processes:
        wait_for(shared, count, side.name)
        megabytes = proportional_mb([process.pid for process in processes])
    row = shared.connection.execute(_RATE).fetchone()
    assert row is not None
    return float(row[0]), megabytes


def latency(side: Side, shared: Servers, round_: str, count: int, rate: float) -> list[float]:
    """Milliseconds of each job from the call that enqueues it to its commit, with workers that wait for it."""
    clean(shared)
    side.prepare(shared, round_)
    with side.working(shared, round_):
        side.send(shared, round_, WARM_UP_JOBS, prefix=f"warm-up {round_}")
        wait_for(shared, WARM_UP_JOBS, side.name)
        asked = side.send(shared, round_, count, prefix=f"{side.name} {round_}", rate=rate)
        wait_for(shared, WARM_UP_JOBS + count, side.name)
    committed: dict[str, float] = dict(shared.connection.execute(_COMMITTED).fetchall())
    return [(committed[event_id] - moment) * 1000 for event_id, moment in asked.items()]


def single(shared: Servers, way: str, topic: str, count: int, batch: int) -> float:
    """Events per second of one process that handles a full topic: `way` is bare, or pipeline."""
    clean(shared)
    command = [sys.executable, "-m", "benchmarks.ours.single", way, shared.brokers, topic]
    command += [shared.database_url, str(count), str(batch)]
    # The pipeline's log lines are written, as everywhere, and nobody reads them.
    done = subprocess.run(
        command,
        env=OUR_ENVIRONMENT,
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0 or effects(shared) != count:
        raise BenchmarkError(f"{' '.join(command)} did {effects(shared)} of {count}:\n{done.stderr}")
    return (count - batch) / float(done.stderr)


def filled_topic(shared: Servers, topic: str, count: int) -> str:
    side = OurSide(jobs=count, members=1)
    side.prepare(shared, topic)
    side.send(shared, topic, count, prefix=topic)
    return topic


def clean(shared: Servers) -> None:
    servers.flush(shared.redis_url)
    shared.connection.execute("TRUNCATE effects")
    # So that none falls into a measurement.
    shared.connection.execute("CHECKPOINT")


def effects(shared: Servers) -> int:
    row = shared.connection.execute("SELECT count(*) FROM effects").fetchone()
    assert row is not None
    return int(row[0])


def wait_for(shared: Servers, count: int, name: str) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while (done := effects(shared)) < count:
        if time.monotonic() > deadline:
            raise BenchmarkError(
                f"{name} did {done} of {count} in {LONGEST_SECONDS} s; its log is in {shared.logs}"
            )
        time.sleep(0.2)
