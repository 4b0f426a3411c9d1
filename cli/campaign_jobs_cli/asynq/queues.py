"""Reading Asynq's Redis: queues, tasks and servers, in the layout of Asynq v0.26 (internal/base, internal/rdb)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from campaign_jobs_cli.asynq.errors import RedisTrouble, UnreadableMessage
from campaign_jobs_cli.asynq.messages import ServerInfo, TaskMessage, read_server, read_task

Client = Any
"""A client of redis-py's for one server or for a cluster, which share no type. It returns bytes."""

TOKEN_FIELD: Final = "campaign_jobs_token"  # noqa: S105 - no secret
"""The field that a move adds to a task's hash: which enqueuing of a task this is. Asynq leaves it alone."""
GRACE_SECONDS: Final = 30
"""After the end of a worker's lease, Asynq waits as long for clocks that differ (recoverer.go)."""
LEASE_EXPIRED: Final = "asynq: task lease expired"
"""What Asynq's recoverer writes into the task of a worker that has died."""
_LAST: Final = datetime(9999, 12, 30, tzinfo=UTC)
"""Stands for all that is later, which a datetime cannot say in every time zone."""


class State(StrEnum):
    """A task's state, as its hash says it."""

    PENDING = "pending"
    ACTIVE = "active"
    SCHEDULED = "scheduled"
    RETRY = "retry"
    ARCHIVED = "archived"
    COMPLETED = "completed"
    AGGREGATING = "aggregating"


class Keys:
    """The keys of one queue. Its name in braces keeps them in one slot of a cluster."""

    def __init__(self, queue: str) -> None:
        self.prefix = f"asynq:{{{queue}}}:"
        self.task_prefix = f"{self.prefix}t:"
        self.unique_prefix = f"{self.prefix}unique:"
        self.group_prefix = f"{self.prefix}g:"
        self.lease = f"{self.prefix}lease"
        self.paused = f"{self.prefix}paused"
        self.groups = f"{self.prefix}groups"
        self.aggregation_sets = f"{self.prefix}aggregation_sets"
        self.processed = f"{self.prefix}processed"

    def of(self, state: State) -> str:
        """The list or sorted set of the tasks in this state; aggregating ones have one for each group."""
        return f"{self.prefix}{state}"

    def processed_on(self, day: datetime) -> str:
        return f"{self.processed}:{day:%Y-%m-%d}"


@dataclass(frozen=True)
class Task:
    """One task as it was looked at."""

    queue: str
    id: str
    state: State
    raw: bytes
    """Its message, as it is in the hash."""
    message: TaskMessage | None
    """None where it cannot be read."""
    problem: str | None
    token: str | None
    """Set where a move has held it before."""
    group: str | None
    """Set where Asynq merges it with others before it runs."""
    since: datetime | None
    """Since when it is pending, or the time that its sorted set says: due, died, added to the group. For ever is the
    year 9999."""

    @property
    def type(self) -> str:
        return self.message.type if self.message else "unreadable"

    @property
    def interrupted(self) -> bool:
        """Whether Asynq has taken it from a move that was stopped, as it does with a dead worker's."""
        return self.token is not None and self.message is not None and self.message.error_msg == LEASE_EXPIRED


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Raises RedisTrouble in the place of redis-py's errors."""
    # Its import takes a while, and the other commands do without.
    from redis.exceptions import RedisClusterException, RedisError

    try:
        yield
    except (RedisError, RedisClusterException) as error:
        raise RedisTrouble(f"Asynq's Redis: {doing} failed: {error}. Run the command again") from error


class AsynqRedis:
    """Looks, and changes nothing but the mark that a queue is paused."""

    def __init__(self, client: Client) -> None:
        self.client = client
        # The server's own clock: in a cluster, of the node that has the queue.
        self._clock = client.register_script("return redis.call('TIME')")

    def queues(self) -> list[str]:
        with explained("listing the queues"):
            return sorted(name.decode() for name in self.client.smembers("asynq:queues"))

    def now(self, queue: str) -> datetime:
        with explained("reading the clock"):
            seconds, micros = self._clock(keys=[Keys(queue).paused])
        return datetime.fromtimestamp(int(seconds) + int(micros) / 1e6, UTC)

    def servers(self) -> list[ServerInfo]:
        """The processes of old workers that have reported in the last seconds, whatever they do."""
        with explained("listing the servers"):
            # Theirs are the clocks that have written these times.
            names = self.client.zrangebyscore("asynq:servers", datetime.now(UTC).timestamp(), "+inf")
            found = [self.client.get(name) for name in names]
        return [read_server(data) for data in found if data is not None]

    def is_paused(self, queue: str) -> bool:
        with explained("looking whether a queue is paused"):
            return bool(self.client.exists(Keys(queue).paused))

    def pause(self, queue: str) -> None:
        """Keep workers from taking tasks, as Asynq's own command does. Safe to call twice."""
        with explained("pausing a queue"):
            self.client.set(Keys(queue).paused, int(datetime.now(UTC).timestamp()), nx=True)

    def resume(self, queue: str) -> None:
        with explained("resuming a queue"):
            self.client.delete(Keys(queue).paused)

    def counts(self, queue: str) -> dict[State, int]:
        """How many tasks there are in each state."""
        keys = Keys(queue)
        with explained("counting tasks"):
            pipeline = self.client.pipeline(transaction=False)
            for state in State:
                if state in (State.PENDING, State.ACTIVE):
                    pipeline.llen(keys.of(state))
                elif state is not State.AGGREGATING:
                    pipeline.zcard(keys.of(state))
            listed = pipeline.execute()
            in_groups = sum(self.client.zcard(name) for name in self._groups(keys))
        return dict(zip(State, [*listed, in_groups], strict=True))

    def pending(self, queue: str, skipped: int, most: int) -> list[Task]:
        """Tasks in the order in which workers would take them, behind the first `skipped`."""
        with explained("reading pending tasks"):
            ids = self.client.lrange(Keys(queue).of(State.PENDING), -skipped - most, -skipped - 1)
        return self.tasks(queue, State.PENDING, [(task_id, None) for task_id in reversed(ids)])

    def by_time(
        self,
        queue: str,
        state: State,
        skipped: int,
        most: int,
        *,
        until: datetime | None = None,
        after: datetime | None = None,
    ) -> list[Task]:
        """Tasks of a sorted set by its time, behind the first `skipped`: up to a time, or those after it.

        What comes and goes meanwhile may move one over that border.
        """
        key = Keys(queue).of(state)
        with explained(f"reading {state} tasks"):
            # By rank, because Redis counts what a range of scores skips one by one.
            first = skipped + (0 if after is None else self.client.zcount(key, "-inf", after.timestamp()))
            end = first + most
            if until is not None:
                end = min(end, self.client.zcount(key, "-inf", until.timestamp()))
            found = self.client.zrange(key, first, end - 1, withscores=True) if first < end else []
        return self.tasks(queue, state, [(task_id, score) for task_id, score in found])

    def aggregating(self, queue: str) -> list[Task]:
        keys = Keys(queue)
        with explained("reading groups"):
            found = [
                member
                for name in self._groups(keys)
                for member in self.client.zrange(name, 0, -1, withscores=True)
            ]
        return self.tasks(queue, State.AGGREGATING, [(task_id, score) for task_id, score in found])

    def active(self, queue: str) -> list[tuple[Task, float | None]]:
        """Tasks in somebody's hands, with the end of the lease in seconds since 1970, None where there is none."""
        keys = Keys(queue)
        with explained("reading active tasks"):
            ids = self.client.lrange(keys.of(State.ACTIVE), 0, -1)
            leases = dict(self.client.zrange(keys.lease, 0, -1, withscores=True))
        tasks = self.tasks(queue, State.ACTIVE, [(task_id, None) for task_id in ids])
        return [(task, leases.get(task_id)) for task, task_id in zip(tasks, ids, strict=True)]

    def tasks(self, queue: str, state: State, found: Sequence[tuple[bytes, float | None]]) -> list[Task]:
        """The tasks of these ids, which were listed under `state` with these times."""
        if not found:
            return []
        keys = Keys(queue)
        with explained("reading tasks"):
            pipeline = self.client.pipeline(transaction=False)
            for task_id, _ in found:
                pipeline.hmget(
                    keys.task_prefix.encode() + task_id, "msg", "pending_since", TOKEN_FIELD, "group"
                )
            hashes = pipeline.execute()
        return [
            _task(queue, state, task_id, score, fields)
            for (task_id, score), fields in zip(found, hashes, strict=True)
        ]

    def _groups(self, keys: Keys) -> list[str]:
        """The sorted sets of all groups, and of those that a server is merging now."""
        names = [keys.group_prefix + name.decode() for name in self.client.smembers(keys.groups)]
        return [*sorted(names), *(name.decode() for name in self.client.zrange(keys.aggregation_sets, 0, -1))]


def pages(read: Callable[[int, int], list[Task]], size: int) -> Iterator[list[Task]]:
    """All that `read` finds, a page after the other, for looking only."""
    skipped = 0
    while page := read(skipped, size):
        yield page
        skipped += len(page)


def _task(
    queue: str, state: State, task_id: bytes, score: float | None, fields: Sequence[bytes | None]
) -> Task:
    raw, pending_since, token, group = fields
    message, problem = None, None
    try:
        if raw is None:
            raise UnreadableMessage("its message is gone: only its id is left in Asynq's list")
        message = read_task(raw)
        if (message.id, message.queue) != (task_id.decode(errors="surrogateescape"), queue):
            message, problem = None, "its message says that it is another task"
    except UnreadableMessage as error:
        problem = str(error)
    if state is State.PENDING and pending_since is not None and pending_since.isdigit():
        score = int(pending_since) / 1e9
    return Task(
        queue=queue,
        id=task_id.decode(errors="surrogateescape"),
        state=state,
        raw=raw or b"",
        message=message,
        problem=problem,
        token=None if token is None else token.decode(),
        group=None if not group else group.decode(errors="replace"),
        since=None if score is None else _moment(score),
    )


def _moment(seconds: float) -> datetime:
    """Any number that a sorted set may hold, as a time between 1970 and 9999."""
    return datetime.fromtimestamp(min(max(seconds, 0.0), _LAST.timestamp()), UTC)
