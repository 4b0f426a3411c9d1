"""The examples in docs/events.md do what they say."""

import re
from pathlib import Path

from confluent_kafka import Consumer

from local.kafka import KafkaBroker, create_topic


def test_the_python_examples_run(repository: Path, kafka_broker: KafkaBroker) -> None:
    document = (repository / "docs/events.md").read_text(encoding="utf-8")
    create_topic(kafka_broker.bootstrap_servers, "job-events")
    script = "".join(re.findall(r"```python\n(.*?)```", document, re.DOTALL))
    assert script.count("localhost:9092") == 2
    exec(script.replace("localhost:9092", kafka_broker.bootstrap_servers), {"__name__": "example"})

    consumer = Consumer(
        {
            "bootstrap.servers": kafka_broker.bootstrap_servers,
            "group.id": "document",
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe(["job-events"])
    try:
        messages = consumer.consume(5, timeout=30)
    finally:
        consumer.close()
    assert len(messages) == 5
