"""How every function of this stack is made."""

from collections.abc import Mapping

from aws_cdk import Duration
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from infra.acknowledged import acknowledge
from infra.environment_settings import Environment
from infra.layers import REPOSITORY, RUNTIME, Layers
from infra.log_groups import create_log_group
from infra.network import Network

_NETWORK_INTERFACES = [
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
    "ec2:AssignPrivateIpAddresses",
    "ec2:UnassignPrivateIpAddresses",
]


class JobFunction(lambda_.Function):
    """The code of functions/<name> on our layers, in the private subnets, with role and security group."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        name: str,
        description: str,
        environment: Environment,
        network: Network,
        layers: Layers,
        timeout_seconds: int,
        memory_mb: int,
        variables: Mapping[str, str],
    ) -> None:
        log_group = create_log_group(
            scope,
            f"{id}Logs",
            name=f"/aws/lambda/{environment.resource_name(name)}",
            environment=environment,
        )
        role = iam.Role(
            scope,
            f"{id}Role",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
            description=description,
        )
        log_group.grant_write(role)
        role.add_to_policy(iam.PolicyStatement(actions=_NETWORK_INTERFACES, resources=["*"]))
        acknowledge(
            role,
            "Lambda puts the function into its subnets by actions that know no resources",
            "AwsSolutions-IAM5[Resource::*]",
        )
        security_group = ec2.SecurityGroup(
            scope,
            f"{id}SecurityGroup",
            vpc=network.vpc,
            description=f"Function {name} of campaign-jobs",
            allow_all_outbound=False,
        )
        security_group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "AWS services")
        super().__init__(
            scope,
            id,
            function_name=environment.resource_name(name),
            description=description,
            runtime=RUNTIME,
            architecture=layers.architecture,
            code=lambda_.Code.from_asset(
                str(REPOSITORY / "functions" / name), exclude=["**/__pycache__", "**/*.pyc"]
            ),
            handler="handler.handler",
            layers=[layers.campaign_jobs, layers.dependencies],
            timeout=Duration.seconds(timeout_seconds),
            memory_size=memory_mb,
            environment=dict(variables),
            role=role,
            log_group=log_group,
            logging_format=lambda_.LoggingFormat.JSON,
            vpc=network.vpc,
            vpc_subnets=ec2.SubnetSelection(subnets=network.private_subnets.subnets),
            security_groups=[security_group],
        )
        acknowledge(
            self,
            "Code, layers and tests are of this Python; a newer one is a change of its own",
            "AwsSolutions-L1",
            "Serverless-LambdaLatestVersion",
        )
        acknowledge(
            self,
            "Logs and metrics carry each event's id; nobody would read traces besides",
            "Serverless-LambdaTracing",
        )
