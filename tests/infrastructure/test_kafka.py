"""Cluster, topic and the mappings from it to the functions, as the catalog has them."""

import json
from typing import Any

import pytest

from campaign_jobs import catalog
from tests.infrastructure.synthesis import Synthesis

LANES = [(job_type, lane) for job_type in catalog.EVENT_JOB_TYPES for lane in job_type.lanes]
KAFKA_MAPPINGS = "AmazonManagedKafkaEventSourceConfig"

# Lambda ignores or refuses these where no pollers are provisioned, and neither CDK nor cfn-lint says so.
ONLY_WITH_PROVISIONED_POLLERS = {
    "BisectBatchOnFunctionError",
    "DestinationConfig",
    "FunctionResponseTypes",
    "LoggingConfig",
    "MaximumRecordAgeInSeconds",
    "MaximumRetryAttempts",
    "MetricsConfig",
    "ProvisionedPollerConfig",
}


def mappings(synthesis: Synthesis) -> dict[str, dict[str, Any]]:
    """The mappings from Kafka by consumer group."""
    return {
        mapping["Properties"][KAFKA_MAPPINGS]["ConsumerGroupId"]: mapping
        for mapping in synthesis.resources("AWS::Lambda::EventSourceMapping").values()
        if KAFKA_MAPPINGS in mapping["Properties"]
    }


def test_the_topic_has_ten_partitions_on_the_cluster(synthesis: Synthesis) -> None:
    cluster, _ = synthesis.one("AWS::MSK::Cluster")
    _, topic = synthesis.one("AWS::MSK::Topic")
    assert topic["Properties"] == {
        "ClusterArn": {"Ref": cluster},
        "TopicName": "job-events",
        "PartitionCount": 10,
        "ReplicationFactor": 3 if synthesis.environment.name == "prod" else 2,
    }


def test_the_cluster_speaks_tls_and_iam_only(synthesis: Synthesis) -> None:
    _, cluster = synthesis.one("AWS::MSK::Cluster")
    properties = cluster["Properties"]
    assert properties["ClientAuthentication"] == {
        "Sasl": {"Iam": {"Enabled": True}},
        "Unauthenticated": {"Enabled": False},
    }
    assert properties["EncryptionInfo"]["EncryptionInTransit"] == {"ClientBroker": "TLS", "InCluster": True}
    assert "ConnectivityInfo" not in properties["BrokerNodeGroupInfo"]


def test_each_zone_has_as_many_brokers(synthesis: Synthesis) -> None:
    _, cluster = synthesis.one("AWS::MSK::Cluster")
    subnets = cluster["Properties"]["BrokerNodeGroupInfo"]["ClientSubnets"]
    zones = [
        json.dumps(synthesis.template["Resources"][subnet["Ref"]]["Properties"]["AvailabilityZone"])
        for subnet in subnets
    ]
    assert len(set(zones)) == len(zones) == synthesis.environment.network.availability_zones
    assert cluster["Properties"]["NumberOfBrokerNodes"] % len(zones) == 0


def test_topics_are_made_by_us_and_survive_a_broker_s_restart(synthesis: Synthesis) -> None:
    _, configuration = synthesis.one("AWS::MSK::Configuration")
    lines = configuration["Properties"]["ServerProperties"].split("\n")
    properties = dict(line.split(" = ") for line in lines)
    assert properties["auto.create.topics.enable"] == "false"
    assert properties["unclean.leader.election.enable"] == "false"
    _, topic = synthesis.one("AWS::MSK::Topic")
    assert int(properties["min.insync.replicas"]) == topic["Properties"]["ReplicationFactor"] - 1
    assert int(properties["offsets.retention.minutes"]) > int(properties["log.retention.hours"]) * 60


@pytest.mark.parametrize(("job_type", "lane"), LANES, ids=lambda value: value.name)
def test_each_lane_has_a_mapping_as_the_catalog_has_it(
    synthesis: Synthesis, job_type: catalog.EventJobType, lane: catalog.Lane
) -> None:
    mapping = mappings(synthesis)[f"job-workers-{lane.name}"]["Properties"]
    cluster, _ = synthesis.one("AWS::MSK::Cluster")
    filters = mapping.get("FilterCriteria")
    assert {name: value for name, value in mapping.items() if name != "FilterCriteria"} == {
        KAFKA_MAPPINGS: {"ConsumerGroupId": f"job-workers-{lane.name}"},
        "BatchSize": lane.batch_size,
        "EventSourceArn": {"Ref": cluster},
        "FunctionName": synthesis.alias(job_type.name, lane.name),
        "MaximumBatchingWindowInSeconds": lane.batching_window_seconds,
        "StartingPosition": "TRIM_HORIZON",
        "Topics": ["job-events"],
    }
    if lane.event_types:
        (pattern,) = filters["Filters"]
        assert json.loads(pattern["Pattern"]) == {
            "value": {"type": [*lane.event_types, "campaign-jobs.heartbeat"]}
        }
    else:
        assert filters is None


def test_there_is_no_mapping_besides_the_lanes(synthesis: Synthesis) -> None:
    assert sorted(mappings(synthesis)) == [
        "job-workers-email",
        "job-workers-email-bulk",
        "job-workers-position",
        "job-workers-reward",
        "job-workers-unroutable",
    ]


def test_no_mapping_has_what_only_provisioned_pollers_heed(synthesis: Synthesis) -> None:
    for mapping in mappings(synthesis).values():
        assert not ONLY_WITH_PROVISIONED_POLLERS & set(mapping["Properties"])


def test_mappings_wait_for_the_topic(synthesis: Synthesis) -> None:
    topic, _ = synthesis.one("AWS::MSK::Topic")
    for mapping in mappings(synthesis).values():
        assert topic in mapping["DependsOn"]


def test_functions_outlast_their_batches_within_lambda_s_limit_for_kafka(synthesis: Synthesis) -> None:
    for job_type in catalog.EVENT_JOB_TYPES:
        _, function = synthesis.function(job_type.name)
        assert function["Properties"]["Timeout"] == job_type.timeout_seconds <= 14 * 60


def test_brokers_hear_only_producers_operators_the_relay_and_lambda_s_pollers(synthesis: Synthesis) -> None:
    _, cluster = synthesis.one("AWS::MSK::Cluster")
    (group,) = cluster["Properties"]["BrokerNodeGroupInfo"]["SecurityGroups"]
    rules = synthesis.let_in(group)
    producers = synthesis.template["Outputs"]["ProducerSecurityGroup"]["Value"]
    sources = [rule["SourceSecurityGroupId"] for rule in rules]
    operators = synthesis.template["Outputs"]["OperatorSecurityGroup"]["Value"]
    wanted = [group, producers, operators, synthesis.security_group("relay")]
    assert sorted(sources, key=json.dumps) == sorted(wanted, key=json.dumps)
    assert {(rule["FromPort"], rule["ToPort"]) for rule in rules} == {(9098, 9098)}
    own_rules = synthesis.template["Resources"][group["Fn::GetAtt"][0]]["Properties"]
    assert "SecurityGroupIngress" not in own_rules
    # On-demand pollers take this group, and must reach Lambda and STS.
    assert [rule["FromPort"] for rule in own_rules["SecurityGroupEgress"]] == [443]


def test_the_relay_learns_the_brokers_from_the_cluster(synthesis: Synthesis) -> None:
    cluster, _ = synthesis.one("AWS::MSK::Cluster")
    lookup, custom_resource = synthesis.one("Custom::AWS")
    assert {"Ref": cluster} in custom_resource["Properties"]["Create"]["Fn::Join"][1]
    _, relay = synthesis.function("relay")
    assert relay["Properties"]["Environment"]["Variables"]["KAFKA_BROKERS"] == {
        "Fn::GetAtt": [lookup, "BootstrapBrokerStringSaslIam"]
    }
