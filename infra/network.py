"""The VPC that cluster, database and functions stand in."""

from aws_cdk import Fn, RemovalPolicies, RemovalPolicy
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from infra.environments import Environment


class Network(Construct):
    """Public subnets hold nothing but NAT; functions and brokers are private; the database has no way out."""

    def __init__(self, scope: Construct, id: str, *, environment: Environment) -> None:
        super().__init__(scope, id)
        zones = environment.availability_zones
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr("10.40.0.0/16"),
            # Picked when deployed: knowing the zones' names at synthesis would need a look-up in the account.
            availability_zones=[Fn.select(zone, Fn.get_azs()) for zone in range(zones)],
            nat_gateways=environment.nat_gateways,
            subnet_configuration=[
                ec2.SubnetConfiguration(name="Public", subnet_type=ec2.SubnetType.PUBLIC, cidr_mask=24),
                ec2.SubnetConfiguration(
                    name="Private", subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS, cidr_mask=20
                ),
                ec2.SubnetConfiguration(
                    name="Database", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED, cidr_mask=24
                ),
            ],
        )
        self.private_subnets = self.vpc.select_subnets(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS)
        self.database_subnets = self.vpc.select_subnets(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
        if environment.retain_data:
            # A cluster that outlives the stack keeps its interfaces in these; NAT gateways may go.
            RemovalPolicies.of(self).apply(
                RemovalPolicy.RETAIN, apply_to_resource_types=["AWS::EC2::VPC", "AWS::EC2::Subnet"]
            )
