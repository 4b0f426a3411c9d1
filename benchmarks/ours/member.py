"""One poller and its function, until SIGTERM: the stand-ins of the local system in a process of their own.

python -m benchmarks.ours.member BROKERS TOPIC DATABASE_URL LOG_DIRECTORY
"""

import signal
import sys
import threading
from pathlib import Path

from campaign_jobs.catalog import POSITION
from local.functions import Function, FunctionConfiguration
from local.mappings.kafka import KafkaMapping

LANE = POSITION.lanes[0]
# Asked for where an event is handed on or given up, which none is.
QUEUES = {
    LANE.retry_queue_setting: "https://sqs.example.com/retry",
    POSITION.dead_letter_queue_setting: "https://sqs.example.com/dead",
}


def main() -> None:
    brokers, topic, database_url, log_directory = sys.argv[1:]
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    configuration = FunctionConfiguration(
        name="benchmark",
        handler=Path(__file__).with_name("handler.py"),
        environment={**QUEUES, "DATABASE_URL": database_url},
        timeout_seconds=POSITION.timeout_seconds,
        memory_mb=POSITION.memory_mb,
        log_dir=Path(log_directory),
    )
    with (
        Function(configuration) as function,
        KafkaMapping(
            bootstrap_servers=brokers,
            topic=topic,
            consumer_group=f"{topic}-group",
            function=function,
            filter_pattern=LANE.filter_pattern(),
            batch_size=LANE.batch_size,
        ),
    ):
        stopping.wait()


if __name__ == "__main__":
    main()
