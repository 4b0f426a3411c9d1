"""The old world and the new one, for each test empty."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from campaign_jobs.producer import EventProducer, JobProducer
from campaign_jobs_cli.asynq.mapping import INCLUDED, TaskMapping
from campaign_jobs_cli.asynq.moving import Mover
from local.kafka import KafkaBroker, create_topic
from local.processes import HOST
from tests.asynq.old_world import OldWorld, build_tool, redis_server
from tests.crash.worker import Topic

MakeMover = Callable[..., Mover]


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tool(tmp_path_factory.mktemp("asynqtool"))


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with redis_server(tmp_path_factory.mktemp("redis")) as port:
        yield port


@pytest.fixture
def client(redis_port: int) -> Iterator[Any]:
    with Redis(host=HOST, port=redis_port) as client:
        client.flushall()
        yield client


@pytest.fixture
def old(tool: Path, redis_port: int, client: Any) -> OldWorld:
    return OldWorld(tool, f"{HOST}:{redis_port}", client)


@pytest.fixture
def events(kafka_broker: KafkaBroker) -> Iterator[Topic]:
    """A fresh topic of one partition, and a reader of it."""
    name = f"test-{uuid.uuid4().hex}"
    create_topic(kafka_broker.bootstrap_servers, name, partitions=1)
    with Topic(kafka_broker.bootstrap_servers, name) as topic:
        yield topic


@pytest.fixture
def producer(events: Topic) -> Iterator[EventProducer]:
    with JobProducer(brokers=events.bootstrap_servers, topic=events.name) as producer:
        yield producer


@pytest.fixture
def mapping() -> TaskMapping:
    return TaskMapping.load(INCLUDED)


@pytest.fixture
def mover(client: Any, producer: EventProducer, mapping: TaskMapping) -> MakeMover:
    """Makes movers of the queue high, or of others."""

    def make(*queues: str, **options: Any) -> Mover:
        options = {"client": client, "producer": producer, "mapping": mapping, **options}
        return Mover(queues=queues or ("high",), **options)

    return make
