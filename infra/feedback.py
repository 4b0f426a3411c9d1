"""The way back from SES: its events, through EventBridge and a queue, to the function `feedback`."""

from typing import Final

from aws_cdk import Duration
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_lambda_event_sources as event_sources
from aws_cdk import aws_ses as ses
from constructs import Construct

from campaign_jobs.catalog import FEEDBACK
from infra.acknowledged import acknowledge
from infra.database import Database
from infra.environment_settings import Environment
from infra.functions import JobFunction
from infra.layers import Layers
from infra.network import Network
from infra.queues import create_queue, read_queue

# All that says where a mail has got to. Opened and clicked would need tracking in the mails.
_EVENTS: Final = (
    ses.EmailSendingEvent.SEND,
    ses.EmailSendingEvent.DELIVERY,
    ses.EmailSendingEvent.DELIVERY_DELAY,
    ses.EmailSendingEvent.BOUNCE,
    ses.EmailSendingEvent.COMPLAINT,
    ses.EmailSendingEvent.REJECT,
    ses.EmailSendingEvent.RENDERING_FAILURE,
)
# The least that SQS mappings take.
_CONCURRENCY: Final = 2


class Feedback(Construct):
    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        environment: Environment,
        network: Network,
        layers: Layers,
        database: Database,
        configuration_set: ses.ConfigurationSet,
    ) -> None:
        super().__init__(scope, id)
        # Of messages that SQS moves here itself, "redrive to source" in the console sends each back to where it was.
        self.dead_letter_queue = create_queue(
            self, "DeadLetters", name=environment.resource_name(f"{FEEDBACK.name}-dead-letters")
        )
        self.queue = create_queue(
            self,
            "Queue",
            name=environment.resource_name(FEEDBACK.name),
            visibility_timeout_seconds=FEEDBACK.visibility_timeout_seconds,
            dead_letter_queue=self.dead_letter_queue,
            max_receives=FEEDBACK.max_receives,
        )
        self._collect(environment, configuration_set)
        self.function = JobFunction(
            self,
            "Function",
            name=FEEDBACK.name,
            description=f"Records what SES reports of the mails of {environment.name}",
            environment=environment,
            network=network,
            layers=layers,
            timeout_seconds=FEEDBACK.timeout_seconds,
            memory_mb=FEEDBACK.memory_mb,
            variables={},
        )
        acknowledge(
            self.function,
            "Its mapping invokes it and waits; SQS moves what fails too often to the queue's dead-letter queue",
            "Serverless-LambdaDLQ",
        )
        read_queue(
            self.function,
            event_sources.SqsEventSource(
                self.queue,
                batch_size=FEEDBACK.batch_size,
                max_batching_window=Duration.seconds(FEEDBACK.batching_window_seconds),
                max_concurrency=_CONCURRENCY,
                # One message that cannot be read must not bring its neighbors back.
                report_batch_item_failures=True,
            ),
        )
        database.grant_connect(self.function)

    def _collect(self, environment: Environment, configuration_set: ses.ConfigurationSet) -> None:
        # SES publishes to the default bus and to no other.
        bus = events.EventBus.from_event_bus_name(self, "DefaultBus", "default")
        ses.ConfigurationSetEventDestination(
            self,
            "EventDestination",
            configuration_set=configuration_set,
            configuration_set_event_destination_name=environment.resource_name(FEEDBACK.name),
            destination=ses.EventDestination.event_bus(bus),
            events=list(_EVENTS),
        )
        events.Rule(
            self,
            "Rule",
            rule_name=environment.resource_name(FEEDBACK.name),
            description=f"Collects what SES reports of the mails of {environment.name}",
            event_pattern=events.EventPattern(
                source=["aws.ses"],
                # Every environment of the account, and whoever else sends from it, publishes to the same bus.
                detail={
                    "mail": {"tags": {"ses:configuration-set": [configuration_set.configuration_set_name]}}
                },
            ),
            targets=[targets.SqsQueue(self.queue, dead_letter_queue=self.dead_letter_queue)],
        )
