"""PostgreSQL, the stack's own or one that is there, reached over TLS with the credentials of one secret."""

from aws_cdk import CfnResource, Duration
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from infra.acknowledged import acknowledge
from infra.environment_settings import Environment, ExistingDatabase, NewDatabase
from infra.functions import JobFunction
from infra.network import Network
from infra.retention import keep


class Database(Construct):
    def __init__(self, scope: Construct, id: str, *, environment: Environment, network: Network) -> None:
        super().__init__(scope, id)
        self.cluster: rds.DatabaseCluster | None = None
        """The stack's own; None where the database is there already."""
        database = environment.database
        if isinstance(database, ExistingDatabase):
            self.secret = secretsmanager.Secret.from_secret_complete_arn(self, "Secret", database.secret_arn)
            self.connections = ec2.Connections(
                security_groups=[
                    ec2.SecurityGroup.from_security_group_id(
                        self, "SecurityGroup", database.security_group_id
                    )
                ],
                default_port=ec2.Port.tcp(database.port),
            )
        else:
            self.cluster = self._create(environment, database, network)
            self.connections = self.cluster.connections
            if self.cluster.secret is None:
                raise TypeError("the cluster's credentials must come from a secret")
            self.secret = self.cluster.secret
        # Whoever connects needs what the schema is brought by; see `grant_connect`.
        self.migrated: CfnResource | None = None

    def _create(
        self, environment: Environment, database: NewDatabase, network: Network
    ) -> rds.DatabaseCluster:
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
            if database.reader
            else []
        )
        cluster = rds.DatabaseCluster(
            self,
            "Cluster",
            cluster_identifier=environment.resource_name("database"),
            engine=engine,
            writer=rds.ClusterInstance.serverless_v2("Writer", auto_minor_version_upgrade=True),
            readers=readers,
            serverless_v2_min_capacity=database.min_capacity,
            serverless_v2_max_capacity=database.max_capacity,
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
            # For people: who is granted rds_iam needs no password.
            iam_authentication=True,
            backup=rds.BackupProps(retention=Duration.days(14 if environment.retain_data else 1)),
            copy_tags_to_snapshot=True,
            cloudwatch_logs_exports=["postgresql"],
            deletion_protection=environment.retain_data,
        )
        keep(environment, self)
        acknowledge(
            cluster.node.find_child("Secret"),
            "Changed by hand, in PostgreSQL and here: functions read it for each connection they open. Rotation would"
            " take one more function that can become the owner",
            "AwsSolutions-SMG4",
        )
        if not environment.retain_data:
            acknowledge(cluster, "The environment's data are to end with its stack", "AwsSolutions-RDS10")
        return cluster

    def grant_connect(self, function: JobFunction) -> None:
        """Let a function in, tell it where, and keep it from its code's next version until the schema is there.

        The one place to change when functions get a database role of their own.
        """
        self.let_in(function)
        if self.migrated is not None:
            function.node.add_dependency(self.migrated)

    def let_in(self, function: JobFunction) -> None:
        self.secret.grant_read(function)
        self.connections.allow_default_port_from(function, "PostgreSQL")
        function.add_environment("DATABASE_SECRET_ARN", self.secret.secret_arn)
