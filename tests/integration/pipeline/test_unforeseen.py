"""What nobody foresaw: errors, queues that are gone, and what a log line says of a record."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from campaign_jobs import events
from campaign_jobs.catalog import EMAIL
from campaign_jobs.database.batches import Refusal
from campaign_jobs.errors import DatabaseUnavailable, OutOfTime, QueueUnavailable
from campaign_jobs.worker import pipeline as pipeline_module
from campaign_jobs.worker.delivery import Deadline, Delivery
from campaign_jobs.worker.outcomes import Done, Later, Outcome, Rejected, Retry, Skipped
from campaign_jobs.worker.pipeline import SETTLING_SECONDS, Pipeline
from campaign_jobs.worker.queues import SEND_SECONDS
from tests.integration.invocations import (
    UUIDS,
    Context,
    RecordingQueues,
    ScriptedJob,
    event,
    from_kafka,
    from_sqs,
    value_of,
)
from tests.integration.pipeline.pipelines import database, unroutable_of


@contextmanager
def logged(service: str) -> Iterator[list[dict[str, Any]]]:
    """The lines that a job type's logger writes."""
    lines: list[dict[str, Any]] = []
    logger = logging.getLogger(service)
    formatter = logger.handlers[0].formatter or logging.Formatter()

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.extend(map(json.loads, formatter.format(record).split("\n")))

    handler = Keeping()
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def test_an_unexpected_error_is_narrowed_down_to_its_event(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    def outcome(delivery: Delivery[Any]) -> Outcome:
        if delivery.event.id == "5":
            raise ZeroDivisionError(delivery.event.data.user_id)
        return Done()

    job.outcome = outcome
    with logged("email") as lines:
        counts = pipeline.handle(
            from_kafka(*(value_of(event(event_id=str(number))) for number in range(9))), Context()
        )
    (line,) = [line for line in lines if line["message"] == "unexpected error"]
    assert (line["event_id"], line["error"], line["level"]) == ("5", "ZeroDivisionError", "ERROR")
    assert "in outcome" in line["where"]
    # The text of an error may hold anything.
    assert UUIDS[1] not in json.dumps(lines)
    assert counts == {"processed": 8, "retried": 1}
    (body,) = queues.take("RETRY_QUEUE_URL_EMAIL")
    assert (body["offset"], body["reason"], body["attempts"]) == (45, "unexpected ZeroDivisionError", 1)


def test_a_record_that_cannot_even_be_read_as_foreseen_leaves_its_neighbors_alone(
    pipeline: Pipeline, queues: RecordingQueues, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = events.parse

    def breaks_on_five(decoded: dict[str, Any], **arguments: Any) -> Any:
        if decoded["id"] == "5":
            raise ZeroDivisionError
        return parse(decoded, **arguments)

    monkeypatch.setattr(events, "parse", breaks_on_five)
    batch = from_kafka(*(value_of(event(event_id=str(number))) for number in range(9)))
    assert pipeline.handle(batch, Context()) == {"processed": 8, "retried": 1}
    (body,) = queues.take("RETRY_QUEUE_URL_EMAIL")
    assert (body["offset"], body["reason"], body["attempts"]) == (45, "unexpected ZeroDivisionError", 1)
    worn_out = {**body, "attempts": EMAIL.max_attempts - 1}
    assert pipeline.handle(from_sqs(worn_out), Context()) == {"dead_lettered": 1}
    (dead,) = queues.take("DEAD_LETTER_QUEUE_URL_EMAIL")
    assert dead["dead_letter"]["reason"].startswith("unexpected ZeroDivisionError (gave up after")


def test_an_unexpected_error_in_giving_up_neither_loses_nor_stops_anything(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.outcome = lambda delivery: Rejected("never")
    give_up = job.give_up

    def breaking(
        given_up: Sequence[tuple[Delivery[Any], str]],
    ) -> Sequence[tuple[Delivery[Any], Refusal]]:
        if any(delivery.event.id == "2" for delivery, _ in given_up):
            raise ZeroDivisionError
        return give_up(given_up)

    monkeypatch.setattr(job, "give_up", breaking)
    assert pipeline.handle(
        from_kafka(*(value_of(event(event_id=str(number))) for number in range(5))), Context()
    ) == {"dead_lettered": 5}
    assert [event_id for event_id, _ in job.given_up] == ["0", "1", "3", "4"]
    assert [body["offset"] for body in queues.take("DEAD_LETTER_QUEUE_URL_EMAIL")] == [40, 41, 42, 43, 44]


def test_what_cannot_be_written_down_for_now_is_not_given_up_for_now(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    job.outcome = lambda delivery: Rejected("never")
    job.refusals = {"1": Refusal("a lock", passing=True), "3": Refusal("a constraint", passing=False)}
    values = [value_of(event(event_id=str(number))) for number in range(4)]
    with logged("email") as lines:
        assert pipeline.handle(from_kafka(*values), Context()) == {"dead_lettered": 3, "postponed": 1}
    assert [body["offset"] for body in queues.take("DEAD_LETTER_QUEUE_URL_EMAIL")] == [40, 42, 43]
    (body,) = queues.take("RETRY_QUEUE_URL_EMAIL")
    assert (body["offset"], body["attempts"]) == (41, 0)
    assert body["reason"] == "giving it up could not be written down: a lock"
    (line,) = [line for line in lines if line["message"] == "given up without being written down"]
    assert (line["event_id"], line["reason"]) == ("3", "a constraint")
    # It comes again, and is given up as soon as that can be written down.
    job.refusals = {}
    body["not_before"] = "2025-01-01T00:00:00+00:00"
    assert pipeline.handle(from_sqs(body), Context()) == {"dead_lettered": 1}
    assert ("1", "never") in job.given_up


def test_giving_up_leaves_the_queues_their_time(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "GIVING_UP_SECONDS", 0.5)
    ending = Deadline.of_invocation(lambda: round((SETTLING_SECONDS + 1) * 1000))

    class Ending(Context):
        def get_remaining_time_in_millis(self) -> int:
            return round(ending.remaining_seconds() * 1000)

    def waits_for_a_lock(_: object) -> None:
        with database().transaction() as connection:
            connection.execute("LOCK TABLE campaign_jobs.user_rewards")

    job.outcome = lambda delivery: Rejected("never")
    monkeypatch.setattr(job, "give_up", waits_for_a_lock)
    with database().transaction() as connection:
        url = connection.info.dsn
    with psycopg.connect(url) as service:
        service.execute("LOCK TABLE campaign_jobs.user_rewards")
        with pytest.raises(OutOfTime):
            pipeline.handle(from_kafka(value_of(event())), Ending())
    assert ending.remaining_seconds() > SEND_SECONDS
    assert not queues.sent


def test_every_line_about_a_record_has_its_ids_and_nothing_of_its_payload(
    pipeline: Pipeline, job: ScriptedJob
) -> None:
    outcomes: dict[str, Outcome] = {
        "a": Done(),
        "b": Skipped("s"),
        "c": Retry("r"),
        "d": Later("l", timedelta(1)),
        "e": Rejected("x"),
    }
    job.outcome = lambda delivery: outcomes[delivery.event.id]
    whole = [event(event_id=event_id) for event_id in outcomes]
    for each in whole:
        each["data"]["template_data"] = {"name": "Ada Lovelace"}
    with logged("email") as lines:
        pipeline.handle(
            from_kafka(*map(value_of, whole), b'{"type": "job.email.welcome", "id": "Ada"}'), Context()
        )
    settled = [line for line in lines if line["message"] == "event settled"]
    assert {line.get("event_id"): line["outcome"] for line in settled} == {
        "a": "done", "b": "skipped", "c": "retry", "d": "later", "e": "rejected", None: "rejected"
    }  # fmt: skip
    assert sorted(line["offset"] for line in settled) == list(range(40, 46))
    assert "Ada" not in json.dumps(lines)


def test_what_stops_the_batch_fails_it_and_spends_nothing(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    def outcome(delivery: Delivery[Any]) -> Outcome:
        raise DatabaseUnavailable("gone")

    job.outcome = outcome
    with pytest.raises(DatabaseUnavailable):
        pipeline.handle(from_kafka(value_of(event()), b'{"type": "job.email.welcome"}'), Context())
    assert not queues.sent
    assert len(job.batches) == 1


def test_a_queue_that_does_not_answer_fails_the_batch(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    queues.broken = True
    assert pipeline.handle(from_kafka(value_of(event())), Context()) == {"processed": 1}
    job.outcome = lambda delivery: Retry("no")
    with pytest.raises(QueueUnavailable):
        pipeline.handle(from_kafka(value_of(event())), Context())
    with pytest.raises(QueueUnavailable):
        pipeline.handle(from_sqs("not ours"), Context())
    for source in (from_kafka(None), from_sqs("not ours")):
        with pytest.raises(QueueUnavailable):
            unroutable_of(queues).handle(source, Context())
