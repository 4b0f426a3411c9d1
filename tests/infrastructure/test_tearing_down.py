"""A stack can be deleted and deployed again: what is kept is kept whole, and the next stack takes it."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra import environments
from infra.environment_settings import Environment, ExistingDatabase, ExistingKafka, ExistingNetwork
from tests.infrastructure.existing import EXISTING_DATABASE, EXISTING_KAFKA, EXISTING_NETWORK
from tests.infrastructure.synthesis import Resource, Synthesis, synthesise

KEEPING = [environment for environment in environments.ENVIRONMENTS if environment.retain_data]
# A topic dies with its cluster, and a cluster with its network.
KEPT = [
    "AWS::EC2::VPC",
    "AWS::EC2::Subnet",
    "AWS::EC2::RouteTable",
    "AWS::EC2::Route",
    "AWS::EC2::NatGateway",
    "AWS::MSK::Cluster",
    "AWS::MSK::Configuration",
    "AWS::MSK::Topic",
    "AWS::RDS::DBCluster",
    "AWS::RDS::DBClusterParameterGroup",
    "AWS::RDS::DBInstance",
    "AWS::RDS::DBSubnetGroup",
    "AWS::SecretsManager::Secret",
    "AWS::SecretsManager::SecretTargetAttachment",
    "AWS::SES::EmailIdentity",
]
NOT_EVERYWHERE = [
    ("dev", "AWS::EC2::NatGateway"),
    ("dev", "AWS::SES::EmailIdentity"),
    ("staging", "AWS::SES::EmailIdentity"),
]
# What tells one resource of a type from another in an account, where its name is ours.
NAMES = {
    "AWS::EC2::SecurityGroup": "GroupName",
    "AWS::Events::Rule": "Name",
    "AWS::IAM::ManagedPolicy": "ManagedPolicyName",
    "AWS::IAM::Role": "RoleName",
    "AWS::Lambda::Function": "FunctionName",
    "AWS::Logs::LogGroup": "LogGroupName",
    "AWS::MSK::Cluster": "ClusterName",
    "AWS::MSK::Configuration": "Name",
    "AWS::MSK::Topic": "TopicName",
    "AWS::RDS::DBCluster": "DBClusterIdentifier",
    "AWS::RDS::DBInstance": "DBInstanceIdentifier",
    "AWS::RDS::DBSubnetGroup": "DBSubnetGroupName",
    "AWS::RDS::DBClusterParameterGroup": "DBClusterParameterGroupName",
    "AWS::SES::ConfigurationSet": "Name",
    "AWS::SES::EmailIdentity": "EmailIdentity",
    "AWS::SNS::Topic": "TopicName",
    "AWS::SQS::Queue": "QueueName",
    "AWS::SSM::Parameter": "Name",
    "AWS::SecretsManager::Secret": "Name",
}


def kept(synthesis: Synthesis) -> dict[str, Resource]:
    return {
        logical_id: resource
        for logical_id, resource in synthesis.template["Resources"].items()
        if resource.get("DeletionPolicy", "Delete") != "Delete"
    }


def references(value: Any) -> Iterator[str]:
    """The logical ids that a resource's properties name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "Ref":
                yield inner
            elif key == "Fn::GetAtt":
                yield inner[0]
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def names(resources: dict[str, Resource]) -> set[tuple[str, str]]:
    return {
        (resource["Type"], str(resource["Properties"][NAMES[resource["Type"]]]))
        for resource in resources.values()
        if NAMES.get(resource["Type"], "") in resource["Properties"]
    }


def after_tearing_down(environment: Environment) -> Environment:
    """The same environment, on what its stack left behind."""
    zones = environment.network.availability_zones
    network: ExistingNetwork = replace(
        EXISTING_NETWORK,
        availability_zones=("eu-central-1a", "eu-central-1b", "eu-central-1c")[:zones],
        private_subnet_ids=tuple(f"subnet-0000000{zone}" for zone in range(zones)),
        private_route_table_ids=tuple(f"rtb-0000000{zone}" for zone in range(zones)),
        database_subnet_ids=(),
    )
    kafka: ExistingKafka = replace(EXISTING_KAFKA, creates_topic=False)
    database: ExistingDatabase = replace(EXISTING_DATABASE, port=5432)
    return replace(
        environment,
        network=network,
        kafka=kafka,
        database=database,
        unsubscribe_keys_secret_arn=EXISTING_DATABASE.secret_arn,
        sending=replace(environment.sending, owns_identity=False),
    )


@pytest.mark.parametrize("type_name", KEPT)
def test_data_and_what_they_stand_in_outlive_the_stack_where_the_environment_says_so(
    synthesis: Synthesis, type_name: str
) -> None:
    resources = synthesis.resources(type_name)
    assert resources or (synthesis.environment.name, type_name) in NOT_EVERYWHERE
    for resource in resources.values():
        if synthesis.environment.retain_data:
            assert resource["UpdateReplacePolicy"] == "Retain"
            # Not what a deployment made before it failed: the next one would meet its name.
            assert resource["DeletionPolicy"] == "RetainExceptOnCreate"
        else:
            assert resource.get("DeletionPolicy", "Delete") == "Delete"
            assert resource.get("UpdateReplacePolicy", "Delete") == "Delete"


def test_an_environment_that_keeps_its_data_is_not_deleted_by_mistake(synthesis: Synthesis) -> None:
    artifact = synthesis.manifest["artifacts"][f"campaign-jobs-{synthesis.environment.name}"]
    protected = artifact["properties"].get("terminationProtection", False)
    assert protected is synthesis.environment.retain_data


def test_what_is_kept_needs_nothing_that_goes(synthesis: Synthesis) -> None:
    everything = synthesis.template["Resources"]
    staying = kept(synthesis)
    assert bool(staying) == synthesis.environment.retain_data
    for logical_id, resource in staying.items():
        needed = {name for name in references(resource["Properties"]) if name in everything}
        # A custom resource is a record in the stack: nobody calls its function for it any more.
        if not resource["Type"].startswith("Custom::"):
            assert needed <= set(staying), f"{logical_id} is kept and needs {needed - set(staying)}"


def test_what_goes_is_not_held_back_by_rules_that_are_kept(synthesis: Synthesis) -> None:
    """EC2 deletes no security group that another one's rule names."""
    groups_that_go = set(synthesis.resources("AWS::EC2::SecurityGroup")) - set(kept(synthesis))
    assert groups_that_go
    for logical_id, resource in kept(synthesis).items():
        assert not groups_that_go & set(references(resource)), logical_id


def test_the_brokers_group_still_lets_pollers_in(synthesis: Synthesis) -> None:
    """The next stack's mappings take it as it is."""
    _, cluster = synthesis.one("AWS::MSK::Cluster")
    (group,) = cluster["Properties"]["BrokerNodeGroupInfo"]["SecurityGroups"]
    (itself,) = (
        rule
        for rule in synthesis.resources("AWS::EC2::SecurityGroupIngress").values()
        if rule["Properties"]["GroupId"] == rule["Properties"]["SourceSecurityGroupId"] == group
    )
    assert (itself.get("DeletionPolicy") == "RetainExceptOnCreate") == synthesis.environment.retain_data


def test_the_settings_for_taking_what_was_kept_are_right(synthesis: Synthesis) -> None:
    assert after_tearing_down(synthesis.environment).problems() == []


@pytest.mark.parametrize("environment", KEEPING, ids=lambda environment: environment.name)
def test_the_next_stack_meets_none_of_the_names_that_were_kept(
    environment: Environment, tmp_path: Path
) -> None:
    before = synthesise(environment, tmp_path / "before")
    after = synthesise(after_tearing_down(environment), tmp_path / "after")
    assert len(names(kept(before))) >= 6
    assert names(kept(before)) & names(after.template["Resources"]) == set()


@pytest.mark.parametrize("environment", KEEPING, ids=lambda environment: environment.name)
def test_the_next_stack_takes_all_that_was_kept(environment: Environment, tmp_path: Path) -> None:
    """A part that it made again would be empty beside the one that was kept."""
    after = synthesise(after_tearing_down(environment), tmp_path)
    made = {resource["Type"] for resource in after.template["Resources"].values()}
    assert made & set(KEPT) == set()


def test_names_that_cloudformation_makes_up_are_for_what_may_come_back_by_itself(
    synthesis: Synthesis,
) -> None:
    """Lambda makes a log group again when a role may: with a name of ours it would be in the next stack's way."""
    roles_that_may = {
        logical_id
        for logical_id, role in synthesis.resources("AWS::IAM::Role").items()
        if "AWSLambdaBasicExecutionRole" in str(role["Properties"].get("ManagedPolicyArns"))
    } | {
        reference
        for policy in synthesis.resources("AWS::IAM::Policy").values()
        if "logs:CreateLogGroup" in str(policy)
        for reference in references(policy["Properties"]["Roles"])
    }
    for function in synthesis.resources("AWS::Lambda::Function").values():
        if roles_that_may & set(references(function["Properties"]["Role"])):
            assert "LoggingConfig" not in function["Properties"]
            assert "FunctionName" not in function["Properties"]


def test_the_ids_to_note_are_those_of_what_is_kept(synthesis: Synthesis, repository: Path) -> None:
    noted = re.findall(r"# …?(\w+)…", (repository / "docs" / "deploying.md").read_text())
    assert len(noted) == 8
    if synthesis.environment.retain_data:
        assert [name for name in noted if not any(name in logical_id for logical_id in kept(synthesis))] == []
