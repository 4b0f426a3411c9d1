"""The ways in and out of a network of the stack's own."""

from typing import Any

from tests.infrastructure.synthesis import Synthesis


def routes_out(synthesis: Synthesis, subnets: str) -> list[dict[str, Any]]:
    """Where the subnets of a kind send what is for the world."""
    return [
        {name: value for name, value in route["Properties"].items() if name.endswith("Id")}
        for logical_id, route in synthesis.resources("AWS::EC2::Route").items()
        if f"{subnets}Subnet" in logical_id and route["Properties"]["DestinationCidrBlock"] == "0.0.0.0/0"
    ]


def test_dev_goes_out_through_an_instance(dev: Synthesis) -> None:
    assert dev.resources("AWS::EC2::NatGateway") == {}
    nat, instance = dev.one("AWS::EC2::Instance")
    properties = instance["Properties"]
    assert properties["SourceDestCheck"] is False
    assert properties["InstanceType"] == "t4g.nano"
    subnet = dev.template["Resources"][properties["SubnetId"]["Ref"]]
    assert subnet["Properties"]["MapPublicIpOnLaunch"] is True
    assert [route["InstanceId"] for route in routes_out(dev, "Private")] == [{"Ref": nat}] * 2


def test_the_instance_is_of_an_image_that_is_found_when_deployed_and_fits_its_processor(
    dev: Synthesis,
) -> None:
    _, instance = dev.one("AWS::EC2::Instance")
    image = dev.template["Parameters"][instance["Properties"]["ImageId"]["Ref"]]
    assert image["Type"] == "AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>"
    assert image["Default"].startswith("/aws/service/ami-amazon-linux-latest/al2023-")
    assert image["Default"].endswith("-arm64")


def test_the_instance_forwards_and_does_not_give_up_installing_what_that_takes(dev: Synthesis) -> None:
    _, instance = dev.one("AWS::EC2::Instance")
    script = instance["Properties"]["UserData"]["Fn::Base64"].splitlines()
    assert script[0] == "#!/bin/bash"
    assert script[1] == "until yum install iptables-services -y; do sleep 5; done"
    assert any("MASQUERADE" in line for line in script[2:])


def test_the_instance_takes_from_the_network_alone_what_functions_may_send(dev: Synthesis) -> None:
    _, instance = dev.one("AWS::EC2::Instance")
    (group,) = instance["Properties"]["SecurityGroupIds"]
    rules = dev.template["Resources"][group["Fn::GetAtt"][0]]["Properties"]["SecurityGroupIngress"]
    assert {(rule["CidrIp"], rule["FromPort"], rule["ToPort"]) for rule in rules} == {
        ("10.40.0.0/16", 443, 443),
        ("10.40.0.0/16", 1024, 65535),
    }
    assert dev.let_in(group) == []


def test_the_others_go_out_through_gateways(synthesis: Synthesis) -> None:
    gateways = synthesis.resources("AWS::EC2::NatGateway")
    assert len(gateways) == {"dev": 0, "staging": 1, "prod": 3}[synthesis.environment.name]
    routes = routes_out(synthesis, "Private")
    assert len(routes) == synthesis.environment.network.availability_zones
    if gateways:
        assert synthesis.resources("AWS::EC2::Instance") == {}
        # In prod, a zone that is lost takes no other's way out with it.
        assert {route["NatGatewayId"]["Ref"] for route in routes} == set(gateways)


def test_nothing_but_nat_gets_an_address_in_the_public_subnets(synthesis: Synthesis) -> None:
    handing_out = [
        logical_id
        for logical_id, subnet in synthesis.resources("AWS::EC2::Subnet").items()
        if subnet["Properties"].get("MapPublicIpOnLaunch")
    ]
    assert all("PublicSubnet" in logical_id for logical_id in handing_out)
    assert bool(handing_out) == (synthesis.environment.name == "dev")


def test_the_database_s_subnets_lead_nowhere(synthesis: Synthesis) -> None:
    assert routes_out(synthesis, "Database") == []
    _, group = synthesis.one("AWS::RDS::DBSubnetGroup")
    assert all("DatabaseSubnet" in subnet["Ref"] for subnet in group["Properties"]["SubnetIds"])


def test_what_goes_to_s3_passes_no_nat(synthesis: Synthesis) -> None:
    _, endpoint = synthesis.one("AWS::EC2::VPCEndpoint")
    assert endpoint["Properties"]["VpcEndpointType"] == "Gateway"
    tables = {table["Ref"] for table in endpoint["Properties"]["RouteTableIds"]}
    private = {
        logical_id
        for logical_id in synthesis.resources("AWS::EC2::RouteTable")
        if "PrivateSubnet" in logical_id
    }
    assert private
    assert private <= tables


def test_networks_of_the_environments_do_not_overlap(synthesis: Synthesis) -> None:
    _, vpc = synthesis.one("AWS::EC2::VPC")
    wanted = {"dev": "10.40.0.0/16", "staging": "10.41.0.0/16", "prod": "10.42.0.0/16"}
    assert vpc["Properties"]["CidrBlock"] == wanted[synthesis.environment.name]
