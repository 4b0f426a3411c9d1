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
LONG_WAITS: Final = 20
"""How many parts of a batch wait for a tenth of a second in vain, before the others hardly wait at all."""

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


# The setting ends with the transaction; a SET command would pin the connection in RDS Proxy.
_LOCK_TIMEOUT: Final = "SELECT set_config('lock_timeout', %s, true)"


@dataclass(frozen=True)
class Refusal:
    """Why PostgreSQL did not take a row."""

    reason: str
    passing: bool
    """It is not the row itself: somebody else stood in its way, and it may go another time."""

    def __str__(self) -> str:
        return self.reason


def in_batch(
    database: Database,
    rows: Sequence[Row],
    work: Callable[[Connection, Sequence[Row]], Result],
    *,
    patiently: bool = True,
) -> tuple[list[Result], list[tuple[Row, Refusal]]]:
    """Run `work` over all rows in one transaction, and find the rows that PostgreSQL refuses.

    A deadlock or serialization failure repeats the transaction. Any other error of the data, and a row that somebody
    else keeps locked, splits the rows in halves, each in a transaction of its own, until those rows stand alone. Once a
    lock was waited for in vain, the parts wait for theirs but for a moment; unless `patiently`, so does the whole.
    Returns what `work` returned for each part that went through, and each refused row with the reason. The caller
    passes rows sorted by key, so that concurrent batches take their locks in the same order.

    Raises DatabaseUnavailable when the connection is lost.
    """
    in_vain = 0 if patiently else 1

    def waiting_for_locks(connection: Connection, part: Sequence[Row]) -> Result:
        if in_vain:
            # A thousand rows that somebody keeps are two thousand parts, and all have to fit into an invocation.
            connection.execute(_LOCK_TIMEOUT, ["100ms" if in_vain <= LONG_WAITS else "1ms"])
        return work(connection, part)

    def run(part: Sequence[Row]) -> tuple[list[Result], list[tuple[Row, Refusal]]]:
        nonlocal in_vain
        try:
            return [repeat_on_conflict(database, lambda connection: waiting_for_locks(connection, part))], []
        except (*_PASSING, *_LASTING) as error:
            in_vain += isinstance(error, psycopg.errors.LockNotAvailable)
            if len(part) == 1:
                return [], [(part[0], Refusal(refusal(error), isinstance(error, _PASSING)))]
        middle = len(part) // 2
        first_results, first_refused = run(part[:middle])
        second_results, second_refused = run(part[middle:])
        return first_results + second_results, first_refused + second_refused

    return run(rows) if rows else ([], [])


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
