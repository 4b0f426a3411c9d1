"""A synthesised stack, and questions that several tests ask about its template."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aws_cdk as cdk

from infra.environment_settings import Environment
from infra.stack import CampaignJobsStack

REPOSITORY = Path(__file__).resolve().parent.parent.parent

Resource = dict[str, Any]


@dataclass(frozen=True)
class Synthesis:
    environment: Environment
    template: dict[str, Any]
    directory: Path
    """The cloud assembly, with the assets."""

    @property
    def manifest(self) -> dict[str, Any]:
        """What the CDK command line reads first; names what would have to be looked up in an account."""
        manifest: dict[str, Any] = json.loads((self.directory / "manifest.json").read_text())
        return manifest

    def resources(self, type_name: str) -> dict[str, Resource]:
        """The resources of a type, by logical id."""
        return {
            logical_id: resource
            for logical_id, resource in self.template["Resources"].items()
            if resource["Type"] == type_name
        }

    def one(self, type_name: str) -> tuple[str, Resource]:
        ((logical_id, resource),) = self.resources(type_name).items()
        return logical_id, resource

    def named(self, type_name: str, name_property: str, part: str) -> tuple[str, Resource]:
        """The one resource of a type that carries the environment's name for `part`."""
        wanted = self.environment.resource_name(part)
        ((logical_id, resource),) = (
            (logical_id, resource)
            for logical_id, resource in self.resources(type_name).items()
            if resource["Properties"].get(name_property) == wanted
        )
        return logical_id, resource

    def function(self, name: str) -> tuple[str, Resource]:
        return self.named("AWS::Lambda::Function", "FunctionName", name)

    def environ(self, name: str) -> dict[str, str]:
        """A function's environment, with a plausible text in the place of what only the deployment knows."""
        deployed = {
            "DATABASE_SECRET_ARN": "arn:aws:secretsmanager:us-east-1:111122223333:secret:database",
            "UNSUBSCRIBE_KEYS_SECRET_ARN": "arn:aws:secretsmanager:us-east-1:111122223333:secret:keys",
            "KAFKA_BROKERS": "b-1.example.com:9098,b-2.example.com:9098",
        }
        _, function = self.function(name)
        return {
            variable: value
            if isinstance(value, str)
            else deployed.get(variable, "https://sqs.us-east-1.amazonaws.com/111122223333/queue")
            for variable, value in function["Properties"]["Environment"]["Variables"].items()
        }

    def alias(self, function_name: str, alias_name: str) -> Resource:
        """What a mapping names to invoke a function by one of its aliases."""
        function, _ = self.function(function_name)
        ((logical_id, _),) = (
            (logical_id, alias)
            for logical_id, alias in self.resources("AWS::Lambda::Alias").items()
            if (alias["Properties"]["FunctionName"], alias["Properties"]["Name"])
            == ({"Ref": function}, alias_name)
        )
        name_in_arn = {"Fn::Select": [6, {"Fn::Split": [":", {"Ref": logical_id}]}]}
        return {"Fn::Join": ["", [name_in_arn, f":{alias_name}"]]}

    def queue(self, part: str) -> tuple[str, Resource]:
        return self.named("AWS::SQS::Queue", "QueueName", part)

    def statements(self, function_name: str) -> list[dict[str, Any]]:
        """What a function's role allows."""
        _, function = self.function(function_name)
        role = function["Properties"]["Role"]["Fn::GetAtt"][0]
        assert "ManagedPolicyArns" not in self.template["Resources"][role]["Properties"]
        return [
            statement
            for policy in self.resources("AWS::IAM::Policy").values()
            if {"Ref": role} in policy["Properties"]["Roles"]
            for statement in policy["Properties"]["PolicyDocument"]["Statement"]
        ]

    def granted(self, function_name: str, action: str) -> list[Any]:
        """The resources on which a function's role allows an action."""
        return [
            resource
            for statement in self.statements(function_name)
            if action in _list(statement["Action"])
            for resource in _list(statement["Resource"])
        ]

    def security_group(self, function_name: str) -> dict[str, Any]:
        """A function's own security group, as rules name it."""
        _, function = self.function(function_name)
        (group,) = function["Properties"]["VpcConfig"]["SecurityGroupIds"]
        return dict(group)

    def let_in(self, group: Any) -> list[dict[str, Any]]:
        """The rules that let somebody in to what stands behind a security group."""
        return [
            rule["Properties"]
            for rule in self.resources("AWS::EC2::SecurityGroupIngress").values()
            if rule["Properties"]["GroupId"] == group
        ]

    def let_out(self, group: Any) -> list[dict[str, Any]]:
        """The rules that let members of a security group of this stack out to another group."""
        return [
            rule["Properties"]
            for rule in self.resources("AWS::EC2::SecurityGroupEgress").values()
            if rule["Properties"]["GroupId"] == group
        ]

    def all_statements(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every statement that allows somebody something, with the logical id of its policy or role."""
        for type_name in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"):
            for logical_id, policy in self.resources(type_name).items():
                for statement in policy["Properties"]["PolicyDocument"]["Statement"]:
                    yield logical_id, statement
        for logical_id, role in self.resources("AWS::IAM::Role").items():
            for policy in role["Properties"].get("Policies", []):
                for statement in policy["PolicyDocument"]["Statement"]:
                    yield logical_id, statement


def build(environment: Environment, directory: Path, **given: str) -> tuple[cdk.App, CampaignJobsStack]:
    """The app as app.py builds it, not synthesized yet; `given` is what `-c` gives on the command line."""
    context: Mapping[str, Any] = json.loads((REPOSITORY / "cdk.json").read_text())["context"]
    app = cdk.App(context={**context, **given}, outdir=str(directory / environment.name))
    return app, CampaignJobsStack(app, environment.stack_name, environment=environment)


def synthesise(environment: Environment, directory: Path, **given: str) -> Synthesis:
    app, stack = build(environment, directory, **given)
    assembly = app.synth()
    template = assembly.get_stack_by_name(stack.stack_name).template
    return Synthesis(environment, template, Path(assembly.directory))


def topic_arn(cluster: Any, topic: str) -> dict[str, Any]:
    """The ARN of a topic as the stack puts it together from its cluster's."""
    return _arn_below("topic", cluster, topic)


def group_arn(cluster: Any, consumer_group: str) -> dict[str, Any]:
    return _arn_below("group", cluster, consumer_group)


def _arn_below(kind: str, cluster: Any, name: str) -> dict[str, Any]:
    """From arn:…:cluster/<name>/<uuid> to arn:…:<kind>/<name>/<uuid>/<its name>."""
    parts = {"Fn::Split": ["/", cluster]}
    first = {"Fn::Select": [0, {"Fn::Split": [":cluster", {"Fn::Select": [0, parts]}]}]}
    names = [{"Fn::Select": [1, parts]}, {"Fn::Select": [2, parts]}, name]
    return {"Fn::Join": ["/", [{"Fn::Join": ["", [first, f":{kind}"]]}, *names]]}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
