"""PostgreSQL: Aurora Serverless v2, reached over TLS with the credentials of one secret."""

from aws_cdk import Duration, RemovalPolicies, RemovalPolicy
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_rds as rds
from constructs import Construct

from infra.environments import Environment
from infra.functions import JobFunction
from infra.network import Network


class Database(Construct):
    def __init__(self, scope: Construct, id: str, *, environment: Environment, network: Network) -> None:
        super().__init__(scope, id)
        engine = rds.DatabaseClusterEngine.aurora_postgres(version=rds.AuroraPostgresEngineVersion.VER_17_9)
        security_group = ec2.SecurityGroup(
            self,
            "SecurityGroup",
            vpc=network.vpc,
            description="PostgreSQL of campaign-jobs",
            allow_all_outbound=False,
        )
        readers = (
            [
                rds.ClusterInstance.serverless_v2(
                    "Reader", scale_with_writer=True, auto_minor_version_upgrade=True
                )
            ]
            if environment.database_reader
            else []
        )
        self.cluster = rds.DatabaseCluster(
            self,
            "Cluster",
            cluster_identifier=environment.resource_name("database"),
            engine=engine,
            writer=rds.ClusterInstance.serverless_v2("Writer", auto_minor_version_upgrade=True),
            readers=readers,
            serverless_v2_min_capacity=environment.database_min_capacity,
            serverless_v2_max_capacity=environment.database_max_capacity,
            vpc=network.vpc,
            vpc_subnets=ec2.SubnetSelection(subnets=network.database_subnets.subnets),
            security_groups=[security_group],
            default_database_name="campaign_jobs",
            credentials=rds.Credentials.from_generated_secret(
                "campaign_jobs_owner", secret_name=environment.resource_name("database")
            ),
            parameter_group=rds.ParameterGroup(
                self, "Parameters", engine=engine, parameters={"rds.force_ssl": "1"}
            ),
            storage_encrypted=True,
            backup=rds.BackupProps(retention=Duration.days(14 if environment.retain_data else 1)),
            copy_tags_to_snapshot=True,
            cloudwatch_logs_exports=["postgresql"],
            deletion_protection=environment.retain_data,
        )
        RemovalPolicies.of(self).apply(
            RemovalPolicy.RETAIN if environment.retain_data else RemovalPolicy.DESTROY
        )

    def grant_connect(self, function: JobFunction) -> None:
        """Let a function in, and tell it where.

        The one place to change when functions get a database role of their own.
        """
        secret = self.cluster.secret
        if secret is None:
            raise TypeError("the cluster's credentials must come from a secret")
        secret.grant_read(function)
        self.cluster.connections.allow_default_port_from(function, "PostgreSQL")
        function.add_environment("DATABASE_SECRET_ARN", secret.secret_arn)
