"""Pausing and resuming by Lambda's and EventBridge's switches."""

import json
from pathlib import Path
from typing import Any

import pytest

from campaign_jobs import catalog
from campaign_jobs_cli.errors import ExitCode
from campaign_jobs_cli.mappings import mappings_of
from campaign_jobs_cli.switches import consequences
from campaign_jobs_cli.targets import Target
from tests.cli.operating.conftest import GradualMapping, Type

EVERY_SWITCHED = {each.name for each in (
    *catalog.EVENT_JOB_TYPES, *catalog.QUEUE_JOB_TYPES, *catalog.SCHEDULED_JOB_TYPES,
)}  # fmt: skip


def states(target: Target, job_type: str) -> list[str]:
    """Once they have settled."""
    for _ in range(GradualMapping.looks):
        found = [mapping.state for mapping in mappings_of(target, job_type)]
    return found


def test_a_job_type_with_two_lanes_has_four_switches(type_: Type, target: Target) -> None:
    ran = type_("pause", "email", "--yes", "--output", "json")
    assert ran.code == ExitCode.DONE, ran.err
    assert len(ran.json) == 4
    assert {(row["before"], row["state"]) for row in ran.json} == {("Enabled", "Disabled")}
    assert states(target, "email") == ["Disabled"] * 4
    assert states(target, "reward") == ["Enabled"] * 2

    assert type_("resume", "email", "--yes").code == ExitCode.DONE
    assert states(target, "email") == ["Enabled"] * 4


def test_it_ends_when_lambda_says_so(type_: Type, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("campaign_jobs_cli.switches._LOOK_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(GradualMapping, "looks", 40)
    ran = type_("pause", "reward", "--yes")
    assert ran.code == ExitCode.DONE
    # The look after the last one that said Disabling.
    assert [mapping.state for mapping in mappings_of(target, "reward")] == ["Disabled"] * 2


def test_what_takes_too_long_is_an_error_that_says_where_it_is(
    type_: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("campaign_jobs_cli.switches._LOOK_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(GradualMapping, "looks", 100_000)
    ran = type_("pause", "position", "--yes", "--timeout", 1)
    assert ran.code == ExitCode.FAILED
    assert "is Disabling" in ran.err and "again" in ran.err


def test_doing_it_again_changes_nothing_and_asks_nothing(type_: Type, target: Target) -> None:
    type_("pause", "fraud", "feedback", "--yes")
    states(target, "feedback")
    again = type_("pause", "fraud", "feedback")
    assert again.code == ExitCode.DONE
    assert "disabled already" in again.err


def test_a_scheduled_job_type_is_switched_by_its_rule(type_: Type, target: Target) -> None:
    rule = target.resource_name("analytics")

    def state() -> Any:
        return target.client("events").describe_rule(Name=rule)["State"]

    ran = type_("pause", "analytics", "--yes", "--output", "json")
    assert ran.json == [
        {
            "job_type": "analytics",
            "kind": "rule",
            "name": rule,
            "state": "Disabled",
            "becomes": "Disabled",
            "before": "Enabled",
        }
    ]
    assert state() == "DISABLED"
    assert type_("resume", "analytics", "--yes").code == ExitCode.DONE
    assert state() == "ENABLED"


def test_nothing_is_paused_that_nobody_wanted(type_: Type, target: Target) -> None:
    ran = type_("pause", "email")
    assert ran.code == ExitCode.DECLINED
    assert "7 days" in ran.err and target.resource_name("heartbeat-age-email") in ran.err
    assert states(target, "email") == ["Enabled"] * 4


def test_an_unknown_job_type_is_wrong_usage(type_: Type) -> None:
    ran = type_("pause", "mail")
    assert ran.code == ExitCode.WRONG_USAGE and "unroutable" in ran.err


def test_the_alarms_that_are_said_to_ring_are_those_of_the_stack(target: Target, repository: Path) -> None:
    template = json.loads((repository / "tests/infrastructure/snapshots/dev.json").read_text())
    alarms = {
        str(resource["Properties"]["AlarmName"]).removeprefix("campaign-jobs-dev-")
        for resource in template["Resources"].values()
        if resource["Type"] == "AWS::CloudWatch::Alarm"
    }
    prefix = target.resource_name("")
    lines = consequences(EVERY_SWITCHED, target)
    assert len(lines) == len(EVERY_SWITCHED)
    named = {
        word.removeprefix(prefix).rstrip(".") for line in lines for word in line.split() if prefix in word
    }
    assert len(named) == 7
    assert named <= alarms
