"""One process, a topic full of events, and the same effect: through the bare libraries, or through the pipeline.

    python -m benchmarks.ours.single bare|pipeline BROKERS TOPIC DATABASE_URL COUNT BATCH

Prints the seconds for all but the first batch, which opens connections, on standard error: the pipeline's log has
standard output.
"""

import gc
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import psycopg
from confluent_kafka import Consumer, Message
from pydantic import BaseModel

from benchmarks.ours.effect import INSERT, EffectJob
from benchmarks.ours.member import QUEUES
from campaign_jobs.catalog import POSITION
from campaign_jobs.database.connection import Database
from campaign_jobs.settings import PositionSettings
from campaign_jobs.worker.pipeline import Pipeline
from local.mappings.kafka import LOCAL_CLUSTER_ARN
from local.mappings.kafka_event import kafka_event, record_of

Messages = list["Message[bytes, bytes]"]


class Data(BaseModel):
    campaign_id: uuid.UUID


class BareEvent(BaseModel):
    """The least that must be checked before the database is asked."""

    id: str
    type: Literal["job.position.recalculate"]
    data: Data
    timestamp: datetime


@dataclass
class Context:
    aws_request_id: str = "benchmark"
    invoked_function_arn: str = "arn:aws:lambda:us-east-1:000000000000:function:benchmark:position"

    def get_remaining_time_in_millis(self) -> int:
        return POSITION.timeout_seconds * 1000


def main() -> None:
    side, brokers, topic, database_url, count, batch = sys.argv[1:]
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": f"{topic}-{uuid.uuid4()}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    measure = bare if side == "bare" else pipeline
    print(measure(consumer, database_url, int(count), int(batch)), file=sys.stderr)
    consumer.close()


def bare(consumer: Consumer, database_url: str, count: int, batch: int) -> float:
    """Consume, check, one INSERT, commit, then the offsets: at least once, and nothing besides."""
    with psycopg.connect(database_url) as connection:

        def work(messages: Messages) -> None:
            events = [BareEvent.model_validate_json(message.value() or b"") for message in messages]
            connection.execute(
                INSERT, [[event.id for event in events], [event.data.campaign_id for event in events]]
            )
            connection.commit()
            consumer.commit(asynchronous=True)

        return timed(work, batches(consumer, count, batch))


def pipeline(consumer: Consumer, database_url: str, count: int, batch: int) -> float:
    """What an invocation does with Lambda's events. Reading Kafka and making them is the poller's work, done before."""
    settings = PositionSettings.load({**QUEUES, "DATABASE_URL": database_url})
    database = Database.from_settings(
        settings, application_name="benchmark", timeout_seconds=POSITION.timeout_seconds
    )
    ours = Pipeline(POSITION, EffectJob(database), settings, database)
    events = [
        kafka_event([record_of(message) for message in messages], "bench", LOCAL_CLUSTER_ARN, "")
        for messages in batches(consumer, count, batch)
    ]

    # A function has one event at a time; the garbage collector shall not look through all the others.
    gc.freeze()

    def work(event: dict[str, Any]) -> None:
        counts = ours.handle(event, Context())
        assert set(counts) == {"processed"}, counts

    return timed(work, iter(events))


def batches(consumer: Consumer, count: int, batch: int) -> Iterator[Messages]:
    read = 0
    while read < count:
        messages = [message for message in consumer.consume(batch, timeout=1) if message.error() is None]
        read += len(messages)
        if messages:
            yield messages


def timed(work: Callable[[Any], None], portions: Iterator[Any]) -> float:
    work(next(portions))
    started = time.perf_counter()
    for portion in portions:
        work(portion)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
