"""A process that forks moves, and has each stopped where it is told to: `python -m tests.asynq.stopping`.

A line of JSON on standard input asks for a move; a line on standard output says how it ended and which boundaries it
reached. A boundary is the moment after a Redis command or a publication, and so before the next one.
"""

import json
import os
import signal
import sys
from typing import Any

import redis
from redis.client import Pipeline

from campaign_jobs import kafka_connection  # noqa: F401 - imported once, before forking
from campaign_jobs.producer import JobProducer
from campaign_jobs_cli.asynq.connecting import connected
from campaign_jobs_cli.asynq.mapping import INCLUDED, TaskMapping
from campaign_jobs_cli.asynq.moving import Mover


class Boundaries:
    def __init__(self, stop_at: int | None) -> None:
        self.reached: list[str] = []
        self._stop_at = stop_at
        self._inside = False

    def mark(self, label: str) -> None:
        if len(self.reached) == self._stop_at:
            # No cleanup of any kind: this is what a crash is.
            os.kill(os.getpid(), signal.SIGKILL)
        self.reached.append(label)

    def around(self, owner: Any, name: str, label: Any, *, then: Any = lambda result: result) -> None:
        """Count the moment after each call that is not made by another one."""
        original = getattr(owner, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            if self._inside:
                return original(*arguments, **options)
            self._inside = True
            try:
                result = then(original(*arguments, **options))
            finally:
                self._inside = False
            self.mark(label(arguments))
            return result

        setattr(owner, name, counted)


def _acknowledged(future: Any) -> Any:
    """Publishing is one step: there is nothing in between that an observer could tell apart."""
    future.exception()
    return future


def _command(arguments: tuple[Any, ...]) -> str:
    return str(arguments[1])


def _move(request: dict[str, Any]) -> list[str]:
    boundaries = Boundaries(request["stop_at"])
    boundaries.mark("its start")
    boundaries.around(redis.Redis, "execute_command", _command)
    boundaries.around(Pipeline, "execute", lambda _: "pipeline")
    boundaries.around(JobProducer, "submit", lambda _: "publication", then=_acknowledged)
    # Nothing is in flight in the end, and closing takes its time.
    producer = JobProducer(brokers=request["brokers"], topic=request["topic"])
    with connected(request["redis"]) as client:
        mover = Mover(client, producer, TaskMapping.load(INCLUDED), request["queues"], batch=request["batch"])
        mover.prepare(wait_seconds=0)
        mover.run()
    return boundaries.reached


def main() -> None:
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            with os.fdopen(writing, "w") as answer:
                json.dump(_move(json.loads(line)), answer)
                answer.flush()
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            reached = answer.read()
        _, status = os.waitpid(child, 0)
        ending = {"exit": os.waitstatus_to_exitcode(status), "boundaries": json.loads(reached or "[]")}
        sys.stdout.write(json.dumps(ending) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
