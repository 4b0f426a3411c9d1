"""An environment may take a network, a cluster or a database that is there, without looking it up."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from campaign_jobs import settings
from infra import environment_settings
from infra.environment_settings import ExistingNetwork
from infra.environments import DEV, PROD
from tests.infrastructure.existing import EXISTING_DATABASE, EXISTING_KAFKA, EXISTING_NETWORK
from tests.infrastructure.synthesis import Synthesis, synthesise

ALL_TAKEN = replace(DEV, network=EXISTING_NETWORK, kafka=EXISTING_KAFKA, database=EXISTING_DATABASE)
CLUSTER = EXISTING_KAFKA.cluster_arn
BROKERS = EXISTING_KAFKA.security_group_id
POSTGRESQL = EXISTING_DATABASE.security_group_id
TOPIC = CLUSTER.replace(":cluster/", ":topic/") + "/job-events"


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    return synthesise(ALL_TAKEN, tmp_path_factory.mktemp("taken"))


def types(synthesis: Synthesis) -> set[str]:
    return {resource["Type"] for resource in synthesis.template["Resources"].values()}


def kafka_mappings(synthesis: Synthesis) -> Iterator[dict[str, Any]]:
    for mapping in synthesis.resources("AWS::Lambda::EventSourceMapping").values():
        if "Topics" in mapping["Properties"]:
            yield mapping


def test_the_guide_s_parts_are_such_as_an_environment_takes(repository: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (repository / "docs/deploying.md").read_text(), re.DOTALL)
    call = ast.parse(next(block for block in blocks if 'vpc_id="vpc-0' in block)).body[0]
    assert isinstance(call, ast.AnnAssign) and isinstance(call.value, ast.Call)
    parts = {
        str(part.arg): eval(ast.unparse(part.value), vars(environment_settings))
        for part in call.value.keywords
    }
    assert parts.keys() == {"name", "network", "kafka", "database"}
    assert replace(PROD, **parts).problems() == []


def test_nothing_is_looked_up_in_the_account(taken: Synthesis) -> None:
    assert taken.manifest.get("missing") is None
    assert "dummy-value-for-" not in str(taken.template)
    assert "vpc-12345" not in str(taken.template)  # What CDK puts for a VPC that it has still to look up.


def test_what_is_there_is_not_made_again(taken: Synthesis) -> None:
    made = types(taken)
    assert (
        not {
            "AWS::EC2::VPC",
            "AWS::EC2::Subnet",
            "AWS::EC2::NatGateway",
            "AWS::EC2::Instance",
            "AWS::MSK::Cluster",
            "AWS::MSK::Configuration",
            "AWS::RDS::DBCluster",
            "AWS::RDS::DBInstance",
            "AWS::RDS::DBSubnetGroup",
        }
        & made
    )
    # Its own keys are made all the same.
    taken.named("AWS::SecretsManager::Secret", "Name", "unsubscribe-keys")
    assert len(taken.resources("AWS::SecretsManager::Secret")) == 1


def test_functions_stand_in_the_private_subnets_that_are_there(taken: Synthesis) -> None:
    functions = [
        function["Properties"]
        for function in taken.resources("AWS::Lambda::Function").values()
        if "FunctionName" in function["Properties"]
    ]
    assert functions
    for function in functions:
        assert function["VpcConfig"]["SubnetIds"] == list(EXISTING_NETWORK.private_subnet_ids)
    for group in taken.resources("AWS::EC2::SecurityGroup").values():
        assert group["Properties"]["VpcId"] == EXISTING_NETWORK.vpc_id


def test_the_groups_that_are_there_let_in_whoever_connects(taken: Synthesis) -> None:
    def let_in(group: str) -> dict[str, tuple[int, int]]:
        return {
            str(rule["SourceSecurityGroupId"]): (rule["FromPort"], rule["ToPort"])
            for rule in taken.let_in(group)
        }

    producers = taken.template["Outputs"]["ProducerSecurityGroup"]["Value"]
    operators = taken.template["Outputs"]["OperatorSecurityGroup"]["Value"]
    assert let_in(BROKERS) == {
        str(source): (9098, 9098) for source in (producers, operators, taken.security_group("relay"))
    }
    using_the_database = [str(taken.security_group(name)) for name in settings.BY_FUNCTION] + [str(operators)]
    assert let_in(POSTGRESQL) == dict.fromkeys(using_the_database, (5433, 5433))
    # The groups' own rules are not ours: none of the others is touched.
    ours = taken.resources("AWS::EC2::SecurityGroupIngress").values()
    assert {rule["Properties"]["GroupId"] for rule in ours} == {BROKERS, POSTGRESQL}


def test_functions_may_go_out_to_the_groups_that_are_there(taken: Synthesis) -> None:
    relay = taken.let_out(taken.security_group("relay"))
    assert {rule["DestinationSecurityGroupId"]: rule["FromPort"] for rule in relay} == {
        BROKERS: 9098,
        POSTGRESQL: 5433,
    }


def test_the_topic_is_made_on_the_cluster_that_is_there(taken: Synthesis) -> None:
    topic_id, topic = taken.one("AWS::MSK::Topic")
    assert topic["Properties"] == {
        "ClusterArn": CLUSTER,
        "TopicName": "job-events",
        "PartitionCount": 10,
        "ReplicationFactor": 3,
    }
    for mapping in kafka_mappings(taken):
        assert topic_id in mapping["DependsOn"]


def test_the_mappings_read_the_cluster_that_is_there(taken: Synthesis) -> None:
    mappings = list(kafka_mappings(taken))
    assert len(mappings) == 5
    for mapping in mappings:
        properties = mapping["Properties"]
        assert properties["EventSourceArn"] == CLUSTER
        assert properties["Topics"] == ["job-events"]
        assert properties["StartingPosition"] == "TRIM_HORIZON"


def test_topic_and_groups_are_named_below_the_cluster_that_is_there(taken: Synthesis) -> None:
    assert taken.granted("relay", "kafka-cluster:WriteData") == [TOPIC]
    assert taken.granted("position", "kafka-cluster:ReadData") == [TOPIC]
    assert taken.granted("position", "kafka-cluster:AlterGroup") == [
        CLUSTER.replace(":cluster/", ":group/") + "/job-workers-position"
    ]
    assert taken.granted("position", "kafka-cluster:Connect") == [CLUSTER]


def test_the_brokers_are_asked_of_the_cluster_that_is_there(taken: Synthesis) -> None:
    lookup, custom_resource = taken.one("Custom::AWS")
    assert f'"ClusterArn":"{CLUSTER}"' in custom_resource["Properties"]["Create"]
    _, relay = taken.function("relay")
    assert relay["Properties"]["Environment"]["Variables"]["KAFKA_BROKERS"] == {
        "Fn::GetAtt": [lookup, "BootstrapBrokerStringSaslIam"]
    }


def test_functions_read_the_database_s_secret_that_is_there(taken: Synthesis) -> None:
    for name in ("email", "migrations"):
        _, function = taken.function(name)
        assert (
            function["Properties"]["Environment"]["Variables"]["DATABASE_SECRET_ARN"]
            == EXISTING_DATABASE.secret_arn
        )
        assert EXISTING_DATABASE.secret_arn in taken.granted(name, "secretsmanager:GetSecretValue")
    assert taken.template["Outputs"]["DatabaseSecret"]["Value"] == EXISTING_DATABASE.secret_arn


@pytest.mark.parametrize("name", sorted(settings.BY_FUNCTION))
def test_what_each_function_gets_can_be_loaded(taken: Synthesis, name: str) -> None:
    settings.BY_FUNCTION[name].load(taken.environ(name))


def test_a_topic_that_is_there_is_left_alone(taken: Synthesis, tmp_path: Any) -> None:
    there = replace(EXISTING_KAFKA, creates_topic=False)
    synthesis = synthesise(replace(ALL_TAKEN, kafka=there), tmp_path)
    topic, _ = taken.one("AWS::MSK::Topic")
    assert types(taken) - types(synthesis) == {"AWS::MSK::Topic"}
    for mapping in kafka_mappings(synthesis):
        assert mapping["Properties"]["EventSourceArn"] == CLUSTER
        assert topic not in mapping.get("DependsOn", [])
    assert synthesis.granted("relay", "kafka-cluster:WriteData") == [TOPIC]


@pytest.mark.parametrize("subnets", [EXISTING_NETWORK.database_subnet_ids, ()])
def test_a_new_database_stands_in_the_subnets_that_are_named_for_it(
    subnets: tuple[str, ...], tmp_path: Any
) -> None:
    network: ExistingNetwork = replace(EXISTING_NETWORK, database_subnet_ids=subnets)
    synthesis = synthesise(replace(DEV, network=network), tmp_path)
    _, group = synthesis.one("AWS::RDS::DBSubnetGroup")
    assert group["Properties"]["SubnetIds"] == list(subnets or EXISTING_NETWORK.private_subnet_ids)
    _, cluster = synthesis.one("AWS::MSK::Cluster")
    assert cluster["Properties"]["BrokerNodeGroupInfo"]["ClientSubnets"] == list(
        EXISTING_NETWORK.private_subnet_ids
    )


def test_keys_of_unsubscribe_links_that_are_there_are_read(tmp_path: Any) -> None:
    keys = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:company/unsubscribe-x9Y8z7"
    synthesis = synthesise(replace(ALL_TAKEN, unsubscribe_keys_secret_arn=keys), tmp_path)
    assert synthesis.resources("AWS::SecretsManager::Secret") == {}
    for name in ("email", "unsubscribe"):
        _, function = synthesis.function(name)
        variables = function["Properties"]["Environment"]["Variables"]
        assert variables["UNSUBSCRIBE_KEYS_SECRET_ARN"] == keys
        assert keys in synthesis.granted(name, "secretsmanager:GetSecretValue")
