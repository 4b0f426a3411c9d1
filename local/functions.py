"""Stand-in for Lambda's execution environments: each runs a real handler in a process of its own."""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from campaign_jobs.errors import CampaignJobsError
from local.processes import die_with_parent, in_lasting_thread
from local.runtime import receive_frame, send_frame

REPOSITORY: Final = Path(__file__).resolve().parent.parent
PYTHON_PATH: Final = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'layers' / 'campaign_jobs' / 'python'}"

INIT_TIMEOUT_SECONDS: Final = 60
"""For importing the handler. Lambda gives ten seconds; a busy laptop deserves more."""
GRACE_SECONDS: Final = 5
RUNTIME_MB: Final = 64
"""What a process may have resident besides its function's memory: interpreter and libraries, with pages it shares."""
MEMORY_LOOK_MILLISECONDS: Final = 20
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

log = logging.getLogger(__name__)


class FunctionFailed(CampaignJobsError):
    """An invocation failed; `error_type` is the exception's class as Lambda reports it."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(f"{error_type}: {message}")
        self.error_type = error_type
        self.message = message


class FunctionCrashed(FunctionFailed):
    """The process ended in the midst of an invocation."""


class FunctionTimedOut(FunctionFailed):
    """The invocation outran the function's timeout and its process was killed."""


@dataclass(frozen=True, kw_only=True)
class FunctionConfiguration:
    """What a deployed function's configuration says, and where its logs go."""

    name: str
    handler: Path
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout_seconds: float
    memory_mb: int
    """MiB of resident memory, besides RUNTIME_MB, above which the process is killed as by Lambda (on Linux)."""
    log_dir: Path
    aws_endpoint_url: str | None = None
    region: str = "us-east-1"
    on_log_line: Callable[[str, str], None] | None = None
    """Called with the function's name and each line it logs, from a thread of its own."""

    def process_environment(self) -> dict[str, str]:
        """Everything the process sees: nothing of ours leaks in but PATH, just as in Lambda."""
        defaults = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": PYTHON_PATH,
            "PYTHONUNBUFFERED": "1",
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            # Stand-ins take any credentials, and real ones must never be found by accident.
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_LAMBDA_FUNCTION_NAME": self.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(self.memory_mb),
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{self.name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": f"local/[$LATEST]{uuid.uuid4().hex}",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "POWERTOOLS_SERVICE_NAME": self.name,
            "POWERTOOLS_METRICS_NAMESPACE": "campaign-jobs",
            "POWERTOOLS_TRACE_DISABLED": "true",
        }
        if self.aws_endpoint_url is not None:
            defaults["AWS_ENDPOINT_URL"] = self.aws_endpoint_url
        return {**defaults, **self.environment}


class FunctionEnvironment:
    """One execution environment: a process that is started by the first invocation and serves one at a time."""

    def __init__(self, configuration: FunctionConfiguration) -> None:
        self._configuration = configuration
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._log_reader: threading.Thread | None = None
        self.cold_starts = 0

    @property
    def pid(self) -> int | None:
        """The process, or None before the first invocation and after one that ended it."""
        return None if self._process is None else self._process.pid

    def invoke(self, event: dict[str, Any], *, qualifier: str | None = None) -> Any:
        """Hand the event to the handler and return its result. `qualifier` is the alias that is invoked, if any.

        Raises FunctionFailed when the handler raises, FunctionCrashed when its process ends and FunctionTimedOut
        when it takes too long; after the last two the next invocation starts a new process.
        """
        if self._process is not None and self._process.poll() is not None:
            # It ended between two invocations; Lambda would start another one without a word, too.
            self._discard()
        if self._process is None:
            self._start()
        assert self._channel is not None
        configuration = self._configuration
        deadline = time.monotonic() + configuration.timeout_seconds
        request = {
            "event": event,
            "qualifier": qualifier,
            "request_id": str(uuid.uuid4()),
            "deadline_ms": int((time.time() + configuration.timeout_seconds) * 1000),
        }
        try:
            send_frame(self._channel, request, deadline)
            answer = self._receive(deadline)
        except TimeoutError:
            self._discard()
            seconds = f"{configuration.timeout_seconds:g}"
            raise FunctionTimedOut(
                "Sandbox.Timedout", f"{configuration.name} took over {seconds} s"
            ) from None
        except BrokenPipeError:
            answer = None
        return self._result(answer)

    def close(self) -> None:
        """End the process, by force where it does not leave once its socket closes."""
        if self._process is None:
            return
        assert self._channel is not None
        self._channel.close()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        self._discard()

    def _start(self) -> None:
        configuration = self._configuration
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "local.runtime", str(theirs.fileno())]
            command += [configuration.name, str(configuration.handler)]
            self._process = in_lasting_thread(
                lambda: subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=configuration.process_environment(),
                    # Lambda's working directory is that of the code, too.
                    cwd=configuration.handler.parent,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509
                )
            )
        self._channel = ours
        assert self._process.stdout is not None
        self._log_reader = threading.Thread(
            target=self._copy_log,
            args=(self._process.stdout,),
            name=f"log of {configuration.name}",
            daemon=True,
        )
        self._log_reader.start()
        self.cold_starts += 1
        log.debug("%s: cold start in process %d", configuration.name, self._process.pid)
        try:
            answer = self._receive(time.monotonic() + INIT_TIMEOUT_SECONDS)
        except TimeoutError:
            self._discard()
            message = f"{configuration.name} was not imported within {INIT_TIMEOUT_SECONDS} s"
            raise FunctionTimedOut("Sandbox.Timedout", message) from None
        if answer is None or "error" in answer:
            try:
                self._result(answer)
            finally:
                self._discard()

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        """The process's next frame, while looking at its memory; None once it has ended.

        What it takes faster than we look it has for a moment, and what it gives back in between we never see.
        """
        assert self._channel is not None and self._process is not None
        answered = select.poll()
        answered.register(self._channel, select.POLLIN)
        while time.monotonic() < deadline and not answered.poll(MEMORY_LOOK_MILLISECONDS):
            used_mb = _resident_mb(self._process.pid)
            if used_mb > self._configuration.memory_mb + RUNTIME_MB:
                log.warning("%s: killed at %d MiB of memory", self._configuration.name, used_mb)
                self._process.kill()
                break
        return receive_frame(self._channel, deadline)

    def _result(self, answer: dict[str, Any] | None) -> Any:
        if answer is None:
            raise self._crash()
        if (error := answer.get("error")) is not None:
            raise FunctionFailed(error["type"], error["message"])
        return answer.get("result")

    def _crash(self) -> FunctionCrashed:
        assert self._process is not None
        try:
            status = self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._discard()
            return FunctionCrashed("Runtime.ExitError", f"{self._configuration.name} closed its socket")
        self._discard()
        how = (
            f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        )
        return FunctionCrashed("Runtime.ExitError", f"{self._configuration.name} {how}")

    def _discard(self) -> None:
        """Leave nothing behind of the process: what it started, its socket, and its log's last lines."""
        if self._process is None:
            return
        try:
            # It leads a group of its own, in which a grandchild may have outlived it.
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # Nobody of the group is left.
        self._process.wait()
        assert self._channel is not None and self._log_reader is not None
        self._channel.close()
        # A grandchild that left the group may hold the pipe open for ever.
        self._log_reader.join(GRACE_SECONDS)
        self._process = self._channel = self._log_reader = None

    def _copy_log(self, lines: IO[bytes]) -> None:
        configuration = self._configuration
        configuration.log_dir.mkdir(parents=True, exist_ok=True)
        with lines, (configuration.log_dir / f"{configuration.name}.log").open("ab", buffering=0) as log_file:
            for line in lines:
                # One unbuffered write for each line: the environments of a function append to the same file.
                log_file.write(line if line.endswith(b"\n") else line + b"\n")
                if configuration.on_log_line is None:
                    continue
                try:
                    configuration.on_log_line(
                        configuration.name, line.decode("utf-8", "replace").rstrip("\r\n")
                    )
                except Exception:
                    # The function would stop at a full pipe if nobody went on reading.
                    log.exception("%s: a log line could not be shown", configuration.name)


def _resident_mb(pid: int) -> int:
    """The process's resident memory in MiB; 0 once it has ended, and where there is no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * _PAGE_BYTES // 2**20


class Function:
    """A function with up to `max_concurrency` execution environments, for any number of threads that invoke it."""

    def __init__(self, configuration: FunctionConfiguration, *, max_concurrency: int = 1) -> None:
        self.configuration = configuration
        self._places = threading.Semaphore(max_concurrency)
        self._lock = threading.Lock()
        self._idle: list[FunctionEnvironment] = []
        self._all: list[FunctionEnvironment] = []
        self.invocations = 0
        self.failures = 0

    @property
    def name(self) -> str:
        return self.configuration.name

    @property
    def cold_starts(self) -> int:
        with self._lock:
            return sum(environment.cold_starts for environment in self._all)

    def pids(self, *, busy: bool) -> list[int]:
        """The processes of its environments: those in an invocation, or all."""
        with self._lock:
            chosen = [each for each in self._all if not (busy and each in self._idle)]
        return [pid for each in chosen if (pid := each.pid) is not None]

    def alias(self, name: str) -> "FunctionAlias":
        """What to invoke so that the handler sees the alias in its context's `invoked_function_arn`."""
        return FunctionAlias(self, name)

    def invoke(self, event: dict[str, Any], *, qualifier: str | None = None) -> Any:
        """Invoke in an idle environment, a new one, or the first that becomes idle. Raises FunctionFailed."""
        with self._places:
            with self._lock:
                # The one used last is the warmest.
                environment = self._idle.pop() if self._idle else self._add_environment()
                self.invocations += 1
            try:
                return environment.invoke(event, qualifier=qualifier)
            except FunctionFailed:
                with self._lock:
                    self.failures += 1
                raise
            finally:
                with self._lock:
                    self._idle.append(environment)

    def close(self) -> None:
        """End every environment. To be called once nobody invokes any more."""
        with self._lock:
            environments = list(self._all)
        for environment in environments:
            environment.close()

    def _add_environment(self) -> FunctionEnvironment:
        environment = FunctionEnvironment(self.configuration)
        self._all.append(environment)
        return environment

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class FunctionAlias:
    """An alias of a function's $LATEST: the same execution environments under another name."""

    function: Function
    name: str

    def invoke(self, event: dict[str, Any]) -> Any:
        """Invoke the function by this alias. Raises FunctionFailed."""
        return self.function.invoke(event, qualifier=self.name)
