"""An event job type: function and dead-letter queue, and each lane's mapping from Kafka and retry queue."""

from collections.abc import Mapping
from typing import Final

from aws_cdk import Duration
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_lambda_event_sources as event_sources
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from campaign_jobs.catalog import EventJobType, Lane
from infra.acknowledged import acknowledge
from infra.environment_settings import Environment
from infra.functions import JobFunction
from infra.kafka_cluster import KafkaCluster
from infra.layers import Layers
from infra.network import Network
from infra.queues import create_queue, read_queue

# Messages come one at a time, so just above the timeout serves better than the customary six of it.
_VISIBILITY_MARGIN_SECONDS: Final = 30
# The least that SQS mappings take.
_RETRY_CONCURRENCY: Final = 2


class EventWorker(Construct):
    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        job_type: EventJobType,
        environment: Environment,
        network: Network,
        layers: Layers,
        kafka: KafkaCluster,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(scope, id)
        self.job_type = job_type
        self.dead_letter_queue = create_queue(
            self, "DeadLetters", name=environment.resource_name(f"{job_type.name}-dead-letters")
        )
        self.retry_queues = {
            lane: create_queue(
                self,
                f"Retry-{lane.name}",
                name=environment.resource_name(f"{lane.name}-retry"),
                visibility_timeout_seconds=job_type.timeout_seconds + _VISIBILITY_MARGIN_SECONDS,
                dead_letter_queue=self.dead_letter_queue,
            )
            for lane in job_type.lanes
        }
        self.function = JobFunction(
            self,
            "Function",
            name=job_type.name,
            description=f"Does the {job_type.name} jobs of {environment.name}",
            environment=environment,
            network=network,
            layers=layers,
            timeout_seconds=job_type.timeout_seconds,
            memory_mb=job_type.memory_mb,
            variables={
                "KAFKA_JOB_CONSUMER_GROUP": environment.kafka_job_consumer_group,
                job_type.dead_letter_queue_setting: self.dead_letter_queue.queue_url,
                **(variables or {}),
            },
        )
        acknowledge(
            self.function,
            "Mappings invoke it and wait; it sends dead letters itself, each with its reason",
            "Serverless-LambdaDLQ",
        )
        self.dead_letter_queue.grant_send_messages(self.function)
        for lane, queue in self.retry_queues.items():
            self._let_retry(lane, queue)
            alias = self._alias(lane)
            self._map_topic(lane, alias, environment, kafka)
            self._map_retry_queue(alias, queue)

    def forward_to(self, other: "EventWorker") -> None:
        """Let this worker hand what belongs to another one to that one's retry queues."""
        for lane, queue in other.retry_queues.items():
            self._let_retry(lane, queue)

    def _let_retry(self, lane: Lane, queue: sqs.Queue) -> None:
        queue.grant_send_messages(self.function)
        self.function.add_environment(lane.retry_queue_setting, queue.queue_url)

    def _alias(self, lane: Lane) -> lambda_.Alias:
        """What the lane's mappings invoke, because by nothing else could an invocation know its lane.

        It points to $LATEST, so that it changes nothing about what runs.
        """
        return lambda_.Alias(
            self, f"Alias-{lane.name}", alias_name=lane.name, version=self.function.latest_version
        )

    def _map_topic(
        self, lane: Lane, alias: lambda_.Alias, environment: Environment, kafka: KafkaCluster
    ) -> None:
        """A mapping made directly: ManagedKafkaEventSource allows a function only one for each topic.

        Nothing here may be a property that only provisioned pollers heed. Topic, group and starting position
        cannot change: remove the mapping in one deployment and add it in the next, with the same group.
        """
        consumer_group = lane.consumer_group(environment.kafka_job_consumer_group)
        pattern = lane.filter_pattern()
        mapping = lambda_.EventSourceMapping(
            self,
            f"Mapping-{lane.name}",
            target=alias,
            event_source_arn=kafka.arn,
            kafka_topic=kafka.topic_name,
            kafka_consumer_group_id=consumer_group,
            # LATEST could lose what is published while a mapping is made or changed.
            starting_position=lambda_.StartingPosition.TRIM_HORIZON,
            batch_size=lane.batch_size,
            max_batching_window=Duration.seconds(lane.batching_window_seconds),
            filters=None if pattern is None else [lambda_.FilterCriteria.filter(pattern)],
        )
        acknowledge(
            mapping,
            "Only provisioned pollers heed a destination; the function fails no batch for the sake of one record",
            "Serverless-LambdaEventSourceMappingDestination",
        )
        kafka.grant_consume(self.function, consumer_group)
        if kafka.topic is not None:
            # A mapping of a topic that is not there yet fails.
            mapping.node.add_dependency(kafka.topic)

    @staticmethod
    def _map_retry_queue(alias: lambda_.Alias, queue: sqs.Queue) -> None:
        read_queue(
            alias,
            # Alone in its batch, a message stays when the function fails and goes when it succeeds.
            event_sources.SqsEventSource(queue, batch_size=1, max_concurrency=_RETRY_CONCURRENCY),
        )
