"""What Lambda documents of its Kafka event-source mappings holds for our stand-in, against a real broker."""

import base64
import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aws_lambda_powertools.utilities.data_classes import KafkaEvent
from confluent_kafka import Consumer, Producer, TopicPartition

from campaign_jobs.catalog import TOPIC_PARTITIONS
from local.functions import Function, FunctionConfiguration, FunctionFailed
from local.kafka import KafkaBroker
from local.mappings import MAX_PAYLOAD_BYTES, MappingBroken
from local.mappings.kafka import DEFAULT_WINDOW_SECONDS, KafkaMapping

# For batches that are to end by their size: no test outlives this window, however slow the machine.
LONG = 300

Event = dict[str, Any]
Place = tuple[int, int]
"""Partition and offset."""


class Recorder:
    """A function in this process that keeps the events it gets; `act` decides how each invocation goes."""

    def __init__(self, act: Callable[[Event], None] = lambda event: None) -> None:
        self.events: list[Event] = []
        self.done: list[Event] = []
        self._act = act

    def invoke(self, event: Event) -> None:
        self.events.append(event)
        self._act(event)
        self.done.append(event)


def fail(_: Event) -> None:
    raise FunctionFailed("RuntimeError", "on purpose")


class Gate:
    """Holds an invocation until it is opened."""

    def __init__(self) -> None:
        self.reached, self._opened = threading.Event(), threading.Event()

    def __call__(self, _: Event) -> None:
        self.reached.set()
        assert self._opened.wait(60)

    def open(self) -> None:
        self._opened.set()


Publish = Callable[[Iterable[tuple[int, bytes | None]]], None]
Make = Callable[..., KafkaMapping]


@pytest.fixture
def publish(kafka_broker: KafkaBroker, topic: str) -> Publish:
    def publish(values: Iterable[tuple[int, bytes | None]], **more: Any) -> None:
        producer = Producer({"bootstrap.servers": kafka_broker.bootstrap_servers, "linger.ms": 0})
        for partition, value in values:
            producer.produce(topic, value, partition=partition, **more)
        assert producer.flush(30) == 0

    return publish


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex}"


@pytest.fixture
def mapping(kafka_broker: KafkaBroker, topic: str, group: str) -> Iterator[Make]:
    made: list[KafkaMapping] = []

    def start(function: Any, **changes: Any) -> KafkaMapping:
        made.append(
            KafkaMapping(
                bootstrap_servers=kafka_broker.bootstrap_servers,
                topic=topic,
                consumer_group=group,
                function=function,
                **{"batching_window_seconds": 0.1, "first_backoff_seconds": 0.05, **changes},
            )
        )
        made[-1].start()
        return made[-1]

    yield start
    for each in made:
        each.stop()


@pytest.fixture
def committed(kafka_broker: KafkaBroker, topic: str, group: str) -> Callable[[], dict[int, int]]:
    def committed() -> dict[int, int]:
        consumer = Consumer({"bootstrap.servers": kafka_broker.bootstrap_servers, "group.id": group})
        places = [TopicPartition(topic, partition) for partition in range(TOPIC_PARTITIONS)]
        answers = consumer.committed(places, timeout=30)
        consumer.close()
        return {place.partition: place.offset for place in answers if place.offset >= 0}

    return committed


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def records(events: Iterable[Event]) -> list[Event]:
    return [record for event in events for group in event["records"].values() for record in group]


def places(events: Iterable[Event]) -> list[Place]:
    return [(record["partition"], record["offset"]) for record in records(events)]


def numbered(partitions: Iterable[int], count: int) -> list[tuple[int, bytes]]:
    return [(partition, json.dumps({"n": n}).encode()) for n in range(count) for partition in partitions]


def test_the_event_is_lambdas_with_several_partitions_in_one_payload(
    mapping: Make, publish: Any, topic: str, kafka_broker: KafkaBroker, repository: Path
) -> None:
    publish(
        [(2, b'{"a": 1}')],
        key=b"\x00key",
        headers=[("trace", b"00"), ("raw", b"\x00\x7f\x80\xff"), ("trace", None)],
        timestamp=1_735_732_800_000,
    )
    publish([(7, None), (2, "ä".encode())])
    function = Recorder()
    started = mapping(
        function,
        batch_size=3,
        batching_window_seconds=LONG,
        event_source_arn="arn:aws:kafka:us-east-1:000000000000:cluster/a/b-1",
    )
    until(started.caught_up, "all is delivered")
    (event,) = function.events

    recorded = json.loads((repository / "tests/events/kafka.json").read_text(encoding="utf-8"))
    assert set(event) == set(recorded)
    assert {frozenset(record) for record in records([event])} == {
        frozenset(record) for record in records([recorded])
    }
    assert event["eventSource"] == "aws:kafka"
    assert event["eventSourceArn"] == "arn:aws:kafka:us-east-1:000000000000:cluster/a/b-1"
    assert event["bootstrapServers"] == kafka_broker.bootstrap_servers
    assert set(event["records"]) == {f"{topic}-2", f"{topic}-7"}
    first, second = event["records"][f"{topic}-2"]
    assert first == {
        "topic": topic,
        "partition": 2,
        "offset": 0,
        "timestamp": 1_735_732_800_000,
        "timestampType": "CREATE_TIME",
        "key": base64.b64encode(b"\x00key").decode(),
        "value": base64.b64encode(b'{"a": 1}').decode(),
        "headers": [{"trace": [48, 48]}, {"raw": [0, 127, -128, -1]}, {"trace": []}],
    }
    assert (second["offset"], second["key"], second["headers"]) == (1, None, [])
    assert event["records"][f"{topic}-7"][0]["value"] is None

    parsed = {(record.partition, record.offset): record for record in KafkaEvent(event).records}
    assert parsed[2, 0].decoded_headers == {"trace": b"", "raw": b"\x00\x7f\x80\xff"}


def test_order_is_kept_within_each_partition_and_no_batch_exceeds_its_size(
    mapping: Make, publish: Publish
) -> None:
    publish(numbered([0, 3, 9], 30))
    function = Recorder()
    started = mapping(function, batch_size=7)
    until(started.caught_up, "all is delivered")
    assert max(len(records([event])) for event in function.events) == 7
    for partition in (0, 3, 9):
        assert [place for place in places(function.events) if place[0] == partition] == [
            (partition, n) for n in range(30)
        ]
    assert (started.counters.delivered, started.counters.batches) == (90, len(function.events))


def test_a_batch_waits_for_its_window_unless_it_is_full(mapping: Make, publish: Publish) -> None:
    function = Recorder()
    started = mapping(function, batch_size=3, batching_window_seconds=LONG)
    publish(numbered([0], 3))
    until(started.caught_up, "the first full batch is delivered")
    publish(numbered([0], 2))
    time.sleep(2 * DEFAULT_WINDOW_SECONDS)
    assert not started.caught_up()
    publish(numbered([1], 1))
    until(started.caught_up, "the second full batch is delivered")
    assert [len(records([event])) for event in function.events] == [3, 3]


def test_a_payload_stays_within_six_megabytes_and_what_no_longer_fits_is_not_committed(
    mapping: Make, publish: Publish, committed: Callable[[], dict[int, int]]
) -> None:
    publish([(n % 2, bytes(900_000)) for n in range(12)])
    function: Recorder

    def look(_: Event) -> None:
        assert sum(committed().values()) == len(places(function.done))

    function = Recorder(look)
    until(mapping(function, batch_size=100, batching_window_seconds=1).caught_up, "all is delivered")
    sizes = [len(json.dumps(event)) for event in function.events]
    assert max(sizes) <= MAX_PAYLOAD_BYTES
    assert max(sizes) > MAX_PAYLOAD_BYTES - 1_300_000
    assert sorted(places(function.events)) == [(partition, n) for partition in range(2) for n in range(6)]


def test_only_what_the_filter_passes_is_delivered_and_what_it_cannot_judge(
    mapping: Make, publish: Publish
) -> None:
    publish(
        [
            (0, b'{"type": "a"}'),
            (0, b'{"type": "b"}'),
            (0, b"not JSON"),
            (0, None),
            (0, b"\xff"),
            (0, b'[{"type": "a"}]'),
            (0, b"[]"),
        ]
    )
    function = Recorder()
    started = mapping(function, filter_pattern={"value": {"type": ["a"]}})
    until(started.caught_up, "all is delivered")
    assert places(function.events) == [(0, 0), (0, 2), (0, 3), (0, 4), (0, 5)]
    assert started.counters.filtered_out == 2


def test_offsets_of_filtered_out_records_are_committed_only_with_a_successful_invocation(
    mapping: Make, publish: Publish, committed: Callable[[], dict[int, int]]
) -> None:
    publish([(0, b'{"type": "b"}'), (5, b'{"type": "b"}')])
    function = Recorder()
    started = mapping(function, filter_pattern={"value": {"type": ["a"]}})
    until(started.caught_up, "all is read")
    assert function.events == []
    assert committed() == {}
    publish([(0, b'{"type": "a"}'), (0, b'{"type": "b"}')])
    until(started.caught_up, "the one record is delivered")
    started.stop()
    assert committed()[5] == 1
    assert committed()[0] in (2, 3)


def test_a_failed_invocation_commits_nothing_of_what_was_filtered_out_either(
    mapping: Make, publish: Publish, committed: Callable[[], dict[int, int]]
) -> None:
    publish([(5, b'{"type": "b"}'), (0, b'{"type": "b"}'), (0, b'{"type": "a"}')])
    failing = Recorder(fail)
    started = mapping(failing, filter_pattern={"value": {"type": ["a"]}})
    until(lambda: len(failing.events) > 1 and started.counters.filtered_out == 2, "it has failed twice")
    assert committed() == {}
    started.stop()
    assert committed() == {}


def test_offsets_are_committed_after_the_invocation(
    mapping: Make, publish: Publish, committed: Callable[[], dict[int, int]]
) -> None:
    publish(numbered([4], 6))
    during: list[dict[int, int]] = []
    started = mapping(
        Recorder(lambda event: during.append(committed())), batch_size=2, batching_window_seconds=LONG
    )
    until(started.caught_up, "all is delivered")
    assert during == [{}, {4: 2}, {4: 4}]
    assert committed() == {4: 6}


def test_a_failed_batch_is_delivered_again_unchanged_and_nothing_is_skipped(
    mapping: Make, publish: Publish, committed: Callable[[], dict[int, int]]
) -> None:
    publish(numbered([0, 1], 4))
    during: list[dict[int, int]] = []

    def fail_three_times(event: Event) -> None:
        during.append(committed())
        if len(during) <= 3:
            fail(event)

    function = Recorder(fail_three_times)
    started = mapping(function, batch_size=8, batching_window_seconds=LONG)
    until(started.caught_up, "all is delivered")
    assert during == [{}] * 4
    assert function.events[0] == function.events[1] == function.events[2] == function.events[3]
    assert sorted(places(function.done)) == [(partition, n) for partition in (0, 1) for n in range(4)]
    assert committed() == {0: 4, 1: 4}
    counters = started.counters
    assert (counters.failed_batches, counters.failed, counters.delivered) == (3, 24, 8)


def test_what_follows_a_failing_batch_in_its_partitions_waits_for_it(mapping: Make, publish: Any) -> None:
    publish(numbered([0, 1], 3))

    def fail_until_more_has_come(event: Event) -> None:
        if len(function.events) == 3:
            publish(numbered([0, 1], 3))
        if len(function.events) <= 6:
            fail(event)

    function = Recorder(fail_until_more_has_come)
    started = mapping(function, batch_size=6, batching_window_seconds=LONG)
    until(started.caught_up, "all is delivered")
    assert len(function.events) == 8
    assert {tuple(places([event])) for event in function.events[:7]} == {tuple(places(function.events[:1]))}
    for partition in (0, 1):
        assert [offset for place, offset in places(function.done) if place == partition] == list(range(6))


def test_a_member_delivers_one_batch_at_a_time(mapping: Make, publish: Publish) -> None:
    publish(numbered(range(4), 10))
    alone = threading.Lock()

    def look(_: Event) -> None:
        assert alone.acquire(blocking=False)
        # Long enough for another invocation to come along, if there were one.
        time.sleep(0.05)
        alone.release()

    function = Recorder(look)
    until(mapping(function, batch_size=5).caught_up, "all is delivered")
    assert len(function.done) >= 8


def test_stop_lets_the_batch_in_flight_finish_and_a_new_start_loses_and_repeats_nothing(
    mapping: Make, publish: Publish, committed: Callable[[], dict[int, int]]
) -> None:
    publish(numbered(range(3), 10))
    gate = Gate()
    function = Recorder(gate)
    first = mapping(function, batch_size=4, batching_window_seconds=LONG)
    assert gate.reached.wait(60)
    stopping = threading.Thread(target=first.stop)
    stopping.start()
    assert committed() == {}
    gate.open()
    stopping.join()
    assert len(places(function.done)) == 4
    assert sum(committed().values()) == 4
    publish(numbered([9], 1))
    until(mapping(function, batch_size=4).caught_up, "the rest is delivered")
    assert sorted(places(function.events)) == [*((p, n) for p in range(3) for n in range(10)), (9, 0)]


def test_stop_in_the_midst_of_failures_commits_nothing_and_the_next_start_has_the_batch(
    mapping: Make, publish: Publish, committed: Callable[[], dict[int, int]]
) -> None:
    publish(numbered([6], 3))
    failing = Recorder(fail)
    first = mapping(failing)
    until(lambda: len(failing.events) > 1, "it has failed twice")
    first.stop()
    assert committed() == {}
    function = Recorder()
    until(mapping(function).caught_up, "all is delivered")
    assert places(function.done) == [(6, 0), (6, 1), (6, 2)]


def test_a_rebalance_waits_for_the_batch_in_flight_and_repeats_nothing(
    mapping: Make, publish: Publish
) -> None:
    publish(numbered(range(TOPIC_PARTITIONS), 5))
    gate = Gate()
    one, two = Recorder(gate), Recorder()
    first = mapping(one, batch_size=20)
    assert gate.reached.wait(60)
    second = mapping(two, batch_size=20)
    gate.open()
    until(lambda: first.caught_up() and second.caught_up(), "both have caught up")
    publish(numbered(range(TOPIC_PARTITIONS), 5))
    until(
        lambda: first.caught_up() and second.caught_up() and len(places(one.done + two.done)) >= 100,
        "all is done",
    )
    assert two.done, "the second member got no partition"
    assert sorted(places(one.done + two.done)) == [(p, n) for p in range(TOPIC_PARTITIONS) for n in range(10)]
    for partition in range(TOPIC_PARTITIONS):
        for function in (one, two):
            own = [place for place in places(function.done) if place[0] == partition]
            assert own == sorted(own)


def test_a_batch_that_keeps_failing_does_not_hold_partitions_back_from_another_member(
    mapping: Make, publish: Publish
) -> None:
    publish(numbered(range(TOPIC_PARTITIONS), 2))
    failing, healthy = Recorder(fail), Recorder()
    first = mapping(failing)
    until(lambda: bool(failing.events), "it has failed once")
    second = mapping(healthy)
    until(lambda: bool(healthy.done) and second.caught_up(), "the second member has taken its share over")
    first.stop()
    until(lambda: len(set(places(healthy.done))) == 2 * TOPIC_PARTITIONS, "the rest has come over, too")
    assert len(places(healthy.done)) == 2 * TOPIC_PARTITIONS


def test_a_member_killed_in_the_midst_of_a_batch_leaves_it_to_the_next(
    mapping: Make,
    publish: Publish,
    kafka_broker: KafkaBroker,
    topic: str,
    group: str,
    committed: Callable[[], dict[int, int]],
) -> None:
    publish(numbered(range(TOPIC_PARTITIONS), 3))
    member = subprocess.Popen(
        [sys.executable, "-c", _MEMBER, kafka_broker.bootstrap_servers, topic, group], stdout=subprocess.PIPE
    )
    with member:
        assert member.stdout is not None
        assert member.stdout.readline() == b"10 records\n"
        assert member.stdout.readline() == b"10 records\n"
        member.kill()
    assert sum(committed().values()) == 10
    function = Recorder()
    until(mapping(function, batch_size=10).caught_up, "the next member has taken all over")
    assert len(places(function.done)) == len(set(places(function.done))) == 20
    assert committed() == dict.fromkeys(range(TOPIC_PARTITIONS), 3)


# One batch succeeds, and the process ends in the second.
_MEMBER = """
import sys, time
from local.mappings.kafka import KafkaMapping

class Slow:
    seen = 0

    def invoke(self, event):
        print(sum(len(records) for records in event["records"].values()), "records", flush=True)
        self.seen += 1
        if self.seen == 2:
            time.sleep(600)

servers, topic, group = sys.argv[1:]
mapping = KafkaMapping(
    bootstrap_servers=servers, topic=topic, consumer_group=group, function=Slow(), batch_size=10,
    batching_window_seconds=300,
)
mapping.start()
time.sleep(600)
"""


def test_a_broker_that_restarts_in_the_midst_of_a_batch_loses_nothing(
    mapping: Make, publish: Publish, kafka_broker: KafkaBroker, committed: Callable[[], dict[int, int]]
) -> None:
    publish(numbered([0, 1], 5))
    gate = Gate()
    function = Recorder(gate)
    started = mapping(function, batch_size=6)
    assert gate.reached.wait(60)
    kafka_broker.kill()
    gate.open()
    kafka_broker.start()
    publish(numbered([0, 1], 5))
    until(started.caught_up, "it has caught up after the restart")
    assert set(places(function.done)) == {(partition, n) for partition in (0, 1) for n in range(10)}
    assert committed() == {0: 10, 1: 10}


@pytest.mark.timeout(240)  # A session, a start of the broker, and a group that finds together again.
def test_a_broker_that_is_away_while_a_failed_batch_waits_does_not_silence_its_partitions(
    mapping: Make, publish: Publish, kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group takes the partitions away in the meantime, and gives them back when nobody waits any more."""
    publish(numbered([0, 1], 5))
    failures, failed, waited = iter([True]), threading.Event(), threading.Event()

    def act(event: Event) -> None:
        if next(failures, False):
            failed.set()
            fail(event)

    back_off = KafkaMapping._back_off

    def backing_off(self: KafkaMapping, *arguments: Any) -> None:
        back_off(self, *arguments)
        waited.set()

    monkeypatch.setattr(KafkaMapping, "_back_off", backing_off)
    function = Recorder(act)
    # Longer than the group's session, of six seconds.
    started = mapping(function, first_backoff_seconds=9)
    assert failed.wait(60)
    kafka_broker.kill()
    until(lambda: not started._assigned, "the group's session is over")
    assert waited.wait(60)
    kafka_broker.start()
    until(started.caught_up, "all is delivered")
    assert set(places(function.done)) == {(partition, n) for partition in (0, 1) for n in range(5)}


def test_a_crash_of_the_function_is_a_failed_batch(mapping: Make, publish: Publish, tmp_path: Path) -> None:
    handler = tmp_path / "handler.py"
    handler.write_text(
        "import os\n"
        "from pathlib import Path\n"
        "seen = Path(__file__).with_name('seen')\n"
        "def handler(event, context):\n"
        "    with seen.open('a') as file:\n"
        "        file.write(str(sum(len(records) for records in event['records'].values())) + '\\n')\n"
        "    if len(seen.read_text().split()) == 1:\n"
        "        os._exit(1)\n",
        encoding="utf-8",
    )
    publish(numbered([0, 1], 3))
    configuration = FunctionConfiguration(
        name="crashing", handler=handler, timeout_seconds=30, memory_mb=128, log_dir=tmp_path
    )
    with Function(configuration) as function:
        started = mapping(function, batch_size=6, batching_window_seconds=LONG)
        until(started.caught_up, "the batch came again")
        started.stop()
        assert (tmp_path / "seen").read_text(encoding="utf-8").split() == ["6", "6"]
        assert (function.failures, function.cold_starts) == (1, 2)


def test_an_error_of_our_own_is_not_swallowed(mapping: Make, publish: Publish) -> None:
    publish(numbered([0], 1))

    def break_down(_: Event) -> None:
        raise ZeroDivisionError("our own mistake")

    started = mapping(Recorder(break_down))
    with pytest.raises(MappingBroken, match="our own mistake"):
        until(started.caught_up, "it says what broke it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0; allowed are 1 to 10000"),
        ({"batch_size": 10_001}, "batch_size=10001"),
        ({"batching_window_seconds": 301}, "batching_window_seconds=301; allowed are 0 to 300"),
    ],
)
def test_what_lambda_would_refuse_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KafkaMapping(
            bootstrap_servers="127.0.0.1:1", topic="t", consumer_group="g", function=Recorder(), **changes
        )
