"""What is in Asynq's queues and what a move would do with it, for `status` and for the plan of `move`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from campaign_jobs_cli.asynq.deciding import Fate, Kind, fate, fate_of_active
from campaign_jobs_cli.asynq.mapping import Drops, TaskMapping
from campaign_jobs_cli.asynq.messages import ServerInfo
from campaign_jobs_cli.asynq.queues import AsynqRedis, State, Task, pages

_PAGE: Final = 500
_LISTED: Final = (State.SCHEDULED, State.RETRY, State.ARCHIVED)


@dataclass
class Group:
    """Tasks of one queue, state and type that have the same fate."""

    queue: str
    state: State
    type: str
    fate: Kind
    becomes: str | None
    why: str | None
    count: int = 0
    first: datetime | None = None
    last: datetime | None = None
    example: str = ""
    """The id of one of them."""
    interrupted: int = 0
    """How many of them an earlier move has held, so that their events may be on the topic already."""

    def add(self, task: Task) -> None:
        self.count += 1
        self.example = self.example or task.id
        # What Asynq archived for its own reasons runs no more, whoever held it before.
        self.interrupted += task.token is not None and (task.state is not State.ARCHIVED or task.interrupted)
        if task.since is not None:
            self.first = min(self.first or task.since, task.since)
            self.last = max(self.last or task.since, task.since)

    def as_row(self) -> dict[str, Any]:
        row = {name: str(value) if name in ("state", "fate") else value for name, value in vars(self).items()}
        return {"queue": row.pop("queue"), "type": row.pop("type"), "count": row.pop("count"), **row}


@dataclass
class QueueState:
    name: str
    paused: bool
    servers: list[ServerInfo]
    counts: dict[State, int]
    oldest_pending: datetime | None = None

    def as_row(self) -> dict[str, Any]:
        return {
            "queue": self.name,
            "paused": self.paused,
            "servers": len(self.servers),
            **{str(state): self.counts[state] for state in State},
            "oldest_pending": self.oldest_pending,
        }


@dataclass
class Survey:
    """A look at live queues: what came or went meanwhile may be missing."""

    queues: list[QueueState] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def of(self, *kinds: Kind) -> list[Group]:
        return [group for group in self.groups if group.fate in kinds]

    def count(self, *kinds: Kind) -> int:
        return sum(group.count for group in self.of(*kinds))

    @property
    def interrupted(self) -> int:
        """How many tasks a stopped move has left, whose events may be on the topic."""
        return sum(group.interrupted for group in self.groups if group.fate is not Kind.HELD) + self.count(
            Kind.HELD
        )


def take_survey(
    redis: AsynqRedis,
    queues: Sequence[str],
    mapping: TaskMapping,
    looked_at: Callable[[int], None] = lambda _: None,
) -> Survey:
    """Look at every task of these queues that is not completed; `looked_at` is told of each page's length."""
    survey, servers = Survey(), redis.servers()
    for queue in queues:
        serving = [server for server in servers if queue in server.queues]
        state = QueueState(queue, redis.is_paused(queue), serving, redis.counts(queue))
        survey.queues.append(state)
        groups: dict[tuple[object, ...], Group] = {}
        for page in _decided(redis, queue, mapping, is_served=bool(serving)):
            for task, decided in page:
                becomes, why = _words(decided)
                key = (task.state, task.type, decided.kind, becomes, why)
                groups.setdefault(key, Group(queue, task.state, task.type, decided.kind, becomes, why)).add(
                    task
                )
                if task.state is State.PENDING and task.since is not None:
                    state.oldest_pending = min(state.oldest_pending or task.since, task.since)
            looked_at(len(page))
        survey.groups += sorted(
            groups.values(), key=lambda group: (list(Kind).index(group.fate), group.type, group.state)
        )
    return survey


Decided = list[tuple[Task, Fate]]


def _decided(redis: AsynqRedis, queue: str, mapping: TaskMapping, *, is_served: bool) -> Iterator[Decided]:
    now = redis.now(queue)
    yield [
        (task, fate_of_active(task, lease, mapping, now, is_served=is_served))
        for task, lease in redis.active(queue)
    ]
    for page in _waiting(redis, queue):
        yield [(task, fate(task, mapping, now)) for task in page]
    yield [(task, fate(task, mapping, now)) for task in redis.aggregating(queue)]


def _waiting(redis: AsynqRedis, queue: str) -> Iterable[list[Task]]:
    yield from pages(partial(redis.pending, queue), _PAGE)
    for state in _LISTED:
        yield from pages(partial(redis.by_time, queue, state), _PAGE)


def _words(decided: Fate) -> tuple[str | None, str | None]:
    """What it becomes, and why it does not or not yet."""
    if decided.becomes is None:
        return None, decided.why
    if isinstance(decided.becomes, Drops):
        return "nothing", decided.becomes.reason
    return decided.becomes.type, decided.why


def age(since: datetime | None) -> Any:
    return None if since is None else datetime.now(UTC) - since
