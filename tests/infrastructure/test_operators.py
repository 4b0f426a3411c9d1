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
# Through the package, which reads the database's secret; and with AWS's own command line.
_BY_OTHERS = {"secretsmanager:GetSecretValue", "sqs:PurgeQueue"}


def policy(synthesis: Synthesis) -> list[dict[str, Any]]:
    _, found = synthesis.named("AWS::IAM::ManagedPolicy", "ManagedPolicyName", "operator")
    statements: list[dict[str, Any]] = found["Properties"]["PolicyDocument"]["Statement"]
    return statements


def actions(statements: list[dict[str, Any]]) -> set[str]:
    found: set[str] = set()
    for statement in statements:
        found.update([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    return found


def calls(tree: ast.AST) -> Iterator[str]:
    """IAM's names of what a module takes of boto3's clients, called at once or later."""
    clients = dict(_clients(tree))
    paginated = {
        id(node.func): str(node.args[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "get_paginator"
        and isinstance(node.args[0], ast.Constant)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        service = clients.get(ast.unparse(node.value)) or _service(node.value)
        if service is not None:
            method = paginated.get(id(node), node.attr)
            action = "".join(word.capitalize() for word in method.split("_"))
            name = f"{_SERVICES.get(service, service)}:{action}"
            yield _ACTIONS.get(name, name)


def _clients(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Each variable that is given a client, as it is written, and its service."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.Assign):
            (goal, *_), value = node.targets, node.value
            both = isinstance(goal, ast.Tuple) and isinstance(value, ast.Tuple)
            pairs = list(zip(goal.elts, value.elts, strict=True)) if both else [(goal, value)]  # type: ignore[attr-defined]
        else:
            continue
        for name, each in pairs:
            if (service := _service(each)) is not None:
                yield ast.unparse(name), service


def _service(node: ast.AST) -> str | None:
    """The service of an expression such as `target.client("sqs")`."""
    if isinstance(node, ast.Call) and re.search(r"(^|\.)client$", ast.unparse(node.func)) and node.args:
        first = node.args[0]
        return str(first.value) if isinstance(first, ast.Constant) else None
    return None


@pytest.fixture
def called(repository: Path) -> set[str]:
    found: set[str] = set()
    for file in sorted((repository / "cli").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found.update(calls(tree))
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
    assert {name for name in allowed if not name.startswith("kafka-cluster:")} == called | _BY_OTHERS


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
