"""The whole of one environment. Wiring only: what the parts are is said in their own files."""

from aws_cdk import CfnOutput, Stack
from constructs import Construct

from campaign_jobs import catalog
from infra.alarms import Alarms
from infra.dashboard import Dashboard
from infra.database import Database
from infra.email_identity import EmailIdentity
from infra.environment_settings import Environment
from infra.event_worker import EventWorker
from infra.feedback import Feedback
from infra.kafka_cluster import KafkaCluster
from infra.layers import Layers
from infra.migrations import Migrations
from infra.network import WEBHOOK_PORTS, Network
from infra.operators import Operators
from infra.producers import Producers
from infra.scheduled_worker import ScheduledWorker
from infra.unsubscribe import Unsubscribe


class CampaignJobsStack(Stack):
    def __init__(self, scope: Construct, id: str, *, environment: Environment) -> None:
        super().__init__(
            scope,
            id,
            description=f"Background jobs of waitlist and referral campaigns ({environment.name})",
            termination_protection=environment.retain_data,
        )
        self.environment_settings = environment
        self.network = Network(self, "Network", environment=environment)
        self.layers = Layers(self, "Layers")
        self.kafka = KafkaCluster(self, "Kafka", environment=environment, network=self.network)
        self.database = Database(self, "Database", environment=environment, network=self.network)
        self.migrations = Migrations(
            self,
            "Migrations",
            environment=environment,
            network=self.network,
            layers=self.layers,
            database=self.database,
        )
        self.email_identity = EmailIdentity(self, "EmailIdentity", environment=environment)
        self.producers = Producers(
            self, "Producers", environment=environment, network=self.network, kafka=self.kafka
        )

        pool_size = {"KAFKA_WORKER_POOL_SIZE": str(environment.kafka_worker_pool_size)}
        email = self._event_worker(catalog.EMAIL, **pool_size, **self._sending_variables())
        position = self._event_worker(catalog.POSITION)
        reward = self._event_worker(catalog.REWARD, **pool_size)
        unroutable = self._event_worker(catalog.UNROUTABLE)
        analytics = self._scheduled_worker(catalog.ANALYTICS, **environment.retention.variables())
        fraud = self._scheduled_worker(catalog.FRAUD)
        relay = self._scheduled_worker(
            catalog.RELAY,
            KAFKA_BROKERS=self.kafka.bootstrap_brokers,
            KAFKA_JOB_TOPIC=environment.kafka_job_topic,
            KAFKA_JOB_CONSUMER_GROUP=environment.kafka_job_consumer_group,
            KAFKA_AUTH="iam",
        )
        for tuned in (analytics, fraud):
            tuned.show_schedule_to(relay.function)

        feedback = Feedback(
            self,
            "Feedback",
            environment=environment,
            network=self.network,
            layers=self.layers,
            database=self.database,
            configuration_set=self.email_identity.configuration_set,
        )

        unsubscribe = Unsubscribe(
            self, "Unsubscribe", environment=environment, network=self.network, layers=self.layers
        )

        for worker in (email, position, reward, unroutable, analytics, fraud, relay, unsubscribe):
            self.database.grant_connect(worker.function)
        unsubscribe.let_sign(email.function)
        self.email_identity.grant_send(email.function)
        # A redriven record that has an owner by now goes to that owner's.
        for owner in (email, position, reward):
            unroutable.forward_to(owner)
        reward.function.connections.allow_to_any_ipv4(WEBHOOK_PORTS, "Webhooks")
        self.kafka.grant_publish(relay.function)
        self.kafka.connections.allow_default_port_from(relay.function, "Relay to brokers")
        self.operators = Operators(
            self,
            "Operators",
            environment=environment,
            network=self.network,
            kafka=self.kafka,
            database=self.database,
            email_identity=self.email_identity,
            scheduled=(analytics, fraud, relay),
            feedback=feedback.function,
        )
        self.alarms = Alarms(self, "Alarms", environment=environment, reporting=relay.rule)
        Dashboard(self, "Dashboard", environment=environment, alarms=self.alarms.all)
        self._put_out(unsubscribe)

    def _put_out(self, unsubscribe: Unsubscribe) -> None:
        """What an operator needs to know of a deployed stack."""
        values = {
            "Brokers": (self.kafka.bootstrap_brokers, "KAFKA_BROKERS for producers, with KAFKA_AUTH=iam"),
            "Topic": (self.kafka.topic_name, "KAFKA_JOB_TOPIC for producers"),
            "ProducerPolicy": (self.producers.policy.managed_policy_arn, "For the roles of producers"),
            "ProducerSecurityGroup": (
                self.producers.security_group.security_group_id,
                "For producers in this VPC",
            ),
            "OperatorPolicy": (self.operators.policy.managed_policy_arn, "For whoever runs the command line"),
            "OperatorSecurityGroup": (
                self.operators.security_group.security_group_id,
                "For where the command line runs",
            ),
            "DatabaseSecret": (self.database.secret.secret_arn, "Where PostgreSQL is, and its password"),
            "AlarmTopic": (self.alarms.topic.topic_arn, "Where alarms go, for whoever subscribes to it"),
            "UnsubscribeUrl": (unsubscribe.url, "Where unsubscribe links begin"),
            **{
                name: (record, "A record for the domain's DNS")
                for name, record in {**self.email_identity.dns_records, **unsubscribe.dns_records}.items()
            },
        }
        for name, (value, description) in values.items():
            CfnOutput(self, name, value=value, description=description)

    def _event_worker(self, job_type: catalog.EventJobType, **variables: str) -> EventWorker:
        return EventWorker(
            self,
            job_type.name.capitalize(),
            job_type=job_type,
            environment=self.environment_settings,
            network=self.network,
            layers=self.layers,
            kafka=self.kafka,
            variables=variables,
        )

    def _scheduled_worker(self, job_type: catalog.ScheduledJobType, **variables: str) -> ScheduledWorker:
        return ScheduledWorker(
            self,
            job_type.name.capitalize(),
            job_type=job_type,
            environment=self.environment_settings,
            network=self.network,
            layers=self.layers,
            variables=variables,
        )

    def _sending_variables(self) -> dict[str, str]:
        environment = self.environment_settings
        variables = {
            "DEFAULT_SENDER": environment.sending.default_sender,
            "SES_RATE_SHARE": str(environment.sending.rate_share),
            "SES_CONFIGURATION_SET": self.email_identity.configuration_set.configuration_set_name,
        }
        if environment.public_base_url is not None:
            variables["DEFAULT_PUBLIC_BASE_URL"] = environment.public_base_url
        return variables
