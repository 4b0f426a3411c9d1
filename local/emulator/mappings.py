"""Runs the deployed event-source mappings: whatever the account holds is polled by the stand-ins of local/mappings."""

import json
import logging
import threading
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from local.functions import FunctionFailed
from local.mappings.kafka import KafkaMapping
from local.mappings.sqs import SqsMapping
from local.processes import Service

_LOOK_SECONDS: Final = 0.5

log = logging.getLogger(__name__)


class DeployedFunction:
    """A function or alias of the account, invoked synchronously through Lambda's API."""

    def __init__(self, client: Any, arn: str) -> None:
        self._client = client
        self._arn = arn

    def invoke(self, event: dict[str, Any]) -> Any:
        """Return the handler's result. Raises FunctionFailed."""
        try:
            answer = self._client.invoke(FunctionName=self._arn, Payload=json.dumps(event))
        except (BotoCoreError, ClientError) as error:
            raise FunctionFailed(type(error).__name__, str(error)) from error
        result = json.load(answer["Payload"])
        if "FunctionError" in answer:
            raise FunctionFailed(
                result.get("errorType", answer["FunctionError"]), result.get("errorMessage", "")
            )
        return result


class DeployedMappings(Service):
    """Starts, changes and stops pollers as the account's event-source mappings come, change and go."""

    def __init__(self, client: Any, sqs: Any, bootstrap_servers: str) -> None:
        """`client` is Lambda's; it waits for an answer as long as a function may take."""
        self._client = client
        self._sqs = sqs
        self._bootstrap_servers = bootstrap_servers
        self._running: dict[str, tuple[dict[str, Any], KafkaMapping | SqsMapping]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deployed mappings", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the batches in flight finish."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        for _, mapping in self._running.values():
            mapping.stop()
        self._running.clear()

    def caught_up(self) -> bool:
        """Whether every Kafka mapping has delivered all there is. Raises MappingBroken."""
        mappings = [mapping for _, mapping in dict(self._running).values()]
        return all(mapping.caught_up() for mapping in mappings if isinstance(mapping, KafkaMapping))

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                self._look()
            except (BotoCoreError, ClientError) as error:
                log.warning("the account's mappings cannot be listed: %s", error)

    def _look(self) -> None:
        wanted = {}
        for page in self._client.get_paginator("list_event_source_mappings").paginate():
            for mapping in page["EventSourceMappings"]:
                if mapping["State"] == "Enabled":
                    wanted[mapping["UUID"]] = {
                        name: value for name, value in mapping.items() if name not in _WITHOUT_CONSEQUENCES
                    }
        for identifier, (configuration, mapping) in list(self._running.items()):
            if wanted.get(identifier) != configuration:
                mapping.stop()
                del self._running[identifier]
        for identifier, configuration in wanted.items():
            if identifier not in self._running:
                started = self._made(configuration)
                started.start()
                self._running[identifier] = (configuration, started)

    def _made(self, configuration: dict[str, Any]) -> KafkaMapping | SqsMapping:
        function = DeployedFunction(self._client, configuration["FunctionArn"])
        source = configuration["EventSourceArn"]
        filters = [
            json.loads(each["Pattern"]) for each in configuration.get("FilterCriteria", {}).get("Filters", [])
        ]
        if ":kafka:" in source:
            (topic,) = configuration["Topics"]
            return KafkaMapping(
                bootstrap_servers=self._bootstrap_servers,
                topic=topic,
                consumer_group=configuration["AmazonManagedKafkaEventSourceConfig"]["ConsumerGroupId"],
                function=function,
                filter_pattern=filters[0] if filters else None,
                batch_size=configuration["BatchSize"],
                batching_window_seconds=configuration["MaximumBatchingWindowInSeconds"],
                event_source_arn=source,
            )
        return SqsMapping(
            sqs=self._sqs,
            queue_url=self._sqs.get_queue_url(QueueName=source.rsplit(":", 1)[-1])["QueueUrl"],
            function=function,
            batch_size=configuration["BatchSize"],
            batching_window_seconds=configuration["MaximumBatchingWindowInSeconds"],
            max_concurrency=configuration["ScalingConfig"]["MaximumConcurrency"],
            report_batch_item_failures="ReportBatchItemFailures" in configuration["FunctionResponseTypes"],
        )


# They change with each look or each batch.
_WITHOUT_CONSEQUENCES: Final = ("LastModified", "LastProcessingResult", "StateTransitionReason")
