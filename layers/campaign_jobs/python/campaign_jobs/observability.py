"""The one place that sets up logs and metrics.

Logs are JSON lines: a static message plus ids. No addresses and no payloads go in.
"""

import logging
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from aws_lambda_powertools import Logger
from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter
from aws_lambda_powertools.metrics import Metrics, MetricUnit

from campaign_jobs.catalog import FUNCTION_DIMENSION, METRICS_NAMESPACE
from campaign_jobs.settings import function_name


class _Formatter(LambdaPowertoolsFormatter):
    """Powertools' own; lines that `log_each` has finished already go out as they are."""

    def format(self, record: logging.LogRecord) -> str:
        finished: str | None = getattr(record, "finished_lines", None)
        return super().format(record) if finished is None else finished


@cache
def logger_of(service: str) -> Logger:
    """The logger of one job type; its lines carry the service's name."""
    return Logger(service=service, logger_formatter=_Formatter(utc=True, use_rfc3339=True))


def log_each(logger: Logger, level: int, message: str, entries: Iterable[Mapping[str, object]]) -> None:
    """Write a line for each entry, as `logger.info(message, extra=entry)` would; `level` is one of logging's.

    What the lines share is put together once, and they are written at once: of a batch of a thousand, logging one by
    one would take as long as all the rest.
    """
    # Whoever has a batch of events has it loaded already; the others do without.
    from pydantic_core import to_json

    plain = logging.getLogger(logger.name)
    if not plain.isEnabledFor(level):
        return
    file, line_number, caller, _ = plain.findCaller(stacklevel=2)
    record = plain.makeRecord(plain.name, level, file, line_number, message, (), None, caller)
    begin = logger.registered_formatter.format(record).rstrip().removesuffix("}")
    lines = [f"{begin},{to_json(entry, fallback=str).decode()[1:]}" for entry in entries]
    if lines:
        record.finished_lines = "\n".join(lines)
        plain.handle(record)


def log_unexpected(logger: Logger, message: str, error: Exception, *, event_id: str) -> None:
    """Log an error that nobody foresaw: its kind and where it happened.

    Not its text: PostgreSQL's, for one, quotes the row.
    """
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error(message, extra={"event_id": event_id, "error": type(error).__name__, "where": where})


def publish_metrics(
    service: str,
    counts: Mapping[str, float],
    seconds: Mapping[str, float] | None = None,
    **dimensions: str,
) -> None:
    """Write one line of metrics in CloudWatch's embedded metric format: counts, and durations in seconds.

    Its dimensions are the service, the function's name, which tells the environments of an account apart, and those
    that are given.
    """
    metrics = Metrics(namespace=METRICS_NAMESPACE, service=service)
    for name, text in (_of_this_function() | dimensions).items():
        metrics.add_dimension(name, text)
    for name, value in counts.items():
        metrics.add_metric(name=name, unit=MetricUnit.Count, value=value)
    for name, value in (seconds or {}).items():
        metrics.add_metric(name=name, unit=MetricUnit.Seconds, value=value)
    metrics.flush_metrics()


@contextmanager
def measuring_run(service: str) -> Iterator[dict[str, float]]:
    """Publish the counts that the block puts in, its duration, and as `errors` whether it raised."""
    counts = {"errors": 1.0}
    started = time.monotonic()
    try:
        yield counts
        counts["errors"] = 0.0
    finally:
        publish_metrics(service, counts, {"duration": time.monotonic() - started})


def _of_this_function() -> dict[str, str]:
    name = function_name()
    return {} if name is None else {FUNCTION_DIMENSION: name}
