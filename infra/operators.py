"""What whoever runs the command line needs: where everything is, the right to use it, and a way in."""

from collections.abc import Sequence

from aws_cdk import Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from campaign_jobs.catalog import JOB_TYPE_BY_LANE
from infra.acknowledged import acknowledge
from infra.database import Database
from infra.email_identity import EmailIdentity
from infra.environment_settings import Environment
from infra.kafka_cluster import KafkaCluster
from infra.network import Network
from infra.parameters import put_parameters
from infra.scheduled_worker import ScheduledWorker


class Operators(Construct):
    """A security group and a policy to take on; SSM parameters beside those of producers. Made when all else is there.

    What the policy allows is what `cli` calls; `tests/infrastructure/test_operators.py` compares them.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        environment: Environment,
        network: Network,
        kafka: KafkaCluster,
        database: Database,
        email_identity: EmailIdentity,
        scheduled: Sequence[ScheduledWorker],
        feedback: lambda_.IFunction,
    ) -> None:
        super().__init__(scope, id)
        self.security_group = ec2.SecurityGroup(
            self,
            "SecurityGroup",
            vpc=network.vpc,
            description=f"Where campaign-jobs {environment.name} is operated from",
            allow_all_outbound=False,
        )
        # AWS's own APIs; brokers and database follow.
        self.security_group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "AWS")
        kafka.connections.allow_default_port_from(self.security_group, "Operators to brokers")
        database.connections.allow_default_port_from(self.security_group, "Operators to PostgreSQL")
        self.policy = iam.ManagedPolicy(
            self,
            "Policy",
            managed_policy_name=environment.resource_name("operator"),
            description=f"Operate campaign-jobs {environment.name} by its command line",
            statements=[
                *kafka.publish_statements(),
                *kafka.look_statements(_groups(environment)),
                *self._statements(
                    environment=environment,
                    database=database,
                    email_identity=email_identity,
                    scheduled=scheduled,
                    feedback=feedback,
                ),
            ],
        )
        acknowledge(
            self.policy,
            "The account's mail, its suppression list, its metrics and the list of its mappings belong to no resource",
            "AwsSolutions-IAM5[Resource::*]",
        )
        put_parameters(
            self,
            environment,
            (
                ("consumer-group", environment.kafka_job_consumer_group, "KAFKA_JOB_CONSUMER_GROUP"),
                ("database-secret-arn", database.secret.secret_arn, "DATABASE_SECRET_ARN"),
                ("default-sender", environment.sending.default_sender, "DEFAULT_SENDER"),
                ("operator-policy-arn", self.policy.managed_policy_arn, "For whoever runs the command line"),
                (
                    "operator-security-group-id",
                    self.security_group.security_group_id,
                    "For where the command line runs",
                ),
            ),
        )

    def _statements(
        self,
        *,
        environment: Environment,
        database: Database,
        email_identity: EmailIdentity,
        scheduled: Sequence[ScheduledWorker],
        feedback: lambda_.IFunction,
    ) -> list[iam.PolicyStatement]:
        stack = Stack.of(self)
        queues = [each.queue_arn for each in stack.node.find_all() if isinstance(each, sqs.Queue)]
        fed = [each.function_arn for each in stack.node.find_all() if isinstance(each, lambda_.Alias)]
        fed.append(feedback.function_arn)
        parameters = stack.format_arn(
            service="ssm", resource="parameter", resource_name=f"campaign-jobs/{environment.name}"
        )
        return [
            _allow(["ssm:GetParametersByPath"], parameters),
            _allow(["secretsmanager:GetSecretValue"], database.secret.secret_arn),
            _allow(
                [
                    "sqs:ChangeMessageVisibility",
                    "sqs:DeleteMessage",
                    "sqs:GetQueueAttributes",
                    "sqs:GetQueueUrl",
                    "sqs:ReceiveMessage",
                    "sqs:SendMessage",
                ],
                *queues,
            ),
            _allow(
                ["events:DescribeRule", "events:DisableRule", "events:EnableRule"],
                *(each.rule.rule_arn for each in scheduled),
            ),
            iam.PolicyStatement(
                actions=["lambda:GetEventSourceMapping", "lambda:UpdateEventSourceMapping"],
                # A mapping's ARN has an id that nobody knows beforehand; what it feeds is known.
                resources=["*"],
                conditions={"ArnEquals": {"lambda:FunctionArn": fed}},
            ),
            # A backfill, and a run that failed.
            _allow(["lambda:InvokeFunction"], *(each.function.function_arn for each in scheduled)),
            _allow(["sqs:PurgeQueue"], *(each.failed_runs.queue_arn for each in scheduled)),
            _allow(["ses:GetEmailIdentity", "ses:SendEmail"], *email_identity.arns),
            _allow(
                [
                    "cloudwatch:GetMetricData",
                    "lambda:ListEventSourceMappings",
                    "ses:DeleteSuppressedDestination",
                    "ses:GetAccount",
                    "ses:GetSuppressedDestination",
                    "ses:ListSuppressedDestinations",
                ],
                "*",
            ),
        ]


def _groups(environment: Environment) -> list[str]:
    prefix = environment.kafka_job_consumer_group
    return [*(lane.consumer_group(prefix) for lane in JOB_TYPE_BY_LANE), f"{prefix}-command-line"]


def _allow(actions: list[str], *resources: str) -> iam.PolicyStatement:
    return iam.PolicyStatement(actions=actions, resources=list(resources))
