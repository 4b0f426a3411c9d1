"""The embedded Apache Kafka keeps what it acknowledged, and runs nothing but the jars we pinned."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from campaign_jobs.catalog import TOPIC_PARTITIONS
from local.kafka import JarError, KafkaBroker, TopicError, create_topic, ensure_jars

JAR = b"what the maintainers released"
SHA256 = hashlib.sha256(JAR).hexdigest()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[KafkaBroker]:
    """A broker of the test's own, because it is going to be killed."""
    with KafkaBroker(tmp_path / "kafka") as broker:
        yield broker


def produce(broker: KafkaBroker, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "acks": "all"})
    for value in values:
        producer.produce(topic, value, partition=3)
    assert producer.flush(30) == 0


def consumer_of(broker: KafkaBroker, topic: str) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "group.id": "readers",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.assign([TopicPartition(topic, 3)])
    return consumer


def read(consumer: Consumer, count: int) -> list[bytes | None]:
    messages = []
    while len(messages) < count:
        batch = consumer.consume(count - len(messages), timeout=30)
        assert batch, f"only {len(messages)} of {count} records came"
        assert [message.error() for message in batch if message.error()] == []
        messages += batch
    return [message.value() for message in messages]


def test_records_and_committed_offsets_survive_a_kill(broker: KafkaBroker) -> None:
    create_topic(broker.bootstrap_servers, "job-events")
    address = broker.bootstrap_servers
    values = [f"record {number}".encode() for number in range(20)]
    produce(broker, "job-events", values)
    consumer = consumer_of(broker, "job-events")
    assert read(consumer, 12) == values[:12]
    consumer.commit(offsets=[TopicPartition("job-events", 3, 12)], asynchronous=False)
    consumer.close()

    broker.kill()
    assert not broker.running
    broker.start()

    assert broker.bootstrap_servers == address
    consumer = consumer_of(broker, "job-events")
    assert consumer.committed([TopicPartition("job-events", 3)], timeout=30)[0].offset == 12
    assert read(consumer, 8) == values[12:], "it goes on where the group had committed"
    consumer.assign([TopicPartition("job-events", 3, 0)])
    assert read(consumer, 20) == values
    consumer.close()

    # Creating the topic again neither fails nor changes it; asking for another shape is an error.
    create_topic(broker.bootstrap_servers, "job-events")
    with pytest.raises(TopicError, match=f"has {TOPIC_PARTITIONS} partitions, but 3 are needed"):
        create_topic(broker.bootstrap_servers, "job-events", partitions=3)


@pytest.fixture
def repository_url(tmp_path: Path) -> Iterator[str]:
    """A Maven repository whose one jar lies in tmp_path / "repository"."""
    jar = tmp_path / "repository/org/example/thing/1.0/thing-1.0.jar"
    jar.parent.mkdir(parents=True)
    jar.write_bytes(JAR)
    handler = partial(QuietHandler, directory=str(tmp_path / "repository"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def lock_for(tmp_path: Path, sha256: str = SHA256) -> Path:
    lock_file = tmp_path / "jars.lock"
    lock_file.write_text(f"# a comment\norg.example:thing:1.0 sha256:{sha256}\n")
    return lock_file


def test_a_tampered_jar_is_refused_and_leaves_nothing_behind(tmp_path: Path, repository_url: str) -> None:
    (tmp_path / "repository/org/example/thing/1.0/thing-1.0.jar").write_bytes(JAR + b" and something else")
    with pytest.raises(JarError, match=r"org\.example:thing:1\.0 is refused"):
        ensure_jars(tmp_path / "cache", lock_file=lock_for(tmp_path), repository=repository_url)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_jar_damaged_in_the_cache_is_downloaded_again(tmp_path: Path, repository_url: str) -> None:
    heard: list[tuple[str, int, int]] = []
    get = partial(
        ensure_jars,
        tmp_path / "cache",
        lock_file=lock_for(tmp_path),
        repository=repository_url,
        progress=lambda *said: heard.append(said),
    )
    [jar] = get()
    assert jar.read_bytes() == JAR
    assert heard == [("Downloading Apache Kafka", 0, 1), ("Downloaded thing-1.0.jar", 1, 1)]
    get()
    assert len(heard) == 2, "the second time there is nothing to do"
    jar.write_bytes(JAR[:-1])
    get()
    assert jar.read_bytes() == JAR
    assert [path.name for path in jar.parent.iterdir()] == [jar.name], "no scratch directory is left"


def test_a_jar_that_is_not_there_is_named(tmp_path: Path, repository_url: str) -> None:
    (tmp_path / "jars.lock").write_text(f"org.example:other:2.0 sha256:{SHA256}\n")
    with pytest.raises(JarError, match=r"org\.example:other:2\.0 cannot be downloaded"):
        ensure_jars(tmp_path / "cache", lock_file=tmp_path / "jars.lock", repository=repository_url)


def test_a_broken_lock_file_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "jars.lock").write_text("org.example:thing:1.0\n")
    with pytest.raises(JarError, match=r"line 1: 'org\.example:thing:1\.0' is not"):
        ensure_jars(tmp_path / "cache", lock_file=tmp_path / "jars.lock")
