"""What cdk-nag finds is mended, or left at the one resource that it is about, with a reason."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest
from cdk_nag import AwsSolutionsChecks, NagPack, ServerlessChecks
from constructs import IConstruct

from infra import acknowledged, environments
from infra.environment_settings import Environment
from tests.infrastructure.existing import CUSTOM_DOMAIN, EXISTING_DATABASE, EXISTING_KAFKA, EXISTING_NETWORK
from tests.infrastructure.synthesis import build

# Each that is checked in, and one that takes what is there and has a domain of its own.
ENVIRONMENTS = (
    *environments.ENVIRONMENTS,
    replace(
        environments.PROD,
        name="taking",
        network=EXISTING_NETWORK,
        kafka=EXISTING_KAFKA,
        database=EXISTING_DATABASE,
        unsubscribe_domain=CUSTOM_DOMAIN,
    ),
)
each_environment = pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda each: each.name)


@dataclass(frozen=True)
class Acknowledgement:
    path: str
    rule: str
    reason: str

    def covers(self, path: str, rule: str) -> bool:
        return rule == self.rule and (path == self.path or path.startswith(f"{self.path}/"))


@dataclass
class Recorder:
    """Stands in for CDK's Validations: keeps what is acknowledged, so that the packs find it all the same."""

    kept: list[Acknowledgement] = field(default_factory=list)

    def of(self, construct: IConstruct) -> "Recorder":
        self._path = construct.node.path
        return self

    def acknowledge(self, *rules: cdk.Acknowledgment) -> None:
        self.kept += [Acknowledgement(self._path, rule.id, rule.reason) for rule in rules]


def findings(app: cdk.App) -> Iterator[tuple[str, str]]:
    """Each as the path of a resource and the rule that it breaks."""
    packs: tuple[NagPack, ...] = (AwsSolutionsChecks(app), ServerlessChecks(app))
    for pack in packs:
        for violation in pack.validate_scope(app).violations:
            for resource in violation.violating_resources:
                yield str(resource.construct_path), violation.rule_name


@each_environment
def test_nothing_is_found_that_nobody_has_explained(environment: Environment, tmp_path: Path) -> None:
    app, _ = build(environment, tmp_path)
    assert list(findings(app)) == []


@each_environment
def test_each_acknowledgement_is_about_one_resource_that_breaks_the_rule(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(acknowledged, "Validations", recorder)
    app, _ = build(environment, tmp_path)
    found = list(findings(app))
    assert found
    covering = {
        acknowledgement: [path for path, rule in found if acknowledgement.covers(path, rule)]
        for acknowledgement in recorder.kept
    }
    assert {acknowledgement: paths for acknowledgement, paths in covering.items() if len(paths) != 1} == {}
    # Nobody says the same twice.
    assert [count for count in Counter(map(str, recorder.kept)).values() if count > 1] == []


@each_environment
def test_each_wildcard_in_a_policy_has_a_reason_of_its_own(environment: Environment, tmp_path: Path) -> None:
    """Read from the template, whatever cdk-nag thinks of it."""
    app, stack = build(environment, tmp_path)
    template = app.synth().get_stack_by_name(stack.stack_name).template
    paths = {
        stack.get_logical_id(construct): construct.node.path
        for construct in stack.node.find_all()
        if isinstance(construct, cdk.CfnElement)
    }
    wildcards = [(paths[logical_id], wildcard) for logical_id, wildcard in _wildcards(template)]
    assert wildcards
    reasons = _reasons(stack)
    unexplained = [
        (path, wildcard)
        for path, wildcard in wildcards
        if not any(reason.covers(path, f"AwsSolutions-IAM5[{wildcard}]") for reason in reasons)
    ]
    assert unexplained == []


def _reasons(stack: cdk.Stack) -> list[Acknowledgement]:
    key = cdk.Validations.ACKNOWLEDGED_RULES_METADATA_KEY
    return [
        Acknowledgement(construct.node.path, rule.removeprefix("Annotation::"), reason)
        for construct in stack.node.find_all()
        for entry in construct.node.metadata
        if entry.type == key
        for rule, reason in dict(entry.data).items()
    ]


def _wildcards(template: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The logical id of each policy or role that allows with a wildcard, and the wildcard."""
    for logical_id, resource in template["Resources"].items():
        for statement in _allowing(resource):
            for kind in ("Action", "Resource"):
                for value in _list(statement.get(kind, [])):
                    if re.search(r"[*?]", json.dumps(value)):
                        yield logical_id, f"{kind}::{value}"
            assert "NotAction" not in statement
            assert "NotResource" not in statement


def _allowing(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    properties = resource.get("Properties", {})
    documents = [properties.get("PolicyDocument")]
    documents += [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
    for document in filter(None, documents):
        yield from (statement for statement in document["Statement"] if statement["Effect"] == "Allow")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
