"""Every record has one owner, in a lane, and is done in order and once."""

import hashlib
import json
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from campaign_jobs.catalog import EMAIL, POSITION, REWARD
from campaign_jobs.errors import UnknownLane
from campaign_jobs.worker.delivery import Coordinates
from campaign_jobs.worker.messages import Received, body_of, dead_letter_of, read_body
from campaign_jobs.worker.outcomes import Retry
from campaign_jobs.worker.pipeline import Pipeline, lane_of
from tests.integration.invocations import (
    BAD,
    GOOD,
    HEARTBEAT,
    TOPIC,
    Context,
    RecordingQueues,
    ScriptedJob,
    event,
    from_kafka,
    from_sqs,
    url_of,
    value_of,
)
from tests.integration.pipeline.pipelines import pipeline_of, unroutable_of

# Every record has one owner.


@pytest.mark.parametrize("kind", BAD)
def test_each_bad_record_becomes_one_dead_letter_among_its_good_neighbors(kind: str) -> None:
    value, owner, reason = BAD[kind]
    queues = RecordingQueues()
    # Whatever the mappings' filters let through, each function is handed everything.
    batch = from_kafka(*GOOD[:4], value, HEARTBEAT, *GOOD[4:])
    done = []
    for job_type in (EMAIL, POSITION, REWARD):
        job = ScriptedJob()
        counts = pipeline_of(job_type, job, queues).handle(batch, Context())
        done += job.ids
        mine = len(job_type.event_types)
        bad = 1 if owner == job_type.name else 0
        others = len(GOOD) + 1 - mine - bad
        expected = {"processed": mine, "ignored": others, "dead_lettered": bad, "heartbeats": 1}
        assert counts == {name: count for name, count in expected.items() if count}
    counts = unroutable_of(queues).handle(batch, Context())
    assert counts["dead_lettered"] == (1 if owner == "unroutable" else 0)
    assert Counter(done) == {json.loads(good)["id"]: 1 for good in GOOD}

    ((queue, text, _),) = queues.sent
    assert queue == url_of(f"DEAD_LETTER_QUEUE_URL_{owner}")
    body = json.loads(text)
    assert (body["topic"], body["partition"], body["offset"]) == (TOPIC, 3, 44)
    assert body["dead_letter"]["job_type"] == owner
    assert reason in body["dead_letter"]["reason"]
    assert body["dead_letter"]["attempts"] == 0
    if kind == "too large":
        assert value is not None
        digest = hashlib.sha256(value).hexdigest()
        assert body["value_dropped"] == {"bytes": len(value), "sha256": digest}
        assert len(text) < 2_000
    else:
        assert read_body(text, now=datetime.now(UTC)).value == value


@pytest.mark.parametrize("kind", BAD)
def test_a_redriven_bad_record_ends_as_a_dead_letter_again_wherever_it_is_sent(kind: str) -> None:
    value, _, _ = BAD[kind]
    received = Received(Coordinates(TOPIC, 3, 44), value, datetime.now(UTC), datetime.now(UTC))
    letter = dead_letter_of(received, job_type="unroutable", reason="…", now=datetime.now(UTC))
    for job_type in (EMAIL, POSITION, REWARD):
        queues, job = RecordingQueues(), ScriptedJob()
        assert pipeline_of(job_type, job, queues).handle(from_sqs(letter), Context()) == {"dead_lettered": 1}
        ((queue, text, _),) = queues.sent
        assert queue == url_of(f"DEAD_LETTER_QUEUE_URL_{job_type.name}")
        assert not job.batches
        if kind == "too large":
            # The size and the hash of what could not be kept stay with it.
            body = json.loads(text)
            size = letter["value_dropped"]["bytes"]
            assert body["dead_letter"]["reason"] == (
                f"the value has {size} bytes and was not kept; allowed are at most 262144"
            )
            assert body["value_dropped"] == letter["value_dropped"]


def test_a_heartbeat_is_passed_in_silence_from_wherever_it_comes(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    received = Received(Coordinates(TOPIC, 0, 0), HEARTBEAT, datetime.now(UTC), datetime.now(UTC))
    for source, counted in ((from_kafka(HEARTBEAT), "heartbeats"), (from_sqs(body_of(received)), "ignored")):
        assert pipeline.handle(source, Context()) == {counted: 1}
        assert unroutable_of(queues).handle(source, Context()) == {counted: 1}
    assert not job.batches
    assert not queues.sent


def test_an_event_redriven_to_the_wrong_owner_says_where_it_belongs(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    received = Received(
        Coordinates(TOPIC, 0, 7), value_of(event("job.reward.deliver")), datetime.now(UTC), datetime.now(UTC)
    )
    letter = dead_letter_of(received, job_type="reward", reason="no", now=datetime.now(UTC))
    assert pipeline.handle(from_sqs(letter), Context()) == {"dead_lettered": 1}
    (body,) = queues.take("DEAD_LETTER_QUEUE_URL_EMAIL")
    assert (
        body["dead_letter"]["reason"] == "job.reward.deliver belongs to the job type reward: redrive it there"
    )
    assert not job.batches
    # The same record from Kafka is simply another one's.
    assert pipeline.handle(from_kafka(received.value), Context()) == {"ignored": 1}


@pytest.mark.parametrize(
    ("type_", "queue"),
    [
        ("job.email.welcome", "RETRY_QUEUE_URL_EMAIL"),
        ("job.email.milestone", "RETRY_QUEUE_URL_EMAIL_BULK"),
        ("job.position.recalculate", "RETRY_QUEUE_URL_POSITION"),
        ("job.reward.deliver", "RETRY_QUEUE_URL_REWARD"),
    ],
)
def test_unroutable_hands_on_what_has_an_owner_by_now(
    queues: RecordingQueues, type_: str, queue: str
) -> None:
    received = Received(
        Coordinates(TOPIC, 2, 9), value_of(event(type_)), datetime.now(UTC), datetime.now(UTC), 3
    )
    letter = dead_letter_of(received, job_type="unroutable", reason="unknown", now=datetime.now(UTC))
    assert unroutable_of(queues).handle(from_sqs(letter), Context()) == {"handed_on": 1}
    (body,) = queues.take(queue)
    assert not queues.sent
    assert (body["offset"], body["attempts"]) == (9, 0)
    assert "dead_letter" not in body
    assert read_body(json.dumps(body), now=datetime.now(UTC)).value == received.value
    # From the topic it leaves it to its owner.
    assert unroutable_of(queues).handle(from_kafka(received.value), Context()) == {"ignored": 1}


@pytest.mark.parametrize("milliseconds", [-1, -(2**62), 2**62, 253_402_300_800_000])
def test_a_time_that_no_calendar_has_does_not_stop_a_partition(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues, milliseconds: int
) -> None:
    job.outcome = lambda delivery: Retry("no")
    without_time = value_of(event(timestamp=None))
    assert pipeline.handle(from_kafka(without_time, b"x", timestamp=milliseconds), Context())["retried"] == 1
    assert unroutable_of(queues).handle(from_kafka(b"x", timestamp=milliseconds), Context()) == {
        "dead_lettered": 1
    }
    (body,) = queues.take("RETRY_QUEUE_URL_EMAIL")
    assert abs(
        read_body(json.dumps(body), now=datetime.now(UTC)).recorded_at - datetime.now(UTC)
    ) < timedelta(minutes=1)


# The lane of an invocation.

FUNCTION_ARN = "arn:aws:lambda:us-east-1:000000000000:function:campaign-jobs-test-email"


def test_the_alias_that_is_invoked_says_the_lane() -> None:
    for lane in EMAIL.lanes:
        assert lane_of(EMAIL, f"{FUNCTION_ARN}:{lane.name}") == lane


@pytest.mark.parametrize("alias", ["", ":$LATEST", ":position", ":7"])
def test_a_lane_that_cannot_be_known_stops_the_batch_where_there_are_several(
    alias: str, pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    context = Context()
    context.invoked_function_arn = f"{FUNCTION_ARN}{alias}"
    with pytest.raises(UnknownLane, match=r"allowed are email, email-bulk"):
        pipeline.handle(from_kafka(value_of(event())), context)
    assert not job.batches
    assert not queues.sent
    (only,) = REWARD.lanes
    assert lane_of(REWARD, context.invoked_function_arn) == only


# The order and the identity of events in a batch.


def test_the_more_urgent_comes_first_and_equals_stay_in_order(pipeline: Pipeline, job: ScriptedJob) -> None:
    def urgent(event_id: str, priority: int | None) -> bytes:
        whole = event(event_id=event_id)
        whole["data"]["priority"] = priority
        return value_of(whole)

    pipeline.handle(
        from_kafka(urgent("a", 0), urgent("b", 5), urgent("c", None), urgent("d", -1), urgent("e", 5)),
        Context(),
    )
    assert job.ids == ["b", "e", "a", "c", "d"]


def test_the_same_event_twice_in_a_batch_is_done_once(
    pipeline: Pipeline, job: ScriptedJob, queues: RecordingQueues
) -> None:
    job.outcome = lambda delivery: Retry("no")
    counts = pipeline.handle(
        from_kafka(value_of(event()), value_of(event()), value_of(event(event_id="other"))), Context()
    )
    assert counts == {"retried": 2, "skipped": 1}
    assert job.ids == ["good", "other"]
    assert [body["offset"] for body in queues.take("RETRY_QUEUE_URL_EMAIL")] == [40, 42]
