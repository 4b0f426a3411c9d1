"""Stand-in for EventBridge rules with a rate: it sends a function the scheduled event, tick by tick.

Shape: Amazon EventBridge User Guide, "Scheduled events". EventBridge invokes asynchronously, so a tick does not wait
for the one before it; it sends no retries here, because every schedule's next run makes up for a failed one.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from local.functions import FunctionFailed
from local.mappings import LOCAL_ACCOUNT, LOCAL_REGION, Invocable
from local.processes import Service

MAX_RUNNING: Final = 2
"""Runs of one rule side by side: a run and its successor, as the relay's hand-over needs. A further tick is missed."""

log = logging.getLogger(__name__)


class Schedule(Service):
    """One rule: invokes `function` once every `interval`, the first time one interval after `start`.

    `on_failure` stands in for the queue where the function's failed runs end, and gets what Lambda writes there.
    """

    def __init__(
        self,
        rule_name: str,
        interval: timedelta,
        function: Invocable,
        on_failure: Callable[[str], None] = lambda record: None,
    ) -> None:
        if interval <= timedelta():
            raise ValueError(f"interval={interval}; allowed is a positive one")
        self.rule_name = rule_name
        self.interval = interval
        self._function = function
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name=f"rule {rule_name}", daemon=True)
        self._lock = threading.Lock()
        self._running: set[threading.Thread] = set()
        self.runs = 0
        """Runs that have ended, failed ones included."""
        self.failed_runs = 0
        self.missed_ticks = 0
        self.last_result: Any = None
        self._enabled = threading.Event()
        self._enabled.set()

    def enable(self) -> None:
        self._enabled.set()

    def disable(self) -> None:
        """Tick no more until enabled; runs under way finish."""
        self._enabled.clear()

    def description(self) -> dict[str, Any]:
        """As EventBridge's API has it (DescribeRule)."""
        minutes = self.interval / timedelta(minutes=1)
        return {
            "Name": self.rule_name,
            "Arn": self._arn,
            # EventBridge knows whole minutes only; an interval below is one of a test's.
            "ScheduleExpression": f"rate({minutes:g} minute{'' if minutes == 1 else 's'})",
            "State": "ENABLED" if self._enabled.is_set() else "DISABLED",
        }

    @property
    def _arn(self) -> str:
        return f"arn:aws:events:{LOCAL_REGION}:{LOCAL_ACCOUNT}:rule/{self.rule_name}"

    def start(self) -> None:
        self._ticker.start()

    def fire(self) -> Any:
        """Invoke now, besides the ticks, and return the function's result. Raises FunctionFailed."""
        return self._invoke(self.event())

    def _invoke(self, event: dict[str, Any]) -> Any:
        try:
            result = self._function.invoke(event)
        except FunctionFailed as error:
            with self._lock:
                self.runs += 1
                self.failed_runs += 1
            log.warning("%s: the run failed, the next one makes up for it: %s", self.rule_name, error)
            raise
        with self._lock:
            self.runs += 1
            self.last_result = result
        log.info("%s: done", self.rule_name)
        return result

    def stop(self, timeout_seconds: float | None = None) -> bool:
        """Tick no more, and wait for the runs under way: for good, or this long. Whether all have ended."""
        self._stopping.set()
        if self._ticker.ident is not None:
            self._ticker.join()
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._lock:
            running = list(self._running)
        for run in running:
            run.join(None if deadline is None else max(deadline - time.monotonic(), 0))
        return not any(run.is_alive() for run in running)

    def event(self) -> dict[str, Any]:
        """The event that EventBridge would send now."""
        return {
            "version": "0",
            "id": str(uuid.uuid4()),
            "detail-type": "Scheduled Event",
            "source": "aws.events",
            "account": LOCAL_ACCOUNT,
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "region": LOCAL_REGION,
            "resources": [self._arn],
            "detail": {},
        }

    def _tick(self) -> None:
        seconds = self.interval.total_seconds()
        # Counted from the start, so that the ticks do not drift.
        due = time.monotonic() + seconds
        while not self._stopping.wait(max(due - time.monotonic(), 0)):
            if self._enabled.is_set():
                self._run_aside()
            due = max(due + seconds, time.monotonic())

    def _run_aside(self) -> None:
        with self._lock:
            if len(self._running) >= MAX_RUNNING:
                self.missed_ticks += 1
                log.warning(
                    "%s: %d runs are still under way, so this tick is missed", self.rule_name, MAX_RUNNING
                )
                return
            run = threading.Thread(target=self._run, name=f"run of {self.rule_name}", daemon=True)
            self._running.add(run)
        run.start()

    def _run(self) -> None:
        event = self.event()
        try:
            self._invoke(event)
        except FunctionFailed as error:
            # Counted and logged; nobody waits for a tick's result.
            self._on_failure(_failed_run(event, error))
        finally:
            with self._lock:
                self._running.discard(threading.current_thread())


def _failed_run(event: dict[str, Any], error: FunctionFailed) -> str:
    """Shape: AWS Lambda Developer Guide, Capturing records of Lambda asynchronous invocations."""
    record = {
        "version": "1.0",
        "timestamp": datetime.now(UTC).isoformat(),
        "requestContext": {"condition": "RetriesExhausted", "approximateInvokeCount": 1},
        "requestPayload": event,
        "responsePayload": {"errorMessage": error.message, "errorType": error.error_type},
    }
    return json.dumps(record)
