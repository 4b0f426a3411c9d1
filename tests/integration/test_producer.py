"""What a producer promises, asked of the one that writes to Apache Kafka and of the one that records for tests."""

import asyncio
import json
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from campaign_jobs import catalog
from campaign_jobs.errors import (
    BrokersUnreachable,
    InvalidEvent,
    ProducerClosed,
    SettingsError,
    UnknownTopic,
    ValueTooLarge,
)
from campaign_jobs.events import (
    EmailEvent,
    EmailJobPayload,
    PositionRecalcJobPayload,
    RewardDeliveryJobPayload,
    new_event,
)
from campaign_jobs.producer import AsyncJobProducer, EventProducer, JobProducer
from campaign_jobs.settings import KafkaSettings
from campaign_jobs.testing import RecordingProducer
from local.kafka import KafkaBroker, create_topic
from local.processes import HOST, pick_port

CAMPAIGN = UUID("6f1c2a34-0000-4000-8000-000000000001")
USER = UUID("6f1c2a34-0000-4000-8000-000000000002")
USER_REWARD = UUID("6f1c2a34-0000-4000-8000-000000000003")
VERIFICATION = EmailJobPayload(type="verification", campaign_id=CAMPAIGN, user_id=USER, priority=1)

Record = tuple[str | None, Any]
"""A key and the decoded JSON of a value."""


@pytest.fixture
def job_producer(kafka_broker: KafkaBroker, topic: str) -> Iterator[JobProducer]:
    with JobProducer(brokers=kafka_broker.bootstrap_servers, topic=topic) as producer:
        yield producer


@pytest.fixture(params=["Kafka", "recording"])
def producer(request: pytest.FixtureRequest) -> EventProducer:
    return request.getfixturevalue("job_producer") if request.param == "Kafka" else RecordingProducer()


@pytest.fixture
def read(producer: EventProducer, request: pytest.FixtureRequest) -> Callable[[], list[Record]]:
    """What has been published, by key."""

    def records() -> list[Record]:
        if isinstance(producer, RecordingProducer):
            found = [(key, json.loads(value)) for key, value in producer.messages]
        else:
            broker, topic = request.getfixturevalue("kafka_broker"), request.getfixturevalue("topic")
            found = [as_record(message) for message in messages_of(broker, topic)]
        return sorted(found, key=str)

    return records


def messages_of(broker: KafkaBroker, topic: str) -> list[Message]:
    """Everything on the topic, to the end that each partition has now."""
    consumer = Consumer(
        {"bootstrap.servers": broker.bootstrap_servers, "group.id": "readers", "log_level": 0}
    )
    try:
        partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        ends = {partition: end_of(consumer, topic, partition) for partition in partitions}
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        found: list[Message] = []
        while missing := sum(ends.values()) - len(found):
            batch = consumer.consume(missing, timeout=30)
            assert batch, "the broker stopped answering"
            assert all(message.error() is None for message in batch)
            found += batch
        return found
    finally:
        consumer.close()


def end_of(consumer: Consumer, topic: str, partition: int) -> int:
    while True:
        try:
            return int(consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=30)[1])
        except KafkaException as error:
            # For a moment after the topic's creation.
            if error.args[0].code() != KafkaError.NOT_LEADER_FOR_PARTITION:
                raise


def as_record(message: Message) -> Record:
    key, value = message.key(), message.value()
    assert value is not None
    return key.decode() if key is not None else None, json.loads(value)


def test_each_method_publishes_its_event_in_the_contract_s_envelope(
    producer: EventProducer, read: Callable[[], list[Record]]
) -> None:
    asked = datetime(2025, 1, 1, 12, tzinfo=UTC)
    email = producer.enqueue_email_job(VERIFICATION, timestamp=asked)
    position = producer.enqueue_position_recalc_job(
        PositionRecalcJobPayload(campaign_id=CAMPAIGN, points_per_referral=3),
        timestamp=asked,
        account_id="account 7",
    )
    reward = producer.enqueue_reward_delivery_job(
        RewardDeliveryJobPayload(user_reward_id=USER_REWARD), timestamp=asked, event_id="reward:1"
    )

    assert reward == "reward:1"
    assert UUID(email) != UUID(position)
    assert dict(read()) == {
        str(USER): {
            "id": email,
            "type": "job.email.verification",
            "account_id": str(CAMPAIGN),
            "campaign_id": str(CAMPAIGN),
            "data": {
                "type": "verification",
                "campaign_id": str(CAMPAIGN),
                "user_id": str(USER),
                "priority": 1,
            },
            "timestamp": "2025-01-01T12:00:00Z",
        },
        str(CAMPAIGN): {
            "id": position,
            "type": "job.position.recalculate",
            "account_id": "account 7",
            "campaign_id": str(CAMPAIGN),
            "data": {"campaign_id": str(CAMPAIGN), "points_per_referral": 3},
            "timestamp": "2025-01-01T12:00:00Z",
        },
        str(USER_REWARD): {
            "id": "reward:1",
            "type": "job.reward.deliver",
            "data": {"user_reward_id": str(USER_REWARD)},
            "timestamp": "2025-01-01T12:00:00Z",
        },
    }


def test_many_are_published_together_and_keep_the_ids_they_have(
    producer: EventProducer, read: Callable[[], list[Record]]
) -> None:
    own = new_event(VERIFICATION, event_id="chosen")
    payloads = [EmailJobPayload(type="welcome", campaign_id=CAMPAIGN, user_id=uuid4()) for _ in range(200)]
    ids = producer.enqueue_many([*payloads, own])
    assert ids[-1] == "chosen"
    assert {(record["id"], key) for key, record in read()} == {
        *zip(ids[:-1], (str(payload.user_id) for payload in payloads), strict=True),
        ("chosen", str(USER)),
    }
    assert len(read()) == 201
    assert producer.enqueue_many([]) == []


def test_an_invalid_one_among_many_is_named_and_nothing_is_sent(
    producer: EventProducer, read: Callable[[], list[Record]]
) -> None:
    wrong = VERIFICATION.model_copy(update={"priority": 2**40})
    with pytest.raises(InvalidEvent, match=r"payload 1: data\.priority: .*less than or equal to 2147483647"):
        producer.enqueue_many([VERIFICATION, wrong])
    with pytest.raises(InvalidEvent, match=r"id: .*at most 200"):
        producer.enqueue_email_job(VERIFICATION, event_id="x" * 201)
    assert read() == []


def test_what_is_too_large_is_named_and_the_others_are_published(
    producer: EventProducer, read: Callable[[], list[Record]]
) -> None:
    # Each text is within its own limit; together they are not.
    texts = {f"text_{number}": "ü" * 5000 for number in range(40)}
    large = VERIFICATION.model_copy(update={"template_data": texts})
    with pytest.raises(ValueTooLarge, match=str(catalog.MAX_VALUE_BYTES)) as raised:
        producer.enqueue_many([VERIFICATION, large, VERIFICATION])
    assert raised.value.unacknowledged == (1,)
    [unpublished] = raised.value.events
    assert isinstance(unpublished, EmailEvent)
    assert unpublished.data.template_data == texts
    assert len(read()) == 2


def test_raw_messages_are_published_as_they_are(
    producer: EventProducer, read: Callable[[], list[Record]]
) -> None:
    longest = json.dumps("x" * (catalog.MAX_VALUE_BYTES - 2)).encode()
    producer.publish([("key", b'{"a": 1}'), (None, b"[2]"), ("longest", longest)])
    assert read() == sorted([("key", {"a": 1}), (None, [2]), ("longest", json.loads(longest))], key=str)
    with pytest.raises(ValueTooLarge) as raised:
        producer.publish([("fits", b"{}"), ("one byte more", longest + b" ")])
    assert raised.value.unacknowledged == (1,)
    assert len(read()) == 4


def test_a_closed_producer_says_so(producer: EventProducer) -> None:
    producer.close()
    producer.close()
    with pytest.raises(ProducerClosed, match="build a new one") as raised:
        producer.enqueue_email_job(VERIFICATION, event_id="not lost")
    assert [event.id for event in raised.value.events] == ["not lost"]


def test_coroutines_do_the_same(producer: EventProducer, read: Callable[[], list[Record]]) -> None:
    async def enqueue() -> list[str]:
        async with AsyncJobProducer(producer) as asynchronous:
            alone = await asyncio.gather(
                *(asynchronous.enqueue_email_job(VERIFICATION) for _ in range(20)),
                asynchronous.enqueue_position_recalc_job(PositionRecalcJobPayload(campaign_id=CAMPAIGN)),
                asynchronous.enqueue_reward_delivery_job(
                    RewardDeliveryJobPayload(user_reward_id=USER_REWARD)
                ),
            )
            return alone + await asynchronous.enqueue_many([VERIFICATION, VERIFICATION])

    ids = asyncio.run(enqueue())
    assert len(set(ids)) == 24
    assert sorted(record["id"] for _, record in read()) == sorted(ids)
    with pytest.raises(ProducerClosed):
        producer.enqueue_email_job(VERIFICATION)


def test_threads_share_a_producer(job_producer: JobProducer, kafka_broker: KafkaBroker, topic: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: job_producer.enqueue_email_job(VERIFICATION), range(80)))
    assert sorted(as_record(message)[1]["id"] for message in messages_of(kafka_broker, topic)) == sorted(ids)


def test_a_queue_that_is_full_makes_the_caller_wait(kafka_broker: KafkaBroker, topic: str) -> None:
    options = {"queue.buffering.max.messages": 10}
    with JobProducer(brokers=kafka_broker.bootstrap_servers, topic=topic, options=options) as producer:
        producer.publish([(None, b"{}")] * 500)
    assert len(messages_of(kafka_broker, topic)) == 500


def test_a_topic_that_takes_less_than_the_contract_is_named(kafka_broker: KafkaBroker) -> None:
    topic = f"narrow-{uuid4().hex}"
    create_topic(kafka_broker.bootstrap_servers, topic, configuration={"max.message.bytes": "3000"})
    options = {"compression.type": "none"}
    with JobProducer(brokers=kafka_broker.bootstrap_servers, topic=topic, options=options) as producer:
        # Keys for different partitions, as the broker refuses a batch and not a record.
        messages = [(f"key {number}", b"x" * (9_000 if number == 4 else 10)) for number in range(3, 6)]
        with pytest.raises(ValueTooLarge, match=r"1 of 3 not acknowledged: .*max\.message\.bytes") as raised:
            producer.publish(messages)
        assert raised.value.unacknowledged == (1,)
        producer.publish([("after", b"{}")])
    assert sorted(message.key() or b"" for message in messages_of(kafka_broker, topic)) == [
        b"after",
        b"key 3",
        b"key 5",
    ]


def test_a_topic_that_is_not_there_is_named(kafka_broker: KafkaBroker) -> None:
    with JobProducer(brokers=kafka_broker.bootstrap_servers, topic="no-such-topic") as producer:
        with pytest.raises(
            UnknownTopic, match=r"topic 'no-such-topic' does not exist .* check KAFKA_JOB_TOPIC"
        ) as raised:
            producer.enqueue_many([VERIFICATION, VERIFICATION])
        assert raised.value.unacknowledged == (0, 1)
        assert len(raised.value.events) == 2


def test_brokers_that_do_not_answer_are_named() -> None:
    nobody = f"{HOST}:{pick_port()}"
    with JobProducer(brokers=nobody, connect_timeout_seconds=1) as producer:
        with pytest.raises(
            BrokersUnreachable, match=rf"{nobody} do not answer .*check KAFKA_BROKERS.*same event id"
        ) as raised:
            producer.enqueue_email_job(VERIFICATION, event_id="kept")
        assert raised.value.events[0].id == "kept"


def test_the_event_loop_is_free_while_brokers_do_not_answer() -> None:
    async def turns_while_enqueueing() -> int:
        producer = AsyncJobProducer(JobProducer(brokers=f"{HOST}:{pick_port()}", connect_timeout_seconds=1))
        enqueueing = asyncio.create_task(producer.enqueue_email_job(VERIFICATION))
        turns = 0
        while not enqueueing.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(BrokersUnreachable):
            await enqueueing
        await producer.close()
        return turns

    # The connection attempt takes a whole second. A loop that it blocks turns once, when it is over.
    assert asyncio.run(turns_while_enqueueing()) > 3


def test_a_broker_that_comes_back_gets_what_was_submitted_meanwhile(tmp_path: Any) -> None:
    with KafkaBroker(tmp_path / "kafka") as broker:
        create_topic(broker.bootstrap_servers, "job-events", partitions=1)
        with JobProducer(brokers=broker.bootstrap_servers) as producer:
            producer.publish([(None, b'"before"')])
            broker.kill()
            future = producer.submit([(None, b'"meanwhile"')])
            assert not future.done()
            broker.start()
            future.result(60)
        assert [message.value() for message in messages_of(broker, "job-events")] == [
            b'"before"',
            b'"meanwhile"',
        ]


def test_a_forked_child_publishes_on_a_connection_of_its_own(
    job_producer: JobProducer, kafka_broker: KafkaBroker, topic: str
) -> None:
    job_producer.enqueue_email_job(VERIFICATION, event_id="parent, before")
    child = multiprocessing.get_context("fork").Process(
        target=job_producer.enqueue_email_job, args=(VERIFICATION,), kwargs={"event_id": "child"}
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0
    job_producer.enqueue_email_job(VERIFICATION, event_id="parent, after")
    found = {as_record(message)[1]["id"] for message in messages_of(kafka_broker, topic)}
    assert found == {"parent, before", "child", "parent, after"}


def test_each_partition_gets_its_record_also_one_that_was_added_meanwhile(kafka_broker: KafkaBroker) -> None:
    topic = f"growing-{uuid4()}"
    create_topic(kafka_broker.bootstrap_servers, topic, partitions=2)

    def publish(producer: JobProducer) -> int:
        partitions, acknowledged = producer.submit_to_each_partition(
            lambda number: json.dumps(number).encode()
        )
        acknowledged.result(30)
        return partitions

    with JobProducer(brokers=kafka_broker.bootstrap_servers, topic=topic) as producer:
        assert publish(producer) == 2
        admin = AdminClient({"bootstrap.servers": kafka_broker.bootstrap_servers})
        admin.create_partitions([NewPartitions(topic, 4)])[topic].result(30)
        while producer.submit_to_each_partition(lambda number: b"0")[0] < 4:
            pass
        assert publish(producer) == 4
    found = [(message.partition(), as_record(message)) for message in messages_of(kafka_broker, topic)]
    assert {(number, (None, number)) for number in range(4)} <= set(found)
    with pytest.raises(ProducerClosed, match="build a new one"):
        producer.submit_to_each_partition(lambda number: b"")


def test_closing_leaves_no_thread_behind(kafka_broker: KafkaBroker, topic: str) -> None:
    before = set(threading.enumerate())
    with JobProducer(brokers=kafka_broker.bootstrap_servers, topic=topic) as producer:
        producer.enqueue_email_job(VERIFICATION)
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) == before


def test_a_producer_can_be_built_from_settings(kafka_broker: KafkaBroker, topic: str) -> None:
    settings = KafkaSettings.load({"KAFKA_BROKERS": kafka_broker.bootstrap_servers, "KAFKA_JOB_TOPIC": topic})
    with JobProducer.from_settings(settings) as producer:
        producer.enqueue_email_job(VERIFICATION)
    assert len(messages_of(kafka_broker, topic)) == 1


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(SettingsError) as raised:
        JobProducer(brokers=["one:9092", "two"], topic="a topic", auth="iam!")
    assert [problem.split("=")[0] for problem in raised.value.problems] == [
        "KAFKA_BROKERS",
        "KAFKA_JOB_TOPIC",
        "KAFKA_AUTH",
    ]
    with pytest.raises(SettingsError, match=r"delivery_timeout_seconds=5: allowed is 60 or more"):
        JobProducer(brokers="one:9092", delivery_timeout_seconds=5)
    with pytest.raises(SettingsError, match="options: acks is given"):
        JobProducer(brokers="one:9092", options={"acks": 1}).enqueue_email_job(VERIFICATION)
    with pytest.raises(SettingsError, match=r'options: No such configuration property: "no\.such\.thing"'):
        JobProducer(brokers="one:9092", options={"no.such.thing": 1}).enqueue_email_job(VERIFICATION)
