"""What CloudFormation would replace or delete, and with it what it holds.

A resource is replaced when its logical id or one of its create-only properties changes. CloudFormation's own schemas
say which those are; cfn-lint brings them along.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER

from tests.infrastructure.synthesis import Resource, Synthesis

FROZEN_FILE: Final = Path(__file__).parent / "frozen.json"

_MOVE: Final = (
    "Make the new one beside it under another name, move what it holds, and only then remove this one."
)
_MAPPING: Final = (
    "Remove the mapping in one deployment and add it in the next, with the same consumer group: the group's offsets "
    "stay. Made before the old one goes, the new one is refused (409)."
)
_KNOWN_OUTSIDE: Final = (
    "Others know it by what would change: tell them first, and let both be there for a while."
)

# By type, what to do instead.
ADVICE: Final = {
    "AWS::MSK::Cluster": _MOVE,
    "AWS::MSK::Configuration": "A cluster names it: change what it says, not its name.",
    "AWS::MSK::Topic": _MOVE,
    "AWS::RDS::DBCluster": _MOVE,
    "AWS::RDS::DBClusterParameterGroup": "Make another one and let the cluster name it.",
    "AWS::RDS::DBInstance": "Add an instance beside it, let it take over, and only then remove this one.",
    "AWS::RDS::DBSubnetGroup": _MOVE,
    "AWS::EC2::VPC": "Cluster and database stand in it and would go with it: leave it as it is.",
    "AWS::EC2::Subnet": "Brokers and database stand in it, and a cluster's subnets cannot change: leave it as it is.",
    "AWS::EC2::SecurityGroup": "A cluster's groups cannot change, and services take the producers': leave it as it is.",
    "AWS::SecretsManager::Secret": (
        "Its value would be made up anew: the password that PostgreSQL knows, or the keys of all links sent, are lost."
    ),
    "AWS::SecretsManager::SecretTargetAttachment": "Functions read the secret by its ARN: leave it as it is.",
    "AWS::SQS::Queue": "Drain it first, and send its dead letters back: messages go with their queue.",
    "AWS::Lambda::Function": "Deploy the new one beside it, let its mappings drain, and only then remove this one.",
    "AWS::Lambda::EventSourceMapping": _MAPPING,
    "AWS::Lambda::Alias": _MAPPING,
    "AWS::Lambda::Url": "Links in mails that have been sent lead to it, and a new one has another address.",
    "AWS::ApiGatewayV2::DomainName": "Links in mails that have been sent lead to it.",
    "AWS::Events::Rule": "A schedule that was tuned in the console would be lost: note it first.",
    "AWS::IAM::ManagedPolicy": f"It cannot be deleted while roles carry it. {_KNOWN_OUTSIDE}",
    "AWS::SSM::Parameter": _KNOWN_OUTSIDE,
    "AWS::SNS::Topic": f"Who has confirmed a subscription would have to again. {_KNOWN_OUTSIDE}",
    "AWS::SNS::Subscription": "Who has confirmed it would have to again.",
    "AWS::SES::EmailIdentity": "No mail leaves without it, and a new one needs new DNS records.",
    "AWS::SES::ConfigurationSet": "SES reports mails by the configuration set that they were sent with: let it be.",
}

# What may be made anew at any time, with nothing lost but a moment, a rule's counters or old log lines.
REPLACEABLE: Final = {
    "AWS::ApiGatewayV2::Api",
    "AWS::ApiGatewayV2::ApiMapping",
    "AWS::ApiGatewayV2::Integration",
    "AWS::ApiGatewayV2::Route",
    "AWS::ApiGatewayV2::Stage",
    "AWS::CloudWatch::Alarm",
    "AWS::CloudWatch::CompositeAlarm",
    "AWS::CloudWatch::Dashboard",
    "AWS::EC2::EIP",
    "AWS::EC2::FlowLog",
    "AWS::EC2::Instance",
    "AWS::EC2::InternetGateway",
    "AWS::EC2::NatGateway",
    "AWS::EC2::Route",
    "AWS::EC2::RouteTable",
    "AWS::EC2::SecurityGroupEgress",
    "AWS::EC2::SecurityGroupIngress",
    "AWS::EC2::SubnetRouteTableAssociation",
    "AWS::EC2::VPCEndpoint",
    # Of the alarms' topic alone, which keeps nothing.
    "AWS::KMS::Key",
    "AWS::EC2::VPCGatewayAttachment",
    "AWS::IAM::InstanceProfile",
    "AWS::IAM::Policy",
    "AWS::IAM::Role",
    "AWS::Lambda::EventInvokeConfig",
    "AWS::Lambda::LayerVersion",
    "AWS::Lambda::Permission",
    "AWS::Logs::LogGroup",
    "AWS::Logs::MetricFilter",
    "AWS::SES::ConfigurationSetEventDestination",
    "AWS::SNS::TopicPolicy",
    "AWS::SQS::QueuePolicy",
    "Custom::AWS",
    "Custom::CampaignJobsSchema",
    "Custom::VpcRestrictDefaultSG",
}

# What the schemas do not tell: Lambda ignores a mapping's new topics and refuses a new group, and a secret's value is
# made up again when what it is made of changes.
_ALSO: Final = {
    "AWS::Lambda::EventSourceMapping": ["Topics", "AmazonManagedKafkaEventSourceConfig/ConsumerGroupId"],
    "AWS::SecretsManager::Secret": ["GenerateSecretString"],
}


def create_only(type_name: str) -> list[str]:
    """The properties that cannot change in place, or not always: paths such as BrokerNodeGroupInfo/SecurityGroups."""
    schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", type_name).schema
    pointers = [
        *schema.get("createOnlyProperties", []),
        *schema.get("conditionalCreateOnlyProperties", []),
    ]
    return sorted(
        {*(pointer.removeprefix("/properties/") for pointer in pointers), *_ALSO.get(type_name, [])}
    )


def freeze(synthesis: Synthesis) -> dict[str, Resource]:
    """Each resource that must stay, by logical id: its type, and what of it must not change."""
    replaceable = _groups_of_functions(synthesis) | _functions_of_cdk(synthesis)
    frozen = {}
    for logical_id, resource in sorted(synthesis.template["Resources"].items()):
        if resource["Type"] in ADVICE and logical_id not in replaceable:
            values = {path: _at(resource["Properties"], path) for path in create_only(resource["Type"])}
            present = {path: value for path, value in values.items() if value is not None}
            frozen[logical_id] = {"Type": resource["Type"], "Properties": present}
    return frozen


def losses(before: dict[str, Resource], after: dict[str, Resource]) -> Iterator[str]:
    """For each resource that a deployment would replace or delete: which, why, and what to do instead."""
    for logical_id, resource in before.items():
        type_name = resource["Type"]
        now = after.get(logical_id)
        if now is None or now["Type"] != type_name:
            yield (
                f"{logical_id} ({type_name}) is gone: a deployment would delete it, or leave it behind where it is "
                f"kept. {ADVICE[type_name]} If its construct only moved, keep its logical id (override_logical_id)."
            )
            continue
        for path in sorted({*resource["Properties"], *now["Properties"]}):
            old, new = resource["Properties"].get(path), now["Properties"].get(path)
            if old != new:
                yield (
                    f"{logical_id} ({type_name}) would be replaced: {path} was {json.dumps(old)} and is "
                    f"{json.dumps(new)}. {ADVICE[type_name]}"
                )


def _groups_of_functions(synthesis: Synthesis) -> set[str]:
    """Security groups that nobody but one function, or an instance that may be replaced, has."""
    groups: set[str] = set()
    for function in synthesis.resources("AWS::Lambda::Function").values():
        for group in function["Properties"].get("VpcConfig", {}).get("SecurityGroupIds", []):
            groups.add(group["Fn::GetAtt"][0])
    for instance in synthesis.resources("AWS::EC2::Instance").values():
        for group in instance["Properties"]["SecurityGroupIds"]:
            groups.add(group["Fn::GetAtt"][0])
    return groups


def _functions_of_cdk(synthesis: Synthesis) -> set[str]:
    """What custom resources are done by: called during deployments alone."""
    return {
        logical_id
        for logical_id, function in synthesis.resources("AWS::Lambda::Function").items()
        if "FunctionName" not in function["Properties"]
    }


def _at(properties: Any, path: str) -> Any:
    for name in path.split("/"):
        properties = properties.get(name) if isinstance(properties, dict) else None
    return properties
