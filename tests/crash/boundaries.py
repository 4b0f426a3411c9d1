"""Every moment at which a job touches something outside its process, numbered; and an end at one of them.

Nothing of this is in the package: it is put around the libraries that do the input and output, in a process that is
about to run a handler. One operation at a time, whatever the threads, so that nothing else is on its way at a boundary.
"""

import http.client
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import botocore.httpsession
import confluent_kafka
import psycopg
from psycopg.pq import TransactionStatus
from psycopg.sql import Composable

import campaign_jobs
from campaign_jobs import kafka_connection
from campaign_jobs.worker.pipeline import SETTLING_SECONDS

PACKAGE: Final = f"{Path(campaign_jobs.__file__).parent}{os.sep}"
# These do the input and output for whoever calls them, so a label names their caller.
_GO_BETWEENS: Final = ("database/connection.py", "database/batches.py", "outbox.py")
LATE_SECONDS: Final = SETTLING_SECONDS + 12
"""What is left of an invocation that is late: enough to end in order, too little to begin anything."""


@dataclass(frozen=True)
class Boundary:
    """One moment, with the call that leads there."""

    phase: str
    """`before`: nothing of it has happened. `after`: it has, and the job does not know yet."""
    kind: str
    caller: str
    lines: tuple[tuple[str, int], ...]
    """The package's files and lines on the way, the innermost first."""
    alters: bool
    """Whether others may see a difference from here on: of an operation that they see, or one that has happened."""

    def __str__(self) -> str:
        return f"{self.phase} {self.kind} in {self.caller}"


class Boundaries:
    """Counts boundaries as they are reached, and stops the process at one."""

    def __init__(self, stopping: Callable[[], None]) -> None:
        """`stopping` is called with the process's last breath."""
        self._stopping = stopping
        self._counting = threading.Lock()
        self._one_at_a_time = threading.RLock()
        self._thread = threading.local()
        self.begin(None, None)

    def begin(
        self,
        stop_at: tuple[str, int] | None,
        late_after: tuple[str, int] | None,
        remaining_seconds: float = 0,
    ) -> None:
        """Another invocation. Each of the two moments is a label, and how many times it is reached.

        From `late_after` on hardly anything of the remaining time is left.
        """
        self.reached: list[Boundary] = []
        self.unnumbered: list[str] = []
        """What went out without an operation around it that is known here."""
        self._times: Counter[str] = Counter()
        self._stop_at = stop_at
        self._late_after = late_after
        self._remaining_seconds = remaining_seconds

    def mark(self, phase: str, kind: str, *, alters: bool = True) -> None:
        lines = list(_lines_of_the_package())
        places = tuple((file, line) for file, line, _ in lines)
        boundary = Boundary(phase, kind, _caller(lines), places, alters)
        with self._counting:
            self.reached.append(boundary)
            self._times[str(boundary)] += 1
            moment = (str(boundary), self._times[str(boundary)])
            if moment == self._stop_at:
                self._stopping()
                # No cleanup of any kind: this is what a crash is.
                os.kill(os.getpid(), signal.SIGKILL)
        if moment == self._late_after:
            _let_time_pass(self._remaining_seconds - LATE_SECONDS)

    @contextmanager
    def operation(self, kind: str, *, seen_outside: bool = True) -> Iterator[None]:
        """One operation; whatever it is made of is not counted. What nobody else can see has no `after`."""
        if self._inside:
            yield
            return
        with self._one_at_a_time:
            self._thread.inside = True
            try:
                self.mark("before", kind, alters=seen_outside)
                yield
                if seen_outside:
                    self.mark("after", kind)
            finally:
                self._thread.inside = False

    @property
    def _inside(self) -> bool:
        return getattr(self._thread, "inside", False)

    def install(self) -> None:
        """Put operations around the libraries of this process, for good."""
        self._around_psycopg()
        self._around_kafka()
        self._around(botocore.httpsession.URLLib3Session, "send", lambda _, request: _aws_kind(request))
        # What webhooks are made of; the connection is a part of the request.
        self._around(socket, "getaddrinfo", lambda host, *_, **__: "look-up")
        self._around(http.client.HTTPConnection, "request", lambda *_, **__: "webhook request")
        self._around(http.client.HTTPConnection, "getresponse", lambda *_, **__: "webhook answer")
        sys.addaudithook(self._audit)

    def _around(self, owner: Any, name: str, kind_of: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            with self.operation(kind_of(*arguments, **named)):
                return original(*arguments, **named)

        setattr(owner, name, counted)

    def _around_psycopg(self) -> None:
        connect = psycopg.Connection.connect.__func__  # type: ignore[attr-defined]

        def counted_connect(cls: Any, *arguments: Any, **named: Any) -> Any:
            with self.operation("database connection"):
                return connect(cls, *arguments, **named)

        psycopg.Connection.connect = classmethod(counted_connect)  # type: ignore[assignment]
        for cursor_class in (psycopg.Cursor, psycopg.ServerCursor):
            self._around_cursor(cursor_class)
        command = psycopg.Connection._exec_command

        def counted_command(
            connection: Any, text: Any, *arguments: Any, **named: Any
        ) -> Generator[Any, Any, Any]:
            kind = _command_of(text, connection)
            if kind == "BEGIN":
                # Nothing lies between it and the transaction's first statement.
                return (yield from command(connection, text, *arguments, **named))
            with self.operation(kind, seen_outside=kind == "COMMIT"):
                return (yield from command(connection, text, *arguments, **named))

        psycopg.Connection._exec_command = counted_command  # type: ignore[method-assign]

    def _around_cursor(self, cursor_class: Any) -> None:
        for name in ("execute", "executemany", "copy", "stream"):
            original = getattr(cursor_class, name, None)
            if original is None:
                continue

            def counted(
                cursor: Any, *arguments: Any, original: Callable[..., Any] = original, **named: Any
            ) -> Any:
                # What a statement does in an open transaction is seen by nobody until it is committed.
                hidden = cursor.connection.info.transaction_status == TransactionStatus.INTRANS
                with self.operation("statement", seen_outside=not hidden):
                    return original(cursor, *arguments, **named)

            setattr(cursor_class, name, counted)

    def _around_kafka(self) -> None:
        boundaries = self

        class CountedProducer(confluent_kafka.Producer):
            def list_topics(self, *arguments: Any, **named: Any) -> Any:
                with boundaries.operation("Kafka connection"):
                    return super().list_topics(*arguments, **named)

            def produce(self, *arguments: Any, on_delivery: Any = None, **named: Any) -> None:
                def acknowledged(error: Any, message: Any) -> None:
                    boundaries.mark("after", "Kafka acknowledgement")
                    on_delivery(error, message)

                with boundaries.operation("Kafka produce"):
                    super().produce(*arguments, on_delivery=acknowledged, **named)

            def flush(self, *arguments: Any, **named: Any) -> int:
                with boundaries.operation("Kafka flush"):
                    return super().flush(*arguments, **named)

        kafka_connection.Producer = CountedProducer  # type: ignore[misc]

    def _audit(self, event: str, _: tuple[Any, ...]) -> None:
        """Python reports every connection that is made; one outside of an operation would be a boundary unseen."""
        if event in ("socket.connect", "socket.sendto", "subprocess.Popen") and not self._inside:
            self.unnumbered.append(f"{event} in {_caller(list(_lines_of_the_package()))}")


def _aws_kind(request: Any) -> str:
    target = request.headers.get("X-Amz-Target")
    if target is None:
        return f"SES {request.method} {request.url.split('/v2')[-1]}"
    name = target.decode() if isinstance(target, bytes) else str(target)
    return name.replace("AmazonSQS.", "SQS ").replace("AWSEvents.", "EventBridge ")


def _command_of(text: Any, connection: psycopg.Connection[Any]) -> str:
    """COMMIT, ROLLBACK, or what a server's cursor is asked for."""
    if isinstance(text, Composable):
        text = text.as_string(connection)
    return (text.decode() if isinstance(text, bytes) else str(text)).split()[0]


def _let_time_pass(seconds: float) -> None:
    real = time.monotonic
    time.monotonic = lambda: real() + seconds


def _lines_of_the_package() -> Iterator[tuple[str, int, str]]:
    """File, line and function of the package's frames, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PACKAGE):
            yield path.removeprefix(PACKAGE), frame.f_lineno, frame.f_code.co_qualname
        frame = frame.f_back


def _caller(lines: list[tuple[str, int, str]]) -> str:
    callers = [line for line in lines if line[0] not in _GO_BETWEENS] or lines
    if not callers:
        return "the runtime"
    file, _, function = callers[0]
    return f"{file.removesuffix('.py').replace('/', '.')}:{function}"
