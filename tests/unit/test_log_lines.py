"""A batch's lines are written faster than one by one, and are the same lines."""

import io
import json
import logging
from typing import Any

import pytest

from campaign_jobs.observability import log_each, logger_of

ENTRIES: list[dict[str, object]] = [
    {"event_id": "1", "outcome": "done", "attempts_spent": 0, "offset": 7},
    {"event_id": 'two "quoted"\nlines, ünïcode \u2028', "outcome": "retry", "reason": "r"},
    {"outcome": "rejected", "offset": 2**62},
]


@pytest.fixture
def written(request: pytest.FixtureRequest) -> tuple[str, io.StringIO]:
    """A service, and what its logger writes."""
    service = request.node.name
    handler = logger_of(service).registered_handler
    assert isinstance(handler, logging.StreamHandler)
    handler.stream = io.StringIO()
    return service, handler.stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """The lines, and nothing that tells when and where each was written."""
    parsed = [json.loads(line) for line in stream.getvalue().split("\n") if line]
    stream.truncate(stream.seek(0))
    return [{name: value for name, value in line.items() if name not in WHEN_AND_WHERE} for line in parsed]


WHEN_AND_WHERE = {"timestamp", "location"}


def test_the_lines_are_those_of_logging_one_by_one(written: tuple[str, io.StringIO]) -> None:
    service, stream = written
    logger = logger_of(service)
    logger.set_correlation_id("a request")
    for entry in ENTRIES:
        logger.warning("event settled", extra=entry)
    one_by_one = lines(stream)
    log_each(logger, logging.WARNING, "event settled", ENTRIES)
    assert lines(stream) == one_by_one
    assert one_by_one[0] == {
        "level": "WARNING", "message": "event settled", "service": service, "correlation_id": "a request", **ENTRIES[0]
    }  # fmt: skip


def test_each_line_says_when_and_where(written: tuple[str, io.StringIO]) -> None:
    service, stream = written
    log_each(logger_of(service), logging.INFO, "event settled", ENTRIES)
    for line in map(json.loads, stream.getvalue().rstrip("\n").split("\n")):
        assert line["timestamp"].endswith("+00:00")
        assert line["location"].startswith("test_each_line_says_when_and_where:")


def test_a_level_that_is_switched_off_writes_nothing(written: tuple[str, io.StringIO]) -> None:
    service, stream = written
    logger_of(service).setLevel(logging.WARNING)
    log_each(logger_of(service), logging.INFO, "event settled", ENTRIES)
    log_each(logger_of(service), logging.WARNING, "event settled", [])
    assert stream.getvalue() == ""
    assert lines(stream) == []
    log_each(logger_of(service), logging.WARNING, "event settled", ENTRIES)
    assert len(lines(stream)) == len(ENTRIES)
