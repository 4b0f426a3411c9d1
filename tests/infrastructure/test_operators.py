"""What the command line needs: every call that it makes is allowed, and nothing else is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.infrastructure.synthesis import Synthesis

# Where IAM names a service or an action otherwise than boto3 does.
_SERVICES = {"sesv2": "ses"}
_ACTIONS = {
    "lambda:Invoke": "lambda:InvokeFunction",
    "sqs:SendMessageBatch": "sqs:SendMessage",
    "sqs:DeleteMessageBatch": "sqs:DeleteMessage",
    "sqs:ChangeMessageVisibilityBatch": "sqs:ChangeMessageVisibility",
}
# Through the package, which reads the database's secret.
_BY_THE_PACKAGE = {"secretsmanager:GetSecretValue"}


def policy(synthesis: Synthesis) -> list[dict[str, Any]]:
    _, found = synthesis.named("AWS::IAM::ManagedPolicy", "ManagedPolicyName", "operator")
    statements: list[dict[str, Any]] = found["Properties"]["PolicyDocument"]["Statement"]
    return statements


def actions(statements: list[dict[str, Any]]) -> set[str]:
    found: set[str] = set()
    for statement in statements:
        found.update([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    return found


def calls(tree: ast.AST, services: dict[str, str]) -> Iterator[str]:
    """IAM's names of the calls of boto3's clients in a module; `services` by the names of variables that hold one."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        client, method = node.func.value, node.func.attr
        service = services.get(client.id) if isinstance(client, ast.Name) else _service(client)
        if service is None:
            continue
        if method == "get_paginator" and isinstance(node.args[0], ast.Constant):
            method = str(node.args[0].value)
        action = "".join(word.capitalize() for word in method.split("_"))
        name = f"{_SERVICES.get(service, service)}:{action}"
        yield _ACTIONS.get(name, name)


def _service(node: ast.AST) -> str | None:
    """The service of an expression such as `target.client("sqs")`."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("client") and node.args:
        first = node.args[0]
        return str(first.value) if isinstance(first, ast.Constant) else None
    return None


def clients(tree: ast.AST) -> dict[str, str]:
    """The service of each variable that is given a client."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            (goal, *_), value = node.targets, node.value
            pairs = (
                zip(goal.elts, value.elts, strict=True)
                if isinstance(goal, ast.Tuple) and isinstance(value, ast.Tuple)
                else [(goal, value)]
            )
            for name, each in pairs:
                if isinstance(name, ast.Name) and (service := _service(each)) is not None:
                    found[name.id] = service
    return found


@pytest.fixture
def called(repository: Path) -> set[str]:
    found: set[str] = set()
    for file in sorted((repository / "cli").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found.update(calls(tree, clients(tree)))
    return {
        name
        for name in found
        if re.fullmatch(
            r"[a-z]+:(Get|List|Send|Receive|Delete|Change|Describe|Enable|Disable|Update|Invoke|Put|Create)[A-Za-z]*",
            name,
        )
    }


def test_every_call_is_allowed_and_nothing_else(synthesis: Synthesis, called: set[str]) -> None:
    allowed = actions(policy(synthesis))
    assert {name for name in allowed if not name.startswith("kafka-cluster:")} == called | _BY_THE_PACKAGE


def test_mappings_of_others_cannot_be_changed(synthesis: Synthesis) -> None:
    (statement,) = (each for each in policy(synthesis) if "lambda:UpdateEventSourceMapping" in each["Action"])
    fed = {
        str(mapping["Properties"]["FunctionName"])
        for mapping in synthesis.resources("AWS::Lambda::EventSourceMapping").values()
    }
    assert len(statement["Condition"]["ArnEquals"]["lambda:FunctionArn"]) == len(fed)


def test_queues_and_rules_are_the_environment_s_own(synthesis: Synthesis) -> None:
    statements = policy(synthesis)
    (queues,) = (each["Resource"] for each in statements if "sqs:SendMessage" in each["Action"])
    assert {each["Fn::GetAtt"][0] for each in queues} == set(synthesis.resources("AWS::SQS::Queue"))
    (rules,) = (each["Resource"] for each in statements if "events:EnableRule" in each["Action"])
    scheduled = {
        logical_id
        for logical_id, rule in synthesis.resources("AWS::Events::Rule").items()
        if "ScheduleExpression" in rule["Properties"]
    }
    assert {each["Fn::GetAtt"][0] for each in rules} == scheduled


def test_the_command_line_finds_everything_below_one_path(synthesis: Synthesis) -> None:
    prefix = f"/campaign-jobs/{synthesis.environment.name}/"
    names = {
        parameter["Properties"]["Name"].removeprefix(prefix)
        for parameter in synthesis.resources("AWS::SSM::Parameter").values()
    }
    assert {"brokers", "topic", "consumer-group", "database-secret-arn", "default-sender"} <= names
