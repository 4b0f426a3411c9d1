"""The VPC that cluster, database and functions stand in."""

from typing import Final

from aws_cdk import Annotations, Fn
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from infra.acknowledged import acknowledge
from infra.environment_settings import Environment, ExistingNetwork, NewNetwork
from infra.log_groups import create_log_group
from infra.retention import keep

_SECURE_PORT: Final = ec2.Port.tcp(443)
# Receivers of webhooks may listen on any port that the guard of outgoing requests lets pass.
WEBHOOK_PORTS: Final = ec2.Port.tcp_range(1024, 65535)


class Network(Construct):
    """Public subnets hold nothing but NAT; functions and brokers are private; the database has no way out."""

    vpc: ec2.IVpc

    def __init__(self, scope: Construct, id: str, *, environment: Environment) -> None:
        super().__init__(scope, id)
        if isinstance(environment.network, ExistingNetwork):
            self._take(environment.network)
        else:
            self._create(environment.network)
            self._log_rejected_traffic(environment, environment.network)
            # All of it, the ways in and out included: what is kept must be of use to the next stack as it stands.
            keep(environment, self)

    def _take(self, existing: ExistingNetwork) -> None:
        self.vpc = ec2.Vpc.from_vpc_attributes(
            self,
            "Vpc",
            vpc_id=existing.vpc_id,
            availability_zones=list(existing.availability_zones),
            private_subnet_ids=list(existing.private_subnet_ids),
            private_subnet_route_table_ids=list(existing.private_route_table_ids),
            isolated_subnet_ids=list(existing.database_subnet_ids) or None,
        )
        self.private_subnets = self.vpc.select_subnets(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS)
        if not existing.database_subnet_ids:
            self.database_subnets = self.private_subnets
            return
        self.database_subnets = self.vpc.select_subnets(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
        for subnet in self.database_subnets.subnets:
            # Nobody asks for the route table of a subnet that has no way out.
            Annotations.of(subnet).acknowledge_warning("@aws-cdk/aws-ec2:noSubnetRouteTableId")

    def _create(self, new: NewNetwork) -> None:
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(new.cidr),
            # Picked when deployed: knowing the zones' names at synthesis would need a look-up in the account.
            availability_zones=[Fn.select(zone, Fn.get_azs()) for zone in range(new.availability_zones)],
            nat_gateways=new.nats,
            nat_gateway_provider=self._nat_instance() if new.nat == "instance" else None,
            subnet_configuration=[
                ec2.SubnetConfiguration(
                    name="Public",
                    subnet_type=ec2.SubnetType.PUBLIC,
                    cidr_mask=24,
                    # Whatever is started there by mistake is not reachable; NAT brings its own address.
                    map_public_ip_on_launch=new.nat == "instance",
                ),
                ec2.SubnetConfiguration(
                    name="Private", subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS, cidr_mask=20
                ),
                ec2.SubnetConfiguration(
                    name="Database", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED, cidr_mask=24
                ),
            ],
            # Costs nothing, and spares NAT what goes to S3.
            gateway_endpoints={
                "S3": ec2.GatewayVpcEndpointOptions(service=ec2.GatewayVpcEndpointAwsService.S3)
            },
        )
        if self._nat is not None:
            for instance in self._nat.gateway_instances:
                self._harden(instance)
            for port, what in ((_SECURE_PORT, "AWS services and webhooks"), (WEBHOOK_PORTS, "Webhooks")):
                self._nat.connections.allow_from(ec2.Peer.ipv4(new.cidr), port, what)
        self.private_subnets = self.vpc.select_subnets(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS)
        self.database_subnets = self.vpc.select_subnets(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)

    _nat: ec2.NatInstanceProviderV2 | None = None

    def _nat_instance(self) -> ec2.NatInstanceProviderV2:
        """The image's id comes from an SSM parameter of AWS when the stack is deployed."""
        user_data = ec2.UserData.for_linux()
        # While the machine starts, its package manager may be busy (https://github.com/aws/aws-cdk/issues/36717).
        user_data.add_commands(
            "until yum install iptables-services -y; do sleep 5; done",
            *ec2.NatInstanceProviderV2.DEFAULT_USER_DATA_COMMANDS,
        )
        self._nat = ec2.NatInstanceProviderV2(
            instance_type=ec2.InstanceType.of(ec2.InstanceClass.T4G, ec2.InstanceSize.NANO),
            machine_image=ec2.MachineImage.latest_amazon_linux2023(
                cpu_type=ec2.AmazonLinuxCpuType.ARM_64, edition=ec2.AmazonLinuxEdition.MINIMAL
            ),
            default_allowed_traffic=ec2.NatTrafficDirection.OUTBOUND_ONLY,
            user_data=user_data,
        )
        return self._nat

    @staticmethod
    def _harden(instance: ec2.Instance) -> None:
        instance.instance.block_device_mappings = [
            ec2.CfnInstance.BlockDeviceMappingProperty(
                device_name="/dev/xvda", ebs=ec2.CfnInstance.EbsProperty(encrypted=True)
            )
        ]
        acknowledge(
            instance,
            "It holds nothing and may be replaced at any time, which is why it is cheap",
            "AwsSolutions-EC28",
            "AwsSolutions-EC29",
        )

    def _log_rejected_traffic(self, environment: Environment, new: NewNetwork) -> None:
        """What is let through is nobody's question, and most of the cost."""
        if not new.logs_rejected_traffic:
            acknowledge(self.vpc, "This environment's settings save the cost", "AwsSolutions-VPC7")
            return
        log_group = create_log_group(
            self,
            "RejectedTraffic",
            name=f"/campaign-jobs/{environment.name}/rejected-traffic",
            environment=environment,
        )
        self.vpc.add_flow_log(
            "FlowLog",
            destination=ec2.FlowLogDestination.to_cloud_watch_logs(log_group),
            traffic_type=ec2.FlowLogTrafficType.REJECT,
        )
