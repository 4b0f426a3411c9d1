"""Alarms and dashboard as a template has them, and questions that several tests ask about them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aws_cdk as cdk
from aws_cdk import assertions
from constructs import Construct

from campaign_jobs import catalog
from infra.alarms import Alarms
from infra.dashboard import Dashboard
from infra.environment_settings import Environment
from tests.infrastructure.synthesis import Resource

LANES = {lane.name: job_type for job_type in catalog.EVENT_JOB_TYPES for lane in job_type.lanes}
MINUTE, HOUR = 60, 3600

# What missing data do to each kind of alarm.
SILENCE = {
    "heartbeat-age": "breaching",
    "watermark-age": "breaching",
    "outbox-age": "breaching",
    "retry-age": "notBreaching",
    "queue-age": "notBreaching",
    "errors": "notBreaching",
    "throttles": "notBreaching",
    "batch-stopped": "notBreaching",
    "dead-letters": "ignore",
    "failed-runs": "ignore",
    "bounce-rate": "ignore",
    "complaint-rate": "ignore",
}


@dataclass(frozen=True)
class Alarm:
    kind: str
    which: str
    properties: dict[str, Any]
    depends_on: tuple[str, ...]

    @property
    def dimensions(self) -> dict[str, str]:
        return {item["Name"]: item["Value"] for item in self.properties.get("Dimensions", [])}

    @property
    def periods(self) -> tuple[int, int, int]:
        """Of how many seconds; how many of them must be bad; of how many."""
        properties = self.properties
        return properties["Period"], properties["DatapointsToAlarm"], properties["EvaluationPeriods"]


def alarms_of(template: Mapping[str, Any], environment: Environment) -> dict[str, Alarm]:
    """By name, without the environment's part of it."""
    found = {}
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::CloudWatch::Alarm":
            properties = resource["Properties"]
            name = properties["AlarmName"].removeprefix(environment.resource_name(""))
            kind = next(kind for kind in SILENCE if name == kind or name.startswith(f"{kind}-"))
            which = name.removeprefix(kind).removeprefix("-")
            found[name] = Alarm(kind, which, properties, tuple(resource.get("DependsOn", ())))
    return found


def synthesise_watching(environment: Environment) -> dict[str, Any]:
    """Alarms and dashboard alone, which takes a second."""
    stack = cdk.Stack(cdk.App(), "Stack")
    alarms = Alarms(stack, "Alarms", environment=environment, reporting=Construct(stack, "Reporting"))
    Dashboard(stack, "Dashboard", environment=environment, alarms=alarms.all)
    template: dict[str, Any] = assertions.Template.from_stack(stack).to_json()
    return template


def resources(template: Mapping[str, Any], type_name: str) -> list[Resource]:
    return [resource for resource in template["Resources"].values() if resource["Type"] == type_name]


def widgets(template: Mapping[str, Any]) -> list[dict[str, Any]]:
    (dashboard,) = resources(template, "AWS::CloudWatch::Dashboard")
    parts = dashboard["Properties"]["DashboardBody"]["Fn::Join"][1]
    body = json.loads("".join(part if isinstance(part, str) else "region" for part in parts))
    return [widget["properties"] for widget in body["widgets"]]


def shown_metrics(template: Mapping[str, Any]) -> Iterator[list[str]]:
    """Namespace, name, and the dimensions' names and values in turn."""
    for widget in widgets(template):
        for metric in widget.get("metrics", []):
            if isinstance(metric[0], str):
                yield [part for part in metric if isinstance(part, str)]


def expressions(template: Mapping[str, Any]) -> list[str]:
    return [
        metric[0]["expression"]
        for widget in widgets(template)
        for metric in widget.get("metrics", [])
        if isinstance(metric[0], dict)
    ]
