"""What services need to publish events: where, and the right to."""

from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from constructs import Construct

from infra.environment_settings import Environment
from infra.kafka_cluster import IAM_PORT, KafkaCluster
from infra.network import Network
from infra.parameters import put_parameters


class Producers(Construct):
    """A security group and a policy for services to take on; SSM parameters below /campaign-jobs/<environment>/."""

    def __init__(
        self, scope: Construct, id: str, *, environment: Environment, network: Network, kafka: KafkaCluster
    ) -> None:
        super().__init__(scope, id)
        self.security_group = ec2.SecurityGroup(
            self,
            "SecurityGroup",
            vpc=network.vpc,
            description=f"Services that publish to campaign-jobs {environment.name}",
            allow_all_outbound=False,
        )
        # EC2 lets everything out of a group without a rule inside it; those to other groups stand beside it. This
        # one reaches nobody.
        self.security_group.add_egress_rule(
            ec2.Peer.ipv4("255.255.255.255/32"), ec2.Port.tcp(IAM_PORT), "Nothing but brokers"
        )
        kafka.connections.allow_default_port_from(self.security_group, "Producers to brokers")
        self.policy = iam.ManagedPolicy(
            self,
            "Policy",
            managed_policy_name=environment.resource_name("producer"),
            description=f"Publish to the topic {kafka.topic_name} of campaign-jobs {environment.name}",
            statements=kafka.publish_statements(),
        )
        put_parameters(
            self,
            environment,
            (
                ("brokers", kafka.bootstrap_brokers, "KAFKA_BROKERS, for IAM authentication over TLS"),
                ("topic", kafka.topic_name, "KAFKA_JOB_TOPIC"),
                ("producer-policy-arn", self.policy.managed_policy_arn, "For a service's role"),
                (
                    "producer-security-group-id",
                    self.security_group.security_group_id,
                    "For a service in this VPC",
                ),
            ),
        )
