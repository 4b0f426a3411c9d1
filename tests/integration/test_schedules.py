"""A schedule sends the event that EventBridge documents, tick by tick, and one bad run does not end it."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aws_lambda_powertools.utilities.data_classes import EventBridgeEvent

from local.functions import Function, FunctionConfiguration, FunctionFailed
from local.schedules import MAX_RUNNING, Schedule

SOON = timedelta(milliseconds=10)
NEVER = timedelta(days=1)


class Recorder:
    """Keeps its events, and tells when there are enough of them."""

    def __init__(self, enough: int = 1, act: Callable[[], Any] = lambda: "done") -> None:
        self.events: list[dict[str, Any]] = []
        self.enough = threading.Event()
        self._wanted, self._act = enough, act

    def invoke(self, event: dict[str, Any]) -> Any:
        self.events.append(event)
        if len(self.events) >= self._wanted:
            self.enough.set()
        return self._act()


def fail() -> None:
    raise FunctionFailed("RuntimeError", "on purpose")


def test_the_event_is_eventbridges(repository: Path) -> None:
    function = Recorder()
    before = datetime.now(UTC).replace(microsecond=0)
    assert Schedule("campaign-jobs-local-analytics", NEVER, function).fire() == "done"
    (event,) = function.events

    recorded = json.loads((repository / "tests/events/scheduled.json").read_text(encoding="utf-8"))
    assert {key: type(value) for key, value in event.items()} == {
        key: type(value) for key, value in recorded.items()
    }
    constant = ("version", "detail-type", "source", "region", "detail")
    assert [event[key] for key in constant] == [recorded[key] for key in constant]
    parsed = EventBridgeEvent(event)
    assert parsed.resources == ["arn:aws:events:us-east-1:000000000000:rule/campaign-jobs-local-analytics"]
    assert before <= datetime.strptime(parsed.time, "%Y-%m-%dT%H:%M:%S%z") <= datetime.now(UTC)


def test_it_ticks_with_a_new_event_each_time() -> None:
    function = Recorder(enough=3)
    schedule = Schedule("rule", SOON, function)
    with schedule:
        assert function.enough.wait(60)
    assert len({event["id"] for event in function.events}) == len(function.events) >= 3
    assert (schedule.runs, schedule.failed_runs) == (len(function.events), 0)


def test_a_failed_run_does_not_end_the_ticking_and_fire_raises() -> None:
    function = Recorder(enough=3, act=fail)
    kept: list[str] = []
    schedule = Schedule("rule", SOON, function, kept.append)
    with schedule:
        assert function.enough.wait(60)
    assert schedule.failed_runs == schedule.runs == len(function.events)
    records = [json.loads(record) for record in kept]
    assert [record["requestPayload"] for record in records] == function.events
    assert {record["responsePayload"]["errorMessage"] for record in records} == {"on purpose"}
    assert {record["requestContext"]["condition"] for record in records} == {"RetriesExhausted"}
    with pytest.raises(FunctionFailed, match="on purpose"):
        schedule.fire()


def test_a_tick_does_not_wait_for_the_run_before_it_but_runs_do_not_pile_up() -> None:
    together = threading.Barrier(MAX_RUNNING + 1)
    release = threading.Event()

    def meet() -> None:
        together.wait(60)
        assert release.wait(60)

    function = Recorder(act=meet)
    schedule = Schedule("rule", SOON, function)
    schedule.start()
    # Passed only when two runs are under way at once.
    together.wait(60)
    while not schedule.missed_ticks:
        threading.Event().wait(0.01)
    assert len(function.events) == MAX_RUNNING
    assert schedule.stop(timeout_seconds=0.01) is False
    release.set()
    assert schedule.stop() is True
    assert schedule.runs == MAX_RUNNING


def test_stop_waits_for_the_run_under_way() -> None:
    ended = []

    def run() -> None:
        threading.Event().wait(0.2)
        ended.append(True)

    function = Recorder(act=run)
    with Schedule("rule", SOON, function):
        assert function.enough.wait(60)
    assert len(ended) == len(function.events)


def test_a_real_function_is_invoked(tmp_path: Path) -> None:
    handler = tmp_path / "handler.py"
    handler.write_text("def handler(event, context): return event['resources']\n", encoding="utf-8")
    configuration = FunctionConfiguration(
        name="sample", handler=handler, timeout_seconds=30, memory_mb=128, log_dir=tmp_path
    )
    with Function(configuration) as function:
        schedule = Schedule("rule", NEVER, function)
        assert schedule.fire() == ["arn:aws:events:us-east-1:000000000000:rule/rule"]
        assert schedule.last_result == schedule.fire()


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed is a positive one"):
        Schedule("rule", timedelta(), Recorder())
