"""Nobody may do more than its job."""

from typing import Any

import pytest

from campaign_jobs import catalog, settings
from campaign_jobs.reward.webhooks.guard import FIRST_UNPRIVILEGED_PORT, HTTPS_PORT
from tests.infrastructure.synthesis import Synthesis, group_arn, topic_arn

EVENT_JOB_TYPES = {job_type.name: job_type for job_type in catalog.EVENT_JOB_TYPES}
QUEUE_JOB_TYPES = {job_type.name: job_type for job_type in catalog.QUEUE_JOB_TYPES}
WEB_FUNCTIONS = {function.name: function for function in catalog.WEB_FUNCTIONS}
FUNCTIONS = sorted(settings.BY_FUNCTION)
USING_THE_DATABASE = [
    name for name in FUNCTIONS if "DATABASE_SECRET_ARN" in settings.BY_FUNCTION[name].environment_names()
]


def _actions(statement: dict[str, Any]) -> list[str]:
    actions = statement["Action"]
    return [str(action) for action in actions] if isinstance(actions, list) else [str(actions)]


def test_of_the_functions_only_the_relay_may_write_to_kafka(synthesis: Synthesis) -> None:
    cluster, _ = synthesis.one("AWS::MSK::Cluster")
    policies = {
        synthesis.named("AWS::IAM::ManagedPolicy", "ManagedPolicyName", part)[0]
        for part in ("producer", "operator")
    }
    writing = {"kafka-cluster:WriteData", "kafka-cluster:WriteDataIdempotently"}
    assert [name for name in FUNCTIONS if any(synthesis.granted(name, action) for action in writing)] == [
        "relay"
    ]
    topic = topic_arn({"Ref": cluster}, "job-events")
    assert synthesis.granted("relay", "kafka-cluster:WriteData") == [topic]
    writers = {owner for owner, statement in synthesis.all_statements() if writing & set(_actions(statement))}
    assert policies < writers
    assert len(writers) == 3


def test_the_relay_reads_nothing_from_kafka(synthesis: Synthesis) -> None:
    for action in ("kafka-cluster:ReadData", "kafka-cluster:AlterGroup"):
        assert synthesis.granted("relay", action) == []


@pytest.mark.parametrize("job_type", EVENT_JOB_TYPES.values(), ids=EVENT_JOB_TYPES)
def test_mappings_may_read_the_topic_in_their_own_groups(
    synthesis: Synthesis, job_type: catalog.EventJobType
) -> None:
    cluster, _ = synthesis.one("AWS::MSK::Cluster")
    for action in (
        "kafka:DescribeClusterV2",
        "kafka:GetBootstrapBrokers",
        "kafka-cluster:Connect",
        "kafka-cluster:DescribeCluster",
    ):
        assert synthesis.granted(job_type.name, action) == [{"Ref": cluster}]
    for action in ("kafka-cluster:DescribeTopic", "kafka-cluster:ReadData"):
        assert synthesis.granted(job_type.name, action) == [topic_arn({"Ref": cluster}, "job-events")]
    for action in ("kafka-cluster:DescribeGroup", "kafka-cluster:AlterGroup"):
        assert synthesis.granted(job_type.name, action) == [
            group_arn({"Ref": cluster}, f"job-workers-{lane.name}") for lane in job_type.lanes
        ]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_send_to_their_own_queues_only(synthesis: Synthesis, name: str) -> None:
    if name in QUEUE_JOB_TYPES:
        # SQS itself moves what fails.
        queues = []
    elif name in WEB_FUNCTIONS:
        # Whoever calls hears what failed.
        queues = []
    elif name == catalog.MIGRATIONS.name:
        # The deployment does.
        queues = []
    elif name not in EVENT_JOB_TYPES:
        queues = [f"{name}-failed-runs"]
    else:
        # What has an owner by now, unroutable hands on to any of them.
        senders = catalog.EVENT_JOB_TYPES if name == "unroutable" else (EVENT_JOB_TYPES[name],)
        retry = [f"{lane.name}-retry" for job_type in senders for lane in job_type.lanes]
        queues = [f"{name}-dead-letters", *retry]
    sending_to = {queue["Fn::GetAtt"][0] for queue in synthesis.granted(name, "sqs:SendMessage")}
    assert sending_to == {synthesis.queue(queue)[0] for queue in queues}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_from_their_own_queues_only(synthesis: Synthesis, name: str) -> None:
    lanes = EVENT_JOB_TYPES[name].lanes if name in EVENT_JOB_TYPES else ()
    queues = [f"{lane.name}-retry" for lane in lanes] + ([name] if name in QUEUE_JOB_TYPES else [])
    taking_from = {queue["Fn::GetAtt"][0] for queue in synthesis.granted(name, "sqs:ReceiveMessage")}
    assert taking_from == {synthesis.queue(queue)[0] for queue in queues}


def test_only_email_may_send_mail_and_only_from_our_domain(synthesis: Synthesis) -> None:
    assert [name for name in FUNCTIONS if synthesis.granted(name, "ses:SendEmail")] == ["email"]
    configuration_set, _ = synthesis.one("AWS::SES::ConfigurationSet")
    ends = [arn["Fn::Join"][1][-2:] for arn in synthesis.granted("email", "ses:SendEmail")]
    assert len(ends) == 2
    assert [":configuration-set/", {"Ref": configuration_set}] in ends
    assert any(str(end[-1]).endswith(f":identity/{synthesis.environment.sending.domain}") for end in ends)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_secrets_open_to_those_who_read_them_from_their_settings(synthesis: Synthesis, name: str) -> None:
    wanted = [
        setting
        for setting in settings.BY_FUNCTION[name].environment_names()
        if setting.endswith("_SECRET_ARN")
    ]
    _, function = synthesis.function(name)
    given = function["Properties"]["Environment"]["Variables"]
    opened = synthesis.granted(name, "secretsmanager:GetSecretValue")
    assert sorted(map(str, opened)) == sorted(str(given[setting]) for setting in wanted)


def test_the_keys_of_unsubscribe_links_open_to_their_signer_and_their_verifier(synthesis: Synthesis) -> None:
    keys, _ = synthesis.named("AWS::SecretsManager::Secret", "Name", "unsubscribe-keys")
    opened = {
        name: {"Ref": keys} in synthesis.granted(name, "secretsmanager:GetSecretValue") for name in FUNCTIONS
    }
    assert [name for name in FUNCTIONS if opened[name]] == ["email", "unsubscribe"]


def test_the_unsubscribe_url_is_all_that_the_world_may_call(synthesis: Synthesis) -> None:
    function, _ = synthesis.function("unsubscribe")
    arn = {"Fn::GetAtt": [function, "Arn"]}
    _, url = synthesis.one("AWS::Lambda::Url")
    assert url["Properties"] == {"AuthType": "NONE", "TargetFunctionArn": arn}
    open_to_all = [
        permission["Properties"]
        for permission in synthesis.resources("AWS::Lambda::Permission").values()
        if permission["Properties"]["Principal"] == "*"
    ]
    # Since October 2025 a URL needs both: https://docs.aws.amazon.com/lambda/latest/dg/urls-auth.html
    assert sorted(open_to_all, key=lambda permission: permission["Action"]) == [
        {
            "Action": "lambda:InvokeFunction",
            "FunctionName": arn,
            "InvokedViaFunctionUrl": True,
            "Principal": "*",
        },
        {
            "Action": "lambda:InvokeFunctionUrl",
            "FunctionName": arn,
            "FunctionUrlAuthType": "NONE",
            "Principal": "*",
        },
    ]


def test_the_database_hears_operators_and_the_functions_that_use_it(synthesis: Synthesis) -> None:
    _, cluster = synthesis.one("AWS::RDS::DBCluster")
    (group,) = cluster["Properties"]["VpcSecurityGroupIds"]
    sources = [rule["SourceSecurityGroupId"] for rule in synthesis.let_in(group)]
    operators = synthesis.template["Outputs"]["OperatorSecurityGroup"]["Value"]
    wanted = [*(synthesis.security_group(name) for name in USING_THE_DATABASE), operators]
    assert sorted(map(str, sources)) == sorted(map(str, wanted))
    assert "SecurityGroupIngress" not in synthesis.template["Resources"][group["Fn::GetAtt"][0]]["Properties"]


def test_no_security_group_is_open_to_the_world(synthesis: Synthesis) -> None:
    for rule in synthesis.resources("AWS::EC2::SecurityGroupIngress").values():
        assert "SourceSecurityGroupId" in rule["Properties"]
    for logical_id, group in synthesis.resources("AWS::EC2::SecurityGroup").items():
        if "Nat" in logical_id:
            continue
        assert "SecurityGroupIngress" not in group["Properties"]
        # Without any rule of its own, EC2 would let everything out.
        for rule in group["Properties"]["SecurityGroupEgress"]:
            # CDK's way of saying that nothing may leave is a rule that nothing can match.
            if rule["CidrIp"] != "255.255.255.255/32":
                assert (rule["FromPort"], rule["ToPort"]) in [(443, 443), (FIRST_UNPRIVILEGED_PORT, 65535)]


def test_only_reward_reaches_other_ports_than_https_and_all_that_webhooks_may_have(
    synthesis: Synthesis,
) -> None:
    reaching = {}
    for name in FUNCTIONS:
        _, function = synthesis.function(name)
        (group,) = function["Properties"]["VpcConfig"]["SecurityGroupIds"]
        rules = synthesis.template["Resources"][group["Fn::GetAtt"][0]]["Properties"]["SecurityGroupEgress"]
        ports = {(rule["FromPort"], rule["ToPort"]) for rule in rules if rule["CidrIp"] == "0.0.0.0/0"}
        assert (HTTPS_PORT, HTTPS_PORT) in ports
        if len(ports) > 1:
            reaching[name] = ports - {(HTTPS_PORT, HTTPS_PORT)}
    assert reaching == {"reward": {(FIRST_UNPRIVILEGED_PORT, 65535)}}


def test_no_statement_names_every_action(synthesis: Synthesis) -> None:
    for _, statement in synthesis.all_statements():
        assert not [action for action in _actions(statement) if "*" in action]


def test_only_what_knows_no_resources_is_allowed_on_everything(synthesis: Synthesis) -> None:
    """Network interfaces, which Lambda needs to put a function into its subnets, and how fast the account may send."""
    assert [name for name in FUNCTIONS if synthesis.granted(name, "ses:GetAccount")] == ["email"]
    operators, _ = synthesis.named("AWS::IAM::ManagedPolicy", "ManagedPolicyName", "operator")
    on_everything = {
        action
        for owner, statement in synthesis.all_statements()
        if "*" in str(statement["Resource"]) and owner != operators
        for action in _actions(statement)
    }
    on_everything.remove("ses:GetAccount")
    assert {action.split(":")[0] for action in on_everything} == {"ec2"}
    assert {action for action in on_everything if not action.startswith("ec2:Describe")} == {
        "ec2:AssignPrivateIpAddresses",
        "ec2:CreateNetworkInterface",
        "ec2:DeleteNetworkInterface",
        "ec2:UnassignPrivateIpAddresses",
    }


def test_no_role_takes_a_policy_that_aws_may_widen(synthesis: Synthesis) -> None:
    """But CDK's own, of the function that empties a new VPC's default security group."""
    taking = {
        logical_id: role["Properties"]["ManagedPolicyArns"]
        for logical_id, role in synthesis.resources("AWS::IAM::Role").items()
        if role["Properties"].get("ManagedPolicyArns")
    }
    assert [logical_id for logical_id in taking if "VpcRestrictDefaultSG" not in logical_id] == []
    for policies in taking.values():
        assert policies == [
            {"Fn::Sub": "arn:${AWS::Partition}:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"}
        ]
