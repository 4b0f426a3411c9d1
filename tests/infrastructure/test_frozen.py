"""A change that would replace or delete what holds something is noticed before it is deployed.

`make snapshots` writes down what is new. It never changes an entry: one whose replacement is meant is taken out of the
file by hand first.
"""

import copy
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from campaign_jobs import catalog
from infra.environments import DEV
from tests.infrastructure.freezing import ADVICE, FROZEN_FILE, REPLACEABLE, create_only, freeze, losses
from tests.infrastructure.synthesis import Synthesis, synthesise

UPDATING = bool(os.environ.get("UPDATE_SNAPSHOTS"))


def frozen(environment: str) -> dict[str, Any]:
    everything: dict[str, Any] = json.loads(FROZEN_FILE.read_text()) if FROZEN_FILE.exists() else {}
    return dict(everything.get(environment, {}))


def test_nothing_that_holds_something_is_replaced_or_deleted(synthesis: Synthesis) -> None:
    name = synthesis.environment.name
    before, after = frozen(name), freeze(synthesis)
    if found := list(losses(before, after)):
        pytest.fail(
            f"Deploying {name} would lose something:\n\n"
            + "\n\n".join(f"- {loss}" for loss in found)
            + f"\n\nIf it is meant all the same: take it out of {FROZEN_FILE.name} by hand, then run make snapshots.",
            pytrace=False,
        )
    new = sorted(set(after) - set(before))
    if new and UPDATING:
        everything = json.loads(FROZEN_FILE.read_text()) if FROZEN_FILE.exists() else {}
        everything[name] = after
        FROZEN_FILE.write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n")
    elif new:
        pytest.fail(f"{name} has new resources that must stay: {new}. Run make snapshots.", pytrace=False)


@pytest.fixture(scope="module")
def dev_before(dev: Synthesis) -> dict[str, Any]:
    return freeze(dev)


@pytest.mark.parametrize(
    ("change", "replaced", "instead"),
    [
        (
            {"kafka_job_topic": "events"},
            {"AWS::MSK::Topic": 1, "AWS::Lambda::EventSourceMapping": 5},
            "Remove the mapping in one deployment and add it in the next, with the same consumer group",
        ),
        (
            {"kafka_job_consumer_group": "workers"},
            {"AWS::Lambda::EventSourceMapping": 5},
            "Remove the mapping in one deployment and add it in the next, with the same consumer group",
        ),
        (
            {"network": replace(DEV.network, cidr="10.50.0.0/16")},
            {"AWS::EC2::VPC": 1, "AWS::EC2::Subnet": 6},
            "would go with it: leave it as it is",
        ),
        (
            {"network": replace(DEV.network, availability_zones=3), "kafka": replace(DEV.kafka, brokers=3)},
            {"AWS::MSK::Cluster": 1},
            "Make the new one beside it under another name, move what it holds",
        ),
    ],
    ids=["topic", "consumer group", "network", "zones"],
)
def test_settings_that_would_lose_something_are_named_with_what_to_do_instead(
    dev_before: dict[str, Any],
    tmp_path: Path,
    change: dict[str, Any],
    replaced: dict[str, int],
    instead: str,
) -> None:
    after = freeze(synthesise(replace(DEV, **change), tmp_path))
    found = list(losses(dev_before, after))
    for type_name, count in replaced.items():
        about = [loss for loss in found if f"({type_name}) would be replaced: " in loss]
        assert len({loss.split(" ")[0] for loss in about}) == count
    assert any(instead in loss for loss in found)


def test_settings_that_change_in_place_lose_nothing(dev_before: dict[str, Any], tmp_path: Path) -> None:
    tuned = replace(
        DEV,
        kafka=replace(DEV.kafka, version="3.9.x.kraft", instance_type="kafka.m7g.large", volume_gib=20),
        database=replace(DEV.database, max_capacity=8),
        analytics_interval="2h",
        kafka_worker_pool_size=20,
        log_retention_days=30,
    )
    assert list(losses(dev_before, freeze(synthesise(tuned, tmp_path)))) == []


def _edit(type_name: str, path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(template: dict[str, Any]) -> None:
        for resource in template["Resources"].values():
            if resource["Type"] == type_name:
                *outer, last = path.split("/")
                properties = resource["Properties"]
                for name in outer:
                    properties = properties[name]
                properties[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "lost"),
    [
        (_edit("AWS::MSK::Cluster", "ClusterName", "other"), "AWS::MSK::Cluster"),
        (_edit("AWS::MSK::Cluster", "BrokerNodeGroupInfo/SecurityGroups", ["sg-1"]), "AWS::MSK::Cluster"),
        (_edit("AWS::EC2::SecurityGroup", "GroupDescription", "Other"), "AWS::EC2::SecurityGroup"),
        (_edit("AWS::RDS::DBCluster", "DatabaseName", "other"), "AWS::RDS::DBCluster"),
        (_edit("AWS::RDS::DBCluster", "MasterUsername", "other"), "AWS::RDS::DBCluster"),
        (_edit("AWS::SecretsManager::Secret", "Name", "other"), "AWS::SecretsManager::Secret"),
        (
            _edit("AWS::SecretsManager::Secret", "GenerateSecretString", {"PasswordLength": 99}),
            "AWS::SecretsManager::Secret",
        ),
        (_edit("AWS::SQS::Queue", "QueueName", "other"), "AWS::SQS::Queue"),
        (_edit("AWS::Lambda::Function", "FunctionName", "other"), "AWS::Lambda::Function"),
        (
            _edit("AWS::Lambda::EventSourceMapping", "StartingPosition", "LATEST"),
            "AWS::Lambda::EventSourceMapping",
        ),
        (
            _edit("AWS::Lambda::EventSourceMapping", "EventSourceArn", "arn:aws:kafka:other"),
            "AWS::Lambda::EventSourceMapping",
        ),
        (_edit("AWS::Events::Rule", "Name", "other"), "AWS::Events::Rule"),
    ],
)
def test_each_property_that_cannot_change_in_place_is_watched(
    dev: Synthesis, dev_before: dict[str, Any], edit: Callable[[dict[str, Any]], None], lost: str
) -> None:
    changed = replace(dev, template=copy.deepcopy(dev.template))
    edit(changed.template)
    found = list(losses(dev_before, freeze(changed)))
    assert found
    assert all(f"({lost}) would be replaced" in loss for loss in found)


@pytest.mark.parametrize("type_name", sorted({"AWS::MSK::Cluster", "AWS::SQS::Queue", "AWS::Lambda::Url"}))
def test_a_resource_with_another_logical_id_is_another_resource(
    dev: Synthesis, dev_before: dict[str, Any], type_name: str
) -> None:
    changed = replace(dev, template=copy.deepcopy(dev.template))
    logical_id = next(iter(changed.resources(type_name)))
    changed.template["Resources"]["Moved"] = changed.template["Resources"].pop(logical_id)
    (loss,) = losses(dev_before, freeze(changed))
    assert loss.startswith(f"{logical_id} ({type_name}) is gone")
    assert ADVICE[type_name] in loss


def test_what_is_frozen_covers_all_that_the_stack_holds(dev: Synthesis, dev_before: dict[str, Any]) -> None:
    by_type: dict[str, int] = {}
    for resource in dev_before.values():
        by_type[resource["Type"]] = by_type.get(resource["Type"], 0) + 1
    lanes = [lane for job_type in catalog.EVENT_JOB_TYPES for lane in job_type.lanes]
    assert by_type["AWS::MSK::Cluster"] == by_type["AWS::MSK::Topic"] == by_type["AWS::RDS::DBCluster"] == 1
    assert by_type["AWS::SQS::Queue"] == len(dev.resources("AWS::SQS::Queue"))
    # From Kafka and from the retry queue, and feedback's.
    assert by_type["AWS::Lambda::EventSourceMapping"] == 2 * len(lanes) + 1
    # The cluster's, the database's, the producers' and the operators'; a function's own may be replaced.
    assert by_type["AWS::EC2::SecurityGroup"] == 4
    group = dev.one("AWS::MSK::Cluster")[1]["Properties"]["BrokerNodeGroupInfo"]["SecurityGroups"][0]
    assert group["Fn::GetAtt"][0] in dev_before


def test_of_each_type_somebody_has_asked_whether_it_may_be_replaced(synthesis: Synthesis) -> None:
    types = {resource["Type"] for resource in synthesis.template["Resources"].values()}
    assert types - set(ADVICE) - REPLACEABLE == set()
    assert set(ADVICE) & REPLACEABLE == set()


def test_what_cannot_change_in_place_is_read_from_cloudformation_s_schemas() -> None:
    assert "BrokerNodeGroupInfo/ClientSubnets" in create_only("AWS::MSK::Cluster")
    assert "BrokerNodeGroupInfo/InstanceType" not in create_only("AWS::MSK::Cluster")
    assert create_only("AWS::MSK::Topic") == ["ClusterArn", "ReplicationFactor", "TopicName"]
