"""What breaks, when, and how it is broken on a running system."""

import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from local.aws.script import Answer, ScriptLine
from local.processes import StartError
from local.system import LocalSystem

FaultKind = Literal["worker", "postgres", "kafka", "throttle", "pause"]
TITLES: Final[dict[FaultKind, str]] = {
    "worker": "a function's process is killed",
    "postgres": "PostgreSQL is killed",
    "kafka": "Apache Kafka is killed",
    "throttle": "SES throttles half of what it gets",
    "pause": "SES pauses the account",
}

# How likely each function's process is chosen. All but `unsubscribe`, which nobody calls here.
_FUNCTIONS: Final = {
    "email": 8,
    "reward": 4,
    "position": 2,
    "unroutable": 2,
    "relay": 2,
    "feedback": 2,
    "analytics": 1,
    "fraud": 1,
}
# Steps are half seconds. Of each kind at least one, and a next one after so many steps.
_STEPS_BETWEEN: Final[dict[FaultKind, int]] = {
    "worker": 7,
    "postgres": 130,
    "kafka": 170,
    "throttle": 110,
    "pause": 150,
}
_SECONDS: Final[dict[FaultKind, tuple[float, float]]] = {
    "worker": (0, 0),
    "postgres": (1, 4),
    "kafka": (1, 4),
    "throttle": (4, 8),
    "pause": (4, 8),
}
_WAIT_FOR_WORK_SECONDS: Final = 2.0
# A server that recovers on a busy machine may not be ready the first time that we wait for it.
_START_SECONDS: Final = 240.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    kind: FaultKind
    seconds: float
    """How long what is broken stays so, besides what starting it again takes."""
    function: str = ""
    """Whose process is killed."""
    luck: float = 0
    """Which of them, between 0 and 1."""


@dataclass(frozen=True)
class Broken:
    """A fault that has happened."""

    fault: Fault
    began_at: datetime
    ended_at: datetime


def plan_faults(chance: random.Random, *, steps: int) -> list[tuple[int, Fault]]:
    """Faults with the step that each begins in, spread over the run with some room at its ends."""
    first, last = 6, steps - 10
    planned = []
    for kind, between in _STEPS_BETWEEN.items():
        for number in range(max(1, round((last - first) / between))):
            width = (last - first) / max(1, round((last - first) / between))
            step = int(first + width * number + chance.random() * width)
            (function,) = chance.choices(list(_FUNCTIONS), list(_FUNCTIONS.values()))
            fault = Fault(
                kind,
                round(chance.uniform(*_SECONDS[kind]), 1),
                function if kind == "worker" else "",
                chance.random(),
            )
            planned.append((step, fault))
    return planned


class Breaker:
    """Breaks what it is told, each fault in a thread of its own, and keeps when each began and ended."""

    def __init__(self, system: LocalSystem, say: Callable[[str], None]) -> None:
        self._system = system
        self._say = say
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        # One at a time of each, so that a server is not killed while it starts.
        self._turns: dict[str, threading.Lock] = {
            name: threading.Lock() for name in ("postgres", "kafka", "ses")
        }
        self.broken: list[Broken] = []
        self.kills: Counter[str] = Counter()
        """Processes killed, by function."""
        self.failure: Exception | None = None

    def begin(self, fault: Fault) -> None:
        thread = threading.Thread(target=self._run, args=(fault,), name=f"fault {fault.kind}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Wait until everything is up again. Raises what kept a fault from ending."""
        for thread in self._threads:
            thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self, fault: Fault) -> None:
        try:
            match fault.kind:
                case "worker":
                    self._kill_worker(fault)
                case "postgres":
                    assert self._system.servers.postgres is not None
                    self._restart("postgres", fault, self._system.servers.postgres)
                case "kafka":
                    assert self._system.servers.kafka is not None
                    self._restart("kafka", fault, self._system.servers.kafka)
                case "throttle":
                    self._script(fault, Answer.THROTTLE, "^[0-7]")
                case "pause":
                    self._script(fault, Answer.PAUSED, "")
        except Exception as error:
            log.exception("the fault %s did not end", fault.kind)
            self.failure = error

    def _kill_worker(self, fault: Fault) -> None:
        """Kill a process at its work: of the planned function, or of any other where that one has nothing to do."""
        deadline = time.monotonic() + _WAIT_FOR_WORK_SECONDS
        names = [fault.function]
        while not (chosen := self._at_work(names)):
            if time.monotonic() > deadline:
                names = sorted(self._system.functions)
            time.sleep(0.01)
        name, pid = chosen[int(fault.luck * len(chosen))]
        began_at = datetime.now(UTC)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        with self._lock:
            self.kills[name] += 1
        self._done(fault, began_at, f"{name}: a process is killed")

    def _at_work(self, names: Sequence[str]) -> list[tuple[str, int]]:
        return [(name, pid) for name in names for pid in self._system.functions[name].pids(busy=True)]

    def _restart(self, name: str, fault: Fault, server: Any) -> None:
        with self._turns[name]:
            began_at = datetime.now(UTC)
            server.kill()
            time.sleep(fault.seconds)
            deadline = time.monotonic() + _START_SECONDS
            while True:
                try:
                    server.start()
                    break
                except StartError:
                    # A process of the killed server may hold its memory or port for another moment.
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.5)
            self._done(fault, began_at, f"{TITLES[fault.kind]} and started again")

    def _script(self, fault: Fault, answer: Answer, match: str) -> None:
        assert self._system.servers.aws is not None
        with self._turns["ses"]:
            began_at = datetime.now(UTC)
            self._system.servers.aws.play([ScriptLine(match, answer)])
            time.sleep(fault.seconds)
            self._system.servers.aws.play([])
            self._done(fault, began_at, TITLES[fault.kind])

    def _done(self, fault: Fault, began_at: datetime, what: str) -> None:
        ended_at = datetime.now(UTC)
        with self._lock:
            self.broken.append(Broken(fault, began_at, ended_at))
        seconds = (ended_at - began_at).total_seconds()
        self._say(f"{what}{f', for {seconds:.1f} s' if seconds > 0.1 else ''}")
