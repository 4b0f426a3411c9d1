"""The MSK cluster, its topic, and who may do what with them."""

from collections.abc import Sequence

from aws_cdk import Fn, Stack, custom_resources
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_msk as msk
from constructs import Construct

from campaign_jobs import catalog
from infra.acknowledged import acknowledge
from infra.environment_settings import Environment, ExistingKafka, NewKafka
from infra.log_groups import create_log_group
from infra.network import Network
from infra.retention import keep

IAM_PORT = 9098
_RETENTION_HOURS = 7 * 24
_LOOKUP_MEMORY_MB = 256
# The one function of CDK's that makes the stack's calls of the AWS API, by the id that it has in every stack.
_LOOKUP_FUNCTION = f"AWS{custom_resources.AwsCustomResource.PROVIDER_FUNCTION_UUID.replace('-', '')}"


class KafkaCluster(Construct):
    """An MSK cluster that speaks TLS and IAM, the stack's own or one that is there, and the topic of all events."""

    def __init__(self, scope: Construct, id: str, *, environment: Environment, network: Network) -> None:
        super().__init__(scope, id)
        kafka = environment.kafka
        self.topic_name = environment.kafka_job_topic
        self.topic: msk.CfnTopic | None = None
        """What mappings wait for; None where the topic is there already."""
        if isinstance(kafka, ExistingKafka):
            security_group = ec2.SecurityGroup.from_security_group_id(
                self, "SecurityGroup", kafka.security_group_id
            )
            self.arn, brokers = kafka.cluster_arn, "existing"
            replication_factor = kafka.topic_replication_factor
        else:
            security_group = self._create_security_group(network)
            self.arn = self._create_cluster(environment, kafka, network, security_group).ref
            brokers, replication_factor = f"{kafka.brokers}-brokers", kafka.replication_factor
        self.connections = ec2.Connections(
            security_groups=[security_group], default_port=ec2.Port.tcp(IAM_PORT)
        )
        if isinstance(kafka, NewKafka) or kafka.creates_topic:
            # Its retention and replicas are the brokers' defaults in a cluster that has no other topic.
            self.topic = msk.CfnTopic(
                self,
                "Topic",
                cluster_arn=self.arn,
                topic_name=self.topic_name,
                partition_count=catalog.TOPIC_PARTITIONS,
                replication_factor=replication_factor,
            )
        keep(environment, self)
        # It holds nothing to keep, so it comes after that.
        self.bootstrap_brokers = self._look_up_bootstrap_brokers(environment, brokers)

    @property
    def topic_arn(self) -> str:
        """Ends in topic/<cluster's name>/<its uuid>/<topic>."""
        return self._arn_below("topic", self.topic_name)

    def grant_consume(self, grantee: iam.IGrantable, consumer_group: str) -> None:
        """What Lambda's event-source mapping does in the function's name.

        https://docs.aws.amazon.com/lambda/latest/dg/with-msk-permissions.html
        """
        _allow(grantee, ["kafka:DescribeClusterV2", "kafka:GetBootstrapBrokers"], self.arn)
        _allow(
            grantee,
            [
                "kafka-cluster:Connect",
                "kafka-cluster:DescribeCluster",
                "kafka-cluster:DescribeClusterDynamicConfiguration",
            ],
            self.arn,
        )
        _allow(grantee, ["kafka-cluster:DescribeTopic", "kafka-cluster:ReadData"], self.topic_arn)
        _allow(
            grantee,
            ["kafka-cluster:DescribeGroup", "kafka-cluster:AlterGroup"],
            self._arn_below("group", consumer_group),
        )

    def grant_publish(self, grantee: iam.IGrantable) -> None:
        """What an idempotent producer needs."""
        for statement in self.publish_statements():
            grantee.grant_principal.add_to_principal_policy(statement)

    def publish_statements(self) -> list[iam.PolicyStatement]:
        return [
            iam.PolicyStatement(
                actions=[
                    "kafka-cluster:Connect",
                    "kafka-cluster:DescribeCluster",
                    "kafka-cluster:WriteDataIdempotently",
                ],
                resources=[self.arn],
            ),
            iam.PolicyStatement(
                actions=["kafka-cluster:DescribeTopic", "kafka-cluster:WriteData"],
                resources=[self.topic_arn],
            ),
        ]

    def look_statements(self, consumer_groups: Sequence[str]) -> list[iam.PolicyStatement]:
        """What it takes to read the topic without committing, and to see how far groups have got."""
        return [
            iam.PolicyStatement(actions=["kafka-cluster:ReadData"], resources=[self.topic_arn]),
            iam.PolicyStatement(
                actions=["kafka-cluster:DescribeGroup"],
                resources=[self._arn_below("group", group) for group in consumer_groups],
            ),
        ]

    def _arn_below(self, kind: str, name: str) -> str:
        # A cluster's ARN ends in cluster/<name>/<uuid>, those of its groups in group/<name>/<uuid>/<group>.
        parts = Fn.split("/", self.arn, 3)
        prefix = Fn.select(0, Fn.split(":cluster", parts[0]))
        return Fn.join("/", [f"{prefix}:{kind}", parts[1], parts[2], name])

    def _create_security_group(self, network: Network) -> ec2.SecurityGroup:
        group = ec2.SecurityGroup(
            self,
            "SecurityGroup",
            vpc=network.vpc,
            description="MSK brokers, and the pollers of event-source mappings",
            allow_all_outbound=False,
        )
        # Pollers take the cluster's subnets and this group; they need brokers, and over HTTPS Lambda and STS.
        group.add_ingress_rule(group, ec2.Port.tcp(IAM_PORT), "Pollers to brokers")
        group.add_egress_rule(group, ec2.Port.tcp(IAM_PORT), "Pollers to brokers")
        group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "Pollers to Lambda and STS")
        return group

    def _create_cluster(
        self, environment: Environment, kafka: NewKafka, network: Network, security_group: ec2.ISecurityGroup
    ) -> msk.CfnCluster:
        log_group = create_log_group(
            self,
            "BrokerLogs",
            name=f"/campaign-jobs/{environment.name}/kafka",
            environment=environment,
        )
        configuration = msk.CfnConfiguration(
            self,
            "Configuration",
            name=environment.resource_name("kafka"),
            server_properties=_server_properties(kafka),
        )
        return msk.CfnCluster(
            self,
            "Cluster",
            cluster_name=environment.resource_name("kafka"),
            kafka_version=kafka.version,
            number_of_broker_nodes=kafka.brokers,
            broker_node_group_info=msk.CfnCluster.BrokerNodeGroupInfoProperty(
                client_subnets=network.private_subnets.subnet_ids,
                instance_type=kafka.instance_type,
                # Changing them replaces the cluster.
                security_groups=[security_group.security_group_id],
                storage_info=msk.CfnCluster.StorageInfoProperty(
                    ebs_storage_info=msk.CfnCluster.EBSStorageInfoProperty(volume_size=kafka.volume_gib)
                ),
            ),
            client_authentication=msk.CfnCluster.ClientAuthenticationProperty(
                sasl=msk.CfnCluster.SaslProperty(iam=msk.CfnCluster.IamProperty(enabled=True)),
                unauthenticated=msk.CfnCluster.UnauthenticatedProperty(enabled=False),
            ),
            encryption_info=msk.CfnCluster.EncryptionInfoProperty(
                encryption_in_transit=msk.CfnCluster.EncryptionInTransitProperty(
                    client_broker="TLS", in_cluster=True
                )
            ),
            configuration_info=msk.CfnCluster.ConfigurationInfoProperty(
                arn=configuration.attr_arn,
                revision=configuration.attr_latest_revision_revision,
            ),
            logging_info=msk.CfnCluster.LoggingInfoProperty(
                broker_logs=msk.CfnCluster.BrokerLogsProperty(
                    cloud_watch_logs=msk.CfnCluster.CloudWatchLogsProperty(
                        enabled=True, log_group=log_group.log_group_name
                    )
                )
            ),
        )

    def _look_up_bootstrap_brokers(self, environment: Environment, looked_up_for: str) -> str:
        """The brokers' addresses, which CloudFormation does not return. Looked up when `looked_up_for` changes."""
        log_group = create_log_group(self, "BootstrapBrokersLogs", environment=environment)
        role = iam.Role(
            self,
            "BootstrapBrokersRole",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
            description=f"Looks up the brokers of {environment.name}",
        )
        log_group.grant_write(role)
        lookup = custom_resources.AwsCustomResource(
            self,
            "BootstrapBrokers",
            role=role,
            on_update=custom_resources.AwsSdkCall(
                service="Kafka",
                action="getBootstrapBrokers",
                parameters={"ClusterArn": self.arn},
                output_paths=["BootstrapBrokerStringSaslIam"],
                physical_resource_id=custom_resources.PhysicalResourceId.of(looked_up_for),
            ),
            policy=custom_resources.AwsCustomResourcePolicy.from_statements(
                [iam.PolicyStatement(actions=["kafka:GetBootstrapBrokers"], resources=[self.arn])]
            ),
            install_latest_aws_sdk=False,
            log_group=log_group,
            memory_size=_LOOKUP_MEMORY_MB,
        )
        acknowledge(
            Stack.of(self).node.find_child(_LOOKUP_FUNCTION),
            "The deployment waits for the answer, and shows what went wrong",
            "Serverless-LambdaDLQ",
            "Serverless-LambdaTracing",
        )
        return lookup.get_response_field("BootstrapBrokerStringSaslIam")


def _server_properties(kafka: NewKafka) -> str:
    properties = {
        "auto.create.topics.enable": "false",
        "default.replication.factor": str(kafka.replication_factor),
        "min.insync.replicas": str(kafka.min_insync_replicas),
        "unclean.leader.election.enable": "false",
        "log.retention.hours": str(_RETENTION_HOURS),
        # Group offsets must outlive the records, or a quiet mapping would start over after a pause.
        "offsets.retention.minutes": str(4 * _RETENTION_HOURS * 60),
    }
    return "\n".join(f"{name} = {value}" for name, value in properties.items())


def _allow(grantee: iam.IGrantable, actions: list[str], resource: str) -> None:
    iam.Grant.add_to_principal(grantee=grantee, actions=actions, resource_arns=[resource])
