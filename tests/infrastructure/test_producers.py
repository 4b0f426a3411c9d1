"""What services need to publish: where, and a right to the topic and nothing else."""

from typing import Any

from tests.infrastructure.synthesis import Synthesis, topic_arn


def output(synthesis: Synthesis, name: str) -> Any:
    return synthesis.template["Outputs"][name]["Value"]


def test_the_policy_for_producers_writes_to_the_topic_and_to_nothing_else(synthesis: Synthesis) -> None:
    cluster, _ = synthesis.one("AWS::MSK::Cluster")
    _, policy = synthesis.named("AWS::IAM::ManagedPolicy", "ManagedPolicyName", "producer")
    assert policy["Properties"]["PolicyDocument"]["Statement"] == [
        {
            "Effect": "Allow",
            "Action": [
                "kafka-cluster:Connect",
                "kafka-cluster:DescribeCluster",
                "kafka-cluster:WriteDataIdempotently",
            ],
            "Resource": {"Ref": cluster},
        },
        {
            "Effect": "Allow",
            "Action": ["kafka-cluster:DescribeTopic", "kafka-cluster:WriteData"],
            "Resource": topic_arn({"Ref": cluster}, "job-events"),
        },
    ]
    assert policy["Properties"]["ManagedPolicyName"] == synthesis.environment.resource_name("producer")
    # Services take it; none of our roles does.
    assert not {"Roles", "Users", "Groups"} & set(policy["Properties"])


def test_producers_in_the_group_reach_the_brokers_and_nothing_else(synthesis: Synthesis) -> None:
    group = output(synthesis, "ProducerSecurityGroup")
    _, cluster = synthesis.one("AWS::MSK::Cluster")
    (brokers,) = cluster["Properties"]["BrokerNodeGroupInfo"]["SecurityGroups"]
    (rule,) = synthesis.let_out(group)
    assert (rule["DestinationSecurityGroupId"], rule["FromPort"], rule["ToPort"]) == (brokers, 9098, 9098)
    assert group in [rule["SourceSecurityGroupId"] for rule in synthesis.let_in(brokers)]
    assert synthesis.let_in(group) == []
    # Without a rule inside the group, EC2 would let everything out.
    (inside,) = synthesis.template["Resources"][group["Fn::GetAtt"][0]]["Properties"]["SecurityGroupEgress"]
    assert inside["CidrIp"] == "255.255.255.255/32"


def test_services_find_the_same_in_parameters_and_operators_in_outputs(synthesis: Synthesis) -> None:
    values = {
        parameter["Properties"]["Name"]: parameter["Properties"]["Value"]
        for parameter in synthesis.resources("AWS::SSM::Parameter").values()
    }
    prefix = f"/campaign-jobs/{synthesis.environment.name}"
    policy, _ = synthesis.named("AWS::IAM::ManagedPolicy", "ManagedPolicyName", "producer")
    lookup, _ = synthesis.one("Custom::AWS")
    assert (
        values.items()
        >= {
            f"{prefix}/brokers": {"Fn::GetAtt": [lookup, "BootstrapBrokerStringSaslIam"]},
            f"{prefix}/topic": "job-events",
            f"{prefix}/producer-policy-arn": {"Ref": policy},
            f"{prefix}/producer-security-group-id": output(synthesis, "ProducerSecurityGroup"),
        }.items()
    )
    for name, parameter in (
        ("Brokers", "brokers"),
        ("Topic", "topic"),
        ("ProducerPolicy", "producer-policy-arn"),
        ("ProducerSecurityGroup", "producer-security-group-id"),
    ):
        assert output(synthesis, name) == values[f"{prefix}/{parameter}"]


def test_outputs_name_what_an_operator_needs(synthesis: Synthesis) -> None:
    always = {
        "Brokers",
        "Topic",
        "ProducerPolicy",
        "ProducerSecurityGroup",
        "OperatorPolicy",
        "OperatorSecurityGroup",
        "DatabaseSecret",
        "UnsubscribeUrl",
        "AlarmTopic",
    }
    records = {"Dkim1", "Dkim2", "Dkim3", "MailFromMx", "MailFromSpf"}
    owner = synthesis.environment.name == "prod"
    assert set(synthesis.template["Outputs"]) == (always | records if owner else always)
    assert all(value["Description"] for value in synthesis.template["Outputs"].values())
    # None exports its value: an export ties stacks together until both are gone.
    assert not [name for name, value in synthesis.template["Outputs"].items() if "Export" in value]
