"""A batch statement that one bad row cannot fail."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import psycopg

from campaign_jobs.database.connection import Connection, Database

Row = TypeVar("Row")
Result = TypeVar("Result")

MAX_REPEATS = 5

# A deadlock or a serialization failure that repeating did not help, a lock that somebody else keeps for long, and a
# statement that took too long, which may be for the sake of one row.
_PASSING: Final = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
)
_LASTING: Final = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.RaiseException,
    # A value that is too long for an index.
    psycopg.errors.ProgramLimitExceeded,
)


@dataclass(frozen=True)
class Refusal:
    """Why PostgreSQL did not take a row."""

    reason: str
    passing: bool
    """It is not the row itself: somebody else stood in its way, and it may go another time."""

    def __str__(self) -> str:
        return self.reason


def in_batch(
    database: Database, rows: Sequence[Row], work: Callable[[Connection, Sequence[Row]], Result]
) -> tuple[list[Result], list[tuple[Row, Refusal]]]:
    """Run `work` over all rows in one transaction, and find the rows that PostgreSQL refuses.

    A deadlock or serialization failure repeats the transaction. Any other error of the data, and a row that somebody
    else keeps locked, splits the rows in halves, each in a transaction of its own, until those rows stand alone.
    Returns what `work` returned for each part that went through, and each refused row with the reason. The caller
    passes rows sorted by key, so that concurrent batches take their locks in the same order.

    Raises DatabaseUnavailable when the connection is lost.
    """
    if not rows:
        return [], []
    try:
        return [repeat_on_conflict(database, lambda connection: work(connection, rows))], []
    except (*_PASSING, *_LASTING) as error:
        if len(rows) == 1:
            return [], [(rows[0], Refusal(refusal(error), isinstance(error, _PASSING)))]
    middle = len(rows) // 2
    first_results, first_refused = in_batch(database, rows[:middle], work)
    second_results, second_refused = in_batch(database, rows[middle:], work)
    return first_results + second_results, first_refused + second_refused


def repeat_on_conflict(
    database: Database,
    work: Callable[[Connection], Result],
    *,
    isolation: psycopg.IsolationLevel | None = None,
) -> Result:
    """Run `work` in a transaction, again when it lost against a concurrent one (deadlock, serialization failure)."""
    for repeat in range(MAX_REPEATS):
        try:
            with database.transaction(isolation) as connection:
                return work(connection)
        except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
            if repeat == MAX_REPEATS - 1:
                raise
            time.sleep(random.uniform(0, 0.05 * 2**repeat))
    raise AssertionError("unreachable")


def refusal(error: psycopg.Error) -> str:
    """Why PostgreSQL refused, without the row's values."""
    parts = [error.diag.message_primary or type(error).__name__]
    if error.diag.constraint_name:
        parts.append(f"constraint {error.diag.constraint_name}")
    if error.sqlstate:
        parts.append(f"SQLSTATE {error.sqlstate}")
    return "; ".join(parts)
