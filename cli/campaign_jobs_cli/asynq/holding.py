"""Holding tasks as one of Asynq's workers does, while their events are published.

Each step is one script, so that nobody sees it half done; the steps are those of Asynq's own (internal/rdb/rdb.go), and
differ where a worker's would lose or double something:

- Taking needs the queue to be *paused*, where a worker needs it not to be: as long as it is, no worker runs what a move
  has published and not finished. It takes named tasks, so that those without an event stay where they are.
- The *token* is set once for each enqueuing of a task, and lives as long as its hash. The event's id derives from it:
  whoever publishes the task again does so under the same id, and a new task under an old one's id gets another.
- The *lease* is the fence: who finishes shows that it is still the one that it wrote itself. Asynq's leases are whole
  seconds, a move's never are, so that none is ever another's; that also tells who holds a task.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from typing import Any, Final
from uuid import UUID, uuid4, uuid5

from campaign_jobs_cli.asynq.errors import NotPaused
from campaign_jobs_cli.asynq.messages import TaskMessage, completed
from campaign_jobs_cli.asynq.queues import GRACE_SECONDS, TOKEN_FIELD, Client, Keys, State, Task, explained

LEASE_SECONDS: Final = 30
"""As Asynq's own."""
_EVENT_IDS: Final = UUID("5d5c9f43-5b5e-4a53-9e0a-1c1d3f6d7a10")
_STATISTICS_KEPT: Final = timedelta(days=90)
_MOST: Final = 2**63 - 1

# The end of a lease that begins now, never a whole second. Redis 5 and newer let a script that asks for the time write.
_LEASE: Final = """
local function lease(seconds)
    local time = redis.call("TIME")
    local micros = math.max(1, tonumber(time[2]))
    return string.format("%d.%06d", tonumber(time[1]) + seconds, micros)
end
"""

_TAKE: Final = f"""
{_LEASE}
local pending, scheduled, retry, archived, active, leases, paused = unpack(KEYS)
local prefix, seconds, grace, with_workers = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == "1"
if redis.call("EXISTS", paused) == 0 then
    return {{}}
end
local time = redis.call("TIME")
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local function abandoned(id)
    local until_ = tonumber(redis.call("ZSCORE", leases, id) or "inf")
    if until_ % 1 ~= 0 then
        return until_ <= now
    end
    return with_workers and until_ <= now - grace
end
local function is_due(set, id, early)
    local at = redis.call("ZSCORE", set, id)
    return at and (early or tonumber(at) <= now) and redis.call("ZREM", set, id) == 1
end
local mine = lease(seconds)
local taken = {{mine}}
for i = 5, #ARGV, 3 do
    local id, digest, token = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local key = prefix .. id
    local state, message, old = unpack(redis.call("HMGET", key, "state", "msg", "{TOKEN_FIELD}"))
    local found = false
    if message and redis.sha1hex(message) == digest then
        if state == "pending" then
            found = redis.call("LREM", pending, -1, id) == 1
        elseif state == "scheduled" then
            found = is_due(scheduled, id, false)
        elseif state == "retry" then
            found = is_due(retry, id, old)
        elseif state == "archived" then
            found = old and is_due(archived, id, true)
        elseif state == "active" then
            found = abandoned(id)
        end
    end
    if found then
        local new = redis.call("HSETNX", key, "{TOKEN_FIELD}", token)
        if state ~= "active" then
            redis.call("LPUSH", active, id)
            redis.call("HSET", key, "state", "active")
            redis.call("HDEL", key, "pending_since")
        end
        redis.call("ZADD", leases, mine, id)
        table.insert(taken, id)
        table.insert(taken, redis.call("HGET", key, "{TOKEN_FIELD}"))
        table.insert(taken, new)
    end
end
return taken
"""

_HOLDS: Final = """
local function holds(id)
    local lease = redis.call("ZSCORE", leases, id)
    return lease and tonumber(lease) == tonumber(mine)
end
"""

_EXTEND: Final = f"""
local leases, mine = KEYS[1], ARGV[1]
{_LEASE}
{_HOLDS}
local next = lease(tonumber(ARGV[2]))
local kept = {{next}}
for i = 3, #ARGV do
    if holds(ARGV[i]) then
        redis.call("ZADD", leases, "XX", next, ARGV[i])
        table.insert(kept, ARGV[i])
    end
end
return kept
"""

# Asynq's Done and MarkAsComplete, which leave half of the work done where a task turns out not to be ours: here all is
# looked at before anything is changed.
_FINISH: Final = f"""
local active, leases, completed, today, total = unpack(KEYS)
local prefix, mine, statistics_until, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
{_HOLDS}
local finished = {{}}
for i = 5, #ARGV, 4 do
    local id, unique, expires, message = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    local key = prefix .. id
    if holds(id) and redis.call("EXISTS", key) == 1 then
        redis.call("LREM", active, 0, id)
        redis.call("ZREM", leases, id)
        if expires == "" then
            redis.call("DEL", key)
        else
            redis.call("ZADD", completed, expires, id)
            redis.call("HSET", key, "msg", message, "state", "completed")
            -- Whoever runs it again with Asynq's tools wants it done again.
            redis.call("HDEL", key, "{TOKEN_FIELD}")
        end
        if unique ~= "" and redis.call("GET", unique) == id then
            redis.call("DEL", unique)
        end
        if redis.call("INCR", today) == 1 then
            redis.call("EXPIREAT", today, statistics_until)
        end
        if redis.call("GET", total) == most then
            redis.call("SET", total, 1)
        else
            redis.call("INCR", total)
        end
        table.insert(finished, id)
    end
end
return finished
"""

# Asynq's Requeue, to the front of the queue.
_HAND_BACK: Final = f"""
local active, leases, pending = unpack(KEYS)
local prefix, mine = ARGV[1], ARGV[2]
{_HOLDS}
for i = 3, #ARGV, 3 do
    local id, since, forget = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if holds(id) then
        redis.call("LREM", active, 0, id)
        redis.call("ZREM", leases, id)
        redis.call("RPUSH", pending, id)
        redis.call("HSET", prefix .. id, "state", "pending", "pending_since", since)
        if forget == "1" then
            redis.call("HDEL", prefix .. id, "{TOKEN_FIELD}")
        end
    end
end
return redis.status_reply("OK")
"""


@dataclass(frozen=True)
class Taken:
    """A task that we hold."""

    task: Task
    message: TaskMessage
    token: str
    is_first: bool
    """No move has held this enqueuing of the task before."""

    @property
    def event_id(self) -> str:
        """The same whoever holds it, for as long as it is the same enqueuing of the task."""
        return str(uuid5(_EVENT_IDS, f"{self.task.queue}\0{self.task.id}\0{self.token}"))

    @property
    def asked_at(self) -> datetime:
        """Since when the task could be run; kept in the token, because Asynq forgets it when a task is taken."""
        return datetime.fromtimestamp(self.pending_since / 1e9, UTC)

    @property
    def pending_since(self) -> int:
        """The same as Asynq writes it, in nanoseconds since 1970."""
        return int(self.token.partition("@")[2])


@dataclass
class Batch:
    """Tasks taken together, under one lease."""

    queue: str
    lease: str
    held: dict[str, Taken] = field(default_factory=dict)
    """By id; what somebody else has by now is not in it any more."""


class Holder:
    """Takes tasks and gives them up again. Raises RedisTrouble from all of it."""

    def __init__(self, client: Client, *, lease_seconds: int = LEASE_SECONDS) -> None:
        self._lease_seconds = lease_seconds
        self._take = client.register_script(_TAKE)
        self._extend = client.register_script(_EXTEND)
        self._finish = client.register_script(_FINISH)
        self._hand_back = client.register_script(_HAND_BACK)

    def take(self, queue: str, tasks: Sequence[Task], *, abandoned_by_workers: bool) -> Batch:
        """Take those of the tasks that still are as they were looked at, and due.

        Of active ones, those whose lease has run out: a move's at once, a worker's after Asynq's own grace, and only
        with `abandoned_by_workers`. Raises NotPaused, and has taken nothing then.
        """
        keys = Keys(queue)
        sources = [keys.of(state) for state in (State.PENDING, State.SCHEDULED, State.RETRY, State.ARCHIVED)]
        by_id = {task.id: task for task in tasks}
        arguments: list[Any] = [
            keys.task_prefix,
            self._lease_seconds,
            GRACE_SECONDS,
            int(abandoned_by_workers),
        ]
        for task in by_id.values():
            since = task.since or datetime.now(UTC)
            token = f"{uuid4()}@{round(since.timestamp() * 1e6)}000"
            arguments += [_encoded(task.id), sha1(task.raw, usedforsecurity=False).hexdigest(), token]
        with explained("taking tasks"):
            answer = self._take(
                keys=[*sources, keys.of(State.ACTIVE), keys.lease, keys.paused], args=arguments
            )
        if not answer:
            raise NotPaused(
                f"queue {queue} is not paused any more, so old workers take its tasks. Nothing was taken since. "
                "Run the move again: it pauses the queue and waits for the workers"
            )
        batch = Batch(queue, answer[0].decode())
        for task_id, token, new in zip(answer[1::3], answer[2::3], answer[3::3], strict=True):
            task = by_id[task_id.decode(errors="surrogateescape")]
            assert task.message is not None
            batch.held[task.id] = Taken(task, task.message, token.decode(), new == 1)
        return batch

    def extend(self, batch: Batch) -> None:
        """Keep the tasks for another lease. What is not ours any more leaves the batch."""
        with explained("extending leases"):
            answer = self._extend(
                keys=[Keys(batch.queue).lease],
                args=[batch.lease, self._lease_seconds, *(_encoded(task_id) for task_id in batch.held)],
            )
        kept = {task_id.decode(errors="surrogateescape") for task_id in answer[1:]}
        batch.lease = answer[0].decode()
        batch.held = {task_id: taken for task_id, taken in batch.held.items() if task_id in kept}

    def finish(self, batch: Batch, ids: Sequence[str]) -> list[str]:
        """End these tasks as a worker that has succeeded; the ids of those that were still ours."""
        keys, now = Keys(batch.queue), datetime.now(UTC)
        statistics_until = int((now + _STATISTICS_KEPT).timestamp())
        arguments: list[Any] = [keys.task_prefix, batch.lease, statistics_until, _MOST]
        for task_id in ids:
            message, raw = batch.held[task_id].message, batch.held[task_id].task.raw
            # Asynq deletes whatever key the message names; here none outside of the queue's locks.
            unique = message.unique_key if message.unique_key.startswith(keys.unique_prefix) else ""
            at = int(now.timestamp())
            kept = [at + message.retention, completed(raw, at)] if message.retention > 0 else ["", ""]
            arguments += [_encoded(task_id), unique, *kept]
        places = [keys.of(State.ACTIVE), keys.lease, keys.of(State.COMPLETED)]
        with explained("finishing tasks"):
            answer = self._finish(keys=[*places, keys.processed_on(now), keys.processed], args=arguments)
        return [task_id.decode(errors="surrogateescape") for task_id in answer]

    def hand_back(self, batch: Batch, ids: Sequence[str], *, published: bool) -> None:
        """Give these tasks back to the front of the queue. `published`: their events may be on the topic."""
        keys = Keys(batch.queue)
        arguments: list[Any] = [keys.task_prefix, batch.lease]
        for task_id in ids:
            taken = batch.held[task_id]
            arguments += [_encoded(task_id), taken.pending_since, int(taken.is_first and not published)]
        with explained("handing tasks back"):
            self._hand_back(keys=[keys.of(State.ACTIVE), keys.lease, keys.of(State.PENDING)], args=arguments)


def _encoded(task_id: str) -> bytes:
    return task_id.encode(errors="surrogateescape")
