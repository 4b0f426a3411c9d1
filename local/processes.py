"""Child processes that live no longer than this one, and the ports they listen on."""

import atexit
import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from campaign_jobs.errors import CampaignJobsError

HOST: Final = "127.0.0.1"
_LOG_TAIL_LINES: Final = 15
PR_SET_PDEATHSIG: Final = 1


class StartError(CampaignJobsError):
    """A local service did not start; the message says which, why, and where its log is."""


class Service(ABC):
    """Something that runs from `start` to `stop`; entered, it runs for the length of the block."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> object: ...

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class ChildProcess(Service):
    """One server process: started in a session of its own, so that Ctrl-C in the terminal reaches only us and
    we decide the order of shutdown; ended at the latest when this process ends.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log_file: Path,
        environment: Mapping[str, str] | None = None,
        grace_seconds: float = 10,
    ) -> None:
        """`environment` is added to ours; `grace_seconds` is how long `stop` waits between SIGTERM and SIGKILL."""
        self.name = name
        self.log_file = log_file
        self._command = [str(word) for word in command]
        self._environment = {**os.environ, **(environment or {})}
        self._grace_seconds = grace_seconds
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise StartError(f"{self.name} has not been started")
        return self._process.pid

    def start(self) -> None:
        if self.running:
            raise StartError(f"{self.name} is running already (process {self.pid})")
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            try:
                self._process = in_lasting_thread(
                    lambda: subprocess.Popen(
                        self._command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=self._environment,
                        start_new_session=True,
                        # One system call between fork and exec, on a library that is loaded already: safe with threads.
                        preexec_fn=die_with_parent(),  # noqa: PLW1509
                    )
                )
            except OSError as error:
                raise StartError(f"{self.name} cannot be started: {error}") from error
        atexit.register(self.stop)

    def wait_until(self, ready: Callable[[], bool], *, timeout_seconds: float) -> None:
        """Wait until `ready()` is true. A process that ends before, or takes too long, is stopped and raises
        StartError with the end of its log.
        """
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            if not self.running:
                status = self._process.returncode if self._process else None
                self.stop()
                raise StartError(self._explain(f"{self.name} ended while starting, with status {status}"))
            if time.monotonic() > deadline:
                self.stop()
                raise StartError(self._explain(f"{self.name} was not ready after {timeout_seconds:g} s"))
            time.sleep(0.05)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for the whole process group once the grace period is over. Safe to call twice."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(self._grace_seconds)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
        self._reap()

    def kill(self) -> None:
        """SIGKILL: an end without any chance to tidy up."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGKILL)
        self._reap()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        try:
            # The child leads its own group, so its group's id is its process id.
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass  # It ended between our look and our signal.

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
        atexit.unregister(self.stop)

    def _explain(self, what: str) -> str:
        return f"{what}. The end of its log, {self.log_file}:\n{log_tail(self.log_file)}"


def log_tail(log_file: Path) -> str:
    """The last lines of a log, indented, for an error message."""
    try:
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    return "\n".join(f"    {line}" for line in lines[-_LOG_TAIL_LINES:]) or "    (empty)"


def die_with_parent(with_signal: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """A `preexec_fn` after which the kernel sends the child `with_signal` when we die, however we die (Linux only).

    Source: prctl(2), PR_SET_PDEATHSIG. It means the thread that started the child, which must last as long as we do.
    """
    if not sys.platform.startswith("linux"):
        return None
    libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def ask_the_kernel() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # We died before the kernel knew of the wish.

    return ask_the_kernel


def pick_port(preferred: int | None = None) -> int:
    """`preferred` when nobody listens there, else a free port of 127.0.0.1."""
    for port in (preferred, 0):
        # A server that listens on every address does not stop us from binding this one on all systems.
        if port is None or (port and answers(port)):
            continue
        with socket.socket() as candidate:
            # Without it, a port whose last connections linger in TIME_WAIT looks busy.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((HOST, port))
            except OSError:
                continue
            return int(candidate.getsockname()[1])
    raise StartError(f"no port is free on {HOST}")


def answers(port: int) -> bool:
    """Whether somebody accepts connections on this port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


class _Starter:
    """A thread that lasts as long as this process and starts every child.

    The kernel's parent-death signal (`die_with_parent`) comes when the *thread* that forked ends, so a child must not
    be forked by a pool's thread that is gone a moment later.
    """

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[
            tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]
        ] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="starts child processes", daemon=True).start()

    def run(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        answer: Future[subprocess.Popen[bytes]] = Future()
        self._orders.put((start, answer))
        return answer.result()

    def _work(self) -> None:
        while True:
            start, answer = self._orders.get()
            try:
                answer.set_result(start())
            except BaseException as error:  # noqa: BLE001  It is raised in the thread that asked.
                answer.set_exception(error)


_starter: _Starter | None = None
_starter_lock: Final = threading.Lock()


def in_lasting_thread(start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Start a child from the thread that lasts, so that `die_with_parent` means our end and no other thread's."""
    global _starter  # noqa: PLW0603  One for the whole process, started when first needed.
    with _starter_lock:
        if _starter is None:
            _starter = _Starter()
    return _starter.run(start)
