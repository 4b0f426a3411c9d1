"""A batch statement that one bad row cannot fail."""

import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg

from campaign_jobs.database.connection import Connection, Database

Row = TypeVar("Row")
Result = TypeVar("Result")

MAX_REPEATS = 5


def in_batch(
    database: Database, rows: Sequence[Row], work: Callable[[Connection, Sequence[Row]], Result]
) -> tuple[list[Result], list[tuple[Row, str]]]:
    """Run `work` over all rows in one transaction, and find the rows that PostgreSQL refuses.

    A deadlock or serialization failure repeats the transaction. Any other error of the data splits the rows in halves,
    each in a transaction of its own, until the bad ones stand alone. Returns what `work` returned for each part that
    went through, and each refused row with the reason. The caller passes rows sorted by key, so that concurrent batches
    take their locks in the same order.

    Raises DatabaseUnavailable when the connection is lost, and the last error when repeating does not help.
    """
    if not rows:
        return [], []
    try:
        return [repeat_on_conflict(database, lambda connection: work(connection, rows))], []
    except (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.RaiseException) as error:
        if len(rows) == 1:
            return [], [(rows[0], refusal(error))]
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
