"""What a move does with each task, by where it is now and what the mapping says."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from campaign_jobs_cli.asynq.mapping import Becomes, Drops, Stays, TaskMapping
from campaign_jobs_cli.asynq.queues import GRACE_SECONDS, State, Task


class Kind(StrEnum):
    MOVES = "moves"
    """It becomes an event now."""
    DROPS = "drops"
    """It is finished without an event now."""
    WAITS = "waits"
    """It becomes an event, or is finished without one, when it is due."""
    STAYS = "stays"
    """It stays in Asynq."""
    RUNS = "runs"
    """An old worker has it."""
    HELD = "held"
    """A move has it, or was stopped with it a moment ago."""


@dataclass(frozen=True)
class Fate:
    kind: Kind
    becomes: Becomes | Drops | None = None
    why: str | None = None
    """Why it stays, or what is waited for."""

    @property
    def is_wanted(self) -> bool:
        return self.kind in (Kind.MOVES, Kind.DROPS)


def fate(task: Task, mapping: TaskMapping, now: datetime) -> Fate:
    """Of a task that nobody has in hand."""
    match task.state:
        case State.AGGREGATING:
            return Fate(
                Kind.STAYS, why="Asynq merges the tasks of its group into one, which a worker must do"
            )
        case State.ARCHIVED if not task.interrupted:
            return Fate(Kind.STAYS, why="it is archived: Asynq has given it up")
        case State.COMPLETED:
            return Fate(Kind.STAYS, why="it is done")
        case State.SCHEDULED | State.RETRY if task.group is not None:
            return Fate(Kind.STAYS, why="it goes back to a group, whose tasks Asynq merges into one")
    translated = _translated(task, mapping)
    is_due = task.state not in (State.SCHEDULED, State.RETRY) or task.interrupted
    if translated.is_wanted and not is_due and task.since is not None and task.since > now:
        return Fate(Kind.WAITS, translated.becomes, "it is not due yet")
    return translated


def fate_of_active(
    task: Task, lease: float | None, mapping: TaskMapping, now: datetime, *, is_served: bool
) -> Fate:
    """Of a task in somebody's hands until `lease`. `is_served`: a server of Asynq's is there to take it back."""
    if not task.raw:
        return Fate(Kind.STAYS, why=task.problem)
    if lease is None:
        return Fate(Kind.RUNS, why="it has no lease, so a worker of an older Asynq may be at work on it")
    if lease % 1:
        return _translated(task, mapping) if lease <= now.timestamp() else Fate(Kind.HELD)
    if lease > (now - timedelta(seconds=GRACE_SECONDS)).timestamp():
        return Fate(Kind.RUNS)
    if is_served:
        return Fate(Kind.RUNS, why="its worker has died; a server of Asynq's takes it back within a minute")
    if task.message is not None and task.message.retried >= task.message.retry:
        return Fate(Kind.STAYS, why="its worker has died in its last attempt, so Asynq archives it")
    return _translated(task, mapping)


def _translated(task: Task, mapping: TaskMapping) -> Fate:
    if task.message is None:
        return Fate(Kind.STAYS, why=task.problem)
    verdict = mapping.verdict(task.message.type, task.message.payload)
    match verdict:
        case Stays(reason):
            return Fate(Kind.STAYS, why=reason)
        case Drops():
            return Fate(Kind.DROPS, verdict)
        case Becomes():
            return Fate(Kind.MOVES, verdict)
