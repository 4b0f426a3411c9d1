"""An event-source mapping as Lambda's API knows it: with an id, what it reads and feeds, and a switch."""

import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

from local.mappings import LOCAL_ACCOUNT, LOCAL_REGION
from local.mappings.kafka import LOCAL_CLUSTER_ARN, KafkaMapping
from local.mappings.sqs import SqsMapping
from local.processes import Service

Poller = KafkaMapping | SqsMapping

_NAMESPACE: Final = uuid.UUID("5b0f1d5e-6a1c-4c59-9d0e-3a2f6d1c9b10")


class RegisteredMapping(Service):
    """One mapping, which may have several pollers. Safe to use from several threads."""

    def __init__(
        self,
        make: Callable[[], Poller],
        *,
        function_name: str,
        alias: str | None,
        pollers: int = 1,
        topic: str | None = None,
        consumer_group: str | None = None,
        queue_name: str | None = None,
        batch_size: int,
        batching_window_seconds: int,
    ) -> None:
        """`make` builds a poller that has not started; a mapping reads either a topic in a group, or a queue."""
        self._make = make
        self._pollers = pollers
        self._lock = threading.Lock()
        self._running: list[Poller] = []
        source = consumer_group or queue_name
        # The same from one start to the next, as a deployed mapping's is.
        self.uuid = str(uuid.uuid5(_NAMESPACE, f"{function_name}/{source}"))
        qualifier = "" if alias is None else f":{alias}"
        self.target = f"{function_name}{qualifier}"
        """What it invokes: a function, or an alias of one."""
        self.event_source_arn = (
            LOCAL_CLUSTER_ARN
            if queue_name is None
            else f"arn:aws:sqs:{LOCAL_REGION}:{LOCAL_ACCOUNT}:{queue_name}"
        )
        self._description: dict[str, Any] = {
            "UUID": self.uuid,
            "FunctionArn": (f"arn:aws:lambda:{LOCAL_REGION}:{LOCAL_ACCOUNT}:function:{self.target}"),
            "EventSourceArn": self.event_source_arn,
            "BatchSize": batch_size,
            "MaximumBatchingWindowInSeconds": batching_window_seconds,
        }
        if topic is not None:
            self._description |= {
                "Topics": [topic],
                "StartingPosition": "TRIM_HORIZON",
                "AmazonManagedKafkaEventSourceConfig": {"ConsumerGroupId": consumer_group},
            }

    @property
    def running(self) -> Sequence[Poller]:
        """Its pollers; none while it is disabled."""
        return tuple(self._running)

    def start(self) -> None:
        """Enable it; one that is enabled stays so."""
        with self._lock:
            if self._running:
                return
            self._running = [self._make() for _ in range(self._pollers)]
            for mapping in self._running:
                mapping.start()

    def stop(self) -> None:
        """Disable it: batches in flight finish, and what is read from now on waits in its source."""
        with self._lock:
            for mapping in self._running:
                mapping.stop()
            self._running = []

    def description(self) -> dict[str, Any]:
        """As Lambda's API has it (EventSourceMappingConfiguration)."""
        return {**self._description, "State": "Enabled" if self._running else "Disabled"}
