"""Two sides of a race, stepped: one runs at a time, and each stops at the boundaries of its transactions.

A boundary is the moment before a transaction begins (from then on its now() is fixed), before each of its statements,
and before it commits; what comes after a commit is the next boundary, or the end. Calls to the outside (SES, a webhook,
Kafka) are boundaries where the test's own adapter says so. Nothing in the package knows of this: `Database` is
subclassed, and psycopg lets a connection's class of cursors be chosen.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import IsolationLevel

from campaign_jobs.database.connection import Connection, Database

PATIENCE_SECONDS: Final = 60
LOOK_AGAIN_SECONDS: Final = 0.002


@dataclass(frozen=True)
class Step:
    """One boundary that a side has passed, or stands at."""

    side: str
    boundary: str


class SteppedDatabase(Database):
    """A database that tells `reaches` about each boundary before it crosses it."""

    def __init__(self, conninfo: str, reaches: Callable[[str], None]) -> None:
        super().__init__(conninfo)
        self._reaches = reaches
        self.backend_pid: int | None = None

        class SteppedCursor(psycopg.Cursor[Any]):
            def execute(self, query: Any, *arguments: Any, **named: Any) -> "SteppedCursor":
                reaches(_shortened(query))
                return super().execute(query, *arguments, **named)

        class SteppedServerCursor(psycopg.ServerCursor[Any]):
            def execute(self, query: Any, *arguments: Any, **named: Any) -> "SteppedServerCursor":
                reaches(_shortened(query))
                return super().execute(query, *arguments, **named)

        self._cursors = SteppedCursor, SteppedServerCursor

    @contextmanager
    def transaction(self, isolation: IsolationLevel | None = None) -> Iterator[Connection]:
        self._reaches("BEGIN")
        with super().transaction(isolation) as connection:
            yield connection
            self._reaches("COMMIT")

    def _open(self) -> Connection:
        connection = super()._open()
        self.backend_pid = connection.info.backend_pid
        connection.cursor_factory, connection.server_cursor_factory = self._cursors
        return connection


def _shortened(query: Any) -> str:
    text = query.decode() if isinstance(query, bytes) else str(query)
    return " ".join(text.split())[:90]


class Side:
    """One side of a race: does its work in a thread of its own, and stops where it is told to."""

    def __init__(self, name: str, conninfo: str, observer: Connection, trace: list[Step]) -> None:
        self.name = name
        self.database = SteppedDatabase(conninfo, self.reaches)
        self.unstepped_database = Database(conninfo)
        self.result: Any = None
        self.error: BaseException | None = None
        self._observer = observer
        self._trace = trace
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        # Outside of a race nothing stops it.
        self._stops_at: int | None = None
        self._reached = 0
        self.stands_at: str | None = None
        self.is_done = False

    def reaches(self, boundary: str) -> None:
        """Called in the side's own threads: waits here when this is where it is to stop."""
        with self._changed:
            if self._stops_at is not None and self._reached >= self._stops_at:
                self.stands_at = boundary
                self._changed.notify_all()
                self._changed.wait_for(lambda: self.stands_at is None)
            self._reached += 1
            self._trace.append(Step(self.name, boundary))

    def start(self, work: Callable[[], Any], *, stop_at: int | None) -> None:
        """Begin, and stop at the boundary of this number, counted from 0; None for nowhere."""
        self._reached, self._stops_at, self.stands_at = 0, stop_at, None
        self.result, self.error, self.is_done = None, None, False

        def run() -> None:
            try:
                self.result = work()
            except BaseException as error:  # noqa: BLE001  It is raised in the test's own thread.
                self.error = error
            finally:
                with self._changed:
                    self.is_done = True
                    self._changed.notify_all()

        self._thread = threading.Thread(target=run, name=self.name, daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Go on to the end."""
        with self._changed:
            self._stops_at = self.stands_at = None
            self._changed.notify_all()

    def advance(self, *, to: str) -> None:
        """Go on, alone, until it stands before a boundary that contains this text."""
        while True:
            assert self.settles(), f"{self.name} waits for a lock"
            assert not self.is_done, f"{self.name} never came to {to}"
            if to in (self.stands_at or ""):
                return
            with self._changed:
                self._stops_at, self.stands_at = 0, None
                self._changed.notify_all()

    def stop_at_next(self) -> None:
        """Stop at the boundary after the statement that waits for a lock now."""
        with self._changed:
            if self.stands_at is None:
                self._stops_at = 0

    def settles(self) -> bool:
        """Wait until it stands at a boundary or is done (True), or waits for somebody else's lock (False)."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < give_up_at:
            with self._changed:
                if self._changed.wait_for(
                    lambda: self.stands_at is not None or self.is_done, timeout=LOOK_AGAIN_SECONDS
                ):
                    return True
            if self.waits_for_a_lock():
                return False
        raise AssertionError(f"{self.name} neither stops nor ends nor waits for a lock")

    def waits_for_a_lock(self) -> bool:
        row = self._observer.execute(
            "SELECT cardinality(pg_blocking_pids(%s)) > 0", (self.database.backend_pid or 0,)
        ).fetchone()
        return row is not None and bool(row[0])

    def join(self) -> None:
        self.go_on()
        if self._thread is not None:
            self._thread.join(PATIENCE_SECONDS)


@dataclass
class Schedule:
    """One way to interleave: the first side stops at a boundary, the second runs until it stops at one or ends, the
    first runs to its end, then the second does. Who waits for the other's lock waits until the other has ended, or
    has come to wait as well: then PostgreSQL finds the deadlock."""

    first: Side
    second: Side
    trace: list[Step]
    first_stops_at: int
    second_stops_at: int | None
    stood_at: list[str | None] = field(default_factory=list)

    def run(self, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        """Run both sides and return what they returned; an error of either is raised."""
        self.trace.clear()
        sides = (self.first, self.second)
        try:
            for side, work, stop_at in (
                (self.first, first, self.first_stops_at),
                (self.second, second, self.second_stops_at),
            ):
                side.start(work, stop_at=stop_at)
                side.settles()
                self.stood_at.append(side.stands_at)
            give_up_at = time.monotonic() + PATIENCE_SECONDS
            while not all(side.is_done for side in sides):
                assert time.monotonic() < give_up_at, "the two sides wait for each other for ever"
                self._let_one_go_on()
        finally:
            for side in sides:
                side.join()
        for side in sides:
            if side.error is not None:
                raise side.error
        return self.first.result, self.second.result

    def _let_one_go_on(self) -> None:
        for side, other in ((self.first, self.second), (self.second, self.first)):
            if side.is_done or (side.stands_at is None and side.waits_for_a_lock()):
                continue
            other.stop_at_next()
            side.go_on()
            if not side.settles():
                side.stop_at_next()
            return

    def happened(self, side: Side, boundary: str, *, last: bool = False) -> int | None:
        """When a side first (or last) passed a boundary that contains this text: its place in the trace; or None."""
        places = [
            place
            for place, step in enumerate(self.trace)
            if step.side == side.name and boundary in step.boundary
        ]
        return places[-1 if last else 0] if places else None

    def is_before(
        self, side: Side, boundary: str, other: Side, other_boundary: str, *, last: bool = False
    ) -> bool:
        """Whether one boundary was passed, and the other one later or never; or the other one's last time."""
        one, another = self.happened(side, boundary), self.happened(other, other_boundary, last=last)
        return one is not None and (another is None or one < another)

    def __str__(self) -> str:
        lines = [
            f"{side.name} stops before: {boundary or 'nothing'}"
            for side, boundary in zip((self.first, self.second), self.stood_at, strict=False)
        ]
        return "\n".join([*lines, *(f"    {step.side:>8}  {step.boundary}" for step in self.trace)])


class Race:
    """Two sides over one database, and every schedule of what they do."""

    def __init__(self, database_url: str) -> None:
        # Whoever waits for a lock looks for a deadlock after so long; the default is a second.
        conninfo = f"{database_url}?options=-c%20deadlock_timeout%3D10ms"
        self._observer: Connection = psycopg.connect(database_url, autocommit=True)
        self._trace: list[Step] = []
        self.first = Side("first", conninfo, self._observer, self._trace)
        self.second = Side("second", conninfo, self._observer, self._trace)
        self.last: Schedule | None = None
        self.count = 0

    def schedules(self, *, all_pairs: bool = True) -> Iterator[Schedule]:
        """Each schedule in turn, to be run before the next is asked for.

        All pairs of a boundary of the first and one of the second; or only those in which one side is not interrupted,
        for work of many statements: the second within each pause of the first, the first within each of the second.
        """
        first_stops_at = 0
        while True:
            second_stops_at = 0 if all_pairs or first_stops_at == 0 else None
            while True:
                schedule = Schedule(self.first, self.second, self._trace, first_stops_at, second_stops_at)
                self.last = schedule
                yield schedule
                assert len(schedule.stood_at) == 2, "the schedule was not run"
                self.count += 1
                first_stood, second_stood = schedule.stood_at
                # Stopping where it does not come to is running to the end (or into a lock).
                if second_stops_at is None or second_stood is None:
                    break
                second_stops_at += 1
            if first_stood is None:
                return
            first_stops_at += 1

    def close(self) -> None:
        for side in (self.first, self.second):
            side.database.close()
            side.unstepped_database.close()
        self._observer.close()
