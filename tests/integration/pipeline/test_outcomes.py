"""What becomes of a message, by its outcome."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from hypothesis import given
from hypothesis import strategies as st

from campaign_jobs.catalog import EMAIL, EventJobType
from campaign_jobs.worker.delivery import Coordinates
from campaign_jobs.worker.messages import Received, body_of
from campaign_jobs.worker.outcomes import Done, Later, Outcome, Rejected, Retry, Skipped
from campaign_jobs.worker.settle import MAX_BACKOFF, backoff
from tests.integration.invocations import (
    TOPIC,
    Context,
    RecordingQueues,
    ScriptedJob,
    event,
    from_kafka,
    from_sqs,
    settings_of,
    url_of,
    value_of,
)
from tests.integration.pipeline.pipelines import pipeline_of


def delivered(outcome: Outcome, *, job_type: EventJobType = EMAIL, body: Any = None) -> tuple[Any, ...]:
    queues, job = RecordingQueues(), ScriptedJob(lambda delivery: outcome)
    pipeline = pipeline_of(job_type, job, queues)
    counts = pipeline.handle(from_kafka(value_of(event())) if body is None else from_sqs(body), Context())
    return counts, queues.sent, job


@pytest.mark.parametrize(
    ("outcome", "name"), [(Done(), "processed"), (Skipped("verified already"), "skipped")]
)
def test_what_is_finished_goes_nowhere(outcome: Outcome, name: str) -> None:
    counts, sent, job = delivered(outcome)
    assert counts == {name: 1}
    assert not sent
    assert not job.given_up


def test_what_is_rejected_is_given_up_and_kept() -> None:
    counts, ((queue, text, delay),), job = delivered(Rejected("never"))
    assert counts == {"dead_lettered": 1}
    assert (queue, delay) == (url_of("DEAD_LETTER_QUEUE_URL_EMAIL"), 0)
    letter = json.loads(text)
    assert letter["dead_letter"]["reason"] == "never"
    assert letter["dead_letter"]["attempts"] == 1
    assert job.given_up == [("good", "never")]


def test_a_retry_spends_attempts_up_to_the_last_and_a_redrive_counts_anew() -> None:
    body: Any = None
    for attempt in range(1, EMAIL.max_attempts):
        counts, ((queue, text, delay),), job = delivered(Retry("down"), body=body)
        assert counts == {"retried": 1}
        assert queue == url_of("RETRY_QUEUE_URL_EMAIL")
        body = json.loads(text)
        assert (body["attempts"], body["reason"]) == (attempt, "down")
        assert 0 < delay <= MAX_BACKOFF.total_seconds()
        assert not job.given_up
        assert job.batches[0][0].attempts_spent == attempt - 1
        body["not_before"] = "2025-01-01T00:00:00+00:00"
    counts, ((queue, text, _),), job = delivered(Retry("down"), body=body)
    assert counts == {"dead_lettered": 1}
    assert queue == url_of("DEAD_LETTER_QUEUE_URL_EMAIL")
    reason = f"down (gave up after {EMAIL.max_attempts} attempts)"
    assert job.given_up == [("good", reason)]
    letter = json.loads(text)
    assert (letter["attempts"], letter["dead_letter"]["reason"]) == (EMAIL.max_attempts, reason)
    assert (letter["dead_letter"]["attempts"], letter["offset"]) == (EMAIL.max_attempts, 40)

    with time_machine.travel(datetime(2030, 1, 1, tzinfo=UTC), tick=False):
        counts, ((queue, text, _),), job = delivered(Retry("down"), body=letter)
    assert counts == {"retried": 1}
    assert json.loads(text)["attempts"] == 1
    assert job.batches[0][0].attempts_spent == 0
    # Patience with missing rows begins anew as well.
    assert job.batches[0][0].first_received_at == datetime(2030, 1, 1, tzinfo=UTC)


def test_a_redriven_letter_does_not_wait_for_a_time_that_its_record_had_to_wait_for() -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    received = Received(Coordinates(TOPIC, 0, 0), value_of(event()), later, later, 3)
    body = {**body_of(received, not_before=later), "dead_letter": {"reason": "no"}}
    counts, sent, _ = delivered(Done(), body=body)
    assert counts == {"processed": 1}
    assert not sent


def test_later_spends_nothing_and_keeps_when_it_was_first_received() -> None:
    with time_machine.travel(datetime(2030, 1, 1, tzinfo=UTC), tick=False):
        counts, ((_, text, delay),), _ = delivered(Later("claimed", timedelta(seconds=7.2)))
    assert counts == {"postponed": 1}
    assert delay == 8
    body = json.loads(text)
    assert (body["attempts"], body["reason"]) == (0, "claimed")
    assert datetime.fromisoformat(body["not_before"]) == datetime(2030, 1, 1, 0, 0, 7, 200_000, tzinfo=UTC)
    with time_machine.travel(datetime(2030, 1, 1, 0, 0, 8, tzinfo=UTC), tick=False):
        counts, sent, job = delivered(Done(), body=body)
    assert counts == {"processed": 1}
    assert job.batches[0][0].first_received_at == datetime(2030, 1, 1, tzinfo=UTC)
    assert not sent


def test_a_long_wait_takes_several_hops_without_asking_the_job() -> None:
    with time_machine.travel(datetime(2030, 1, 1, tzinfo=UTC), tick=False) as clock:
        _, ((_, text, delay),), _ = delivered(Retry("503", timedelta(minutes=40)))
        hops = 0
        while True:
            # RecordingQueues keeps the delay that was wanted; SQS takes at most fifteen minutes of it.
            clock.shift(min(delay, 900))
            counts, sent, job = delivered(Done(), body=text)
            if counts == {"processed": 1}:
                break
            assert counts == {"postponed": 1}
            assert not job.batches
            ((_, text, delay),) = sent
            assert json.loads(text)["attempts"] == 1
            hops += 1
        assert hops == 2
        assert datetime.now(UTC) == datetime(2030, 1, 1, 0, 40, tzinfo=UTC)
        assert job.batches[0][0].attempts_spent == 1


@given(st.integers(0, 1000), st.timedeltas(timedelta(milliseconds=1), timedelta(days=2)))
def test_the_backoff_grows_and_stays_within_its_bounds(spent: int, first: timedelta) -> None:
    full = timedelta(seconds=min(first.total_seconds() * 2.0**spent, MAX_BACKOFF.total_seconds()))
    for _ in range(5):
        assert full * 0.499 <= backoff(spent, first) <= full


def test_the_attempts_of_a_mail_outlast_two_hours_without_ses() -> None:
    first_delay = settings_of(EMAIL).retry_first_delay
    waits = [backoff(spent, first_delay) for spent in range(EMAIL.max_attempts - 1)]
    assert timedelta(hours=2) < sum(waits, timedelta()) < timedelta(hours=5)
