"""What services and people do in the database meanwhile, as a side of a race."""

from collections.abc import Callable
from typing import Any

from campaign_jobs.database.connection import Connection
from tests.interleavings.stepping import Side


def in_transaction(side: Side, work: Callable[[Connection], Any]) -> Callable[[], Any]:
    """The side's work: one transaction that commits at its end."""

    def run() -> Any:
        with side.database.transaction() as connection:
            return work(connection)

    return run


def writes(side: Side, *statements: tuple[str, Any]) -> Callable[[], None]:
    """The side's work: statements in one transaction, each with its parameters."""

    def work(connection: Connection) -> None:
        for statement, parameters in statements:
            connection.execute(statement.encode(), parameters)

    return in_transaction(side, work)
