"""A schedule that was tuned in the EventBridge console stays: deployments touch a rule only when it changes in code.

CloudFormation compares a rule with the last template, not with what the console has made of it.
"""

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from campaign_jobs import catalog, settings
from campaign_jobs.database import migrations
from infra import layers
from infra.environments import DEV
from tests.infrastructure.synthesis import Synthesis, synthesise

TUNABLE = [job_type for job_type in catalog.SCHEDULED_JOB_TYPES if job_type.interval_setting]
# What an unrelated deployment may bring: each of the other settings, changed in place.
UNRELATED: dict[str, Any] = {
    "kafka": replace(DEV.kafka, version="3.9.x.kraft", instance_type="kafka.m7g.large", volume_gib=20),
    "database": replace(DEV.database, max_capacity=8),
    "sending": replace(DEV.sending, default_sender="other@example.com", rate_share=0.05),
    "log_retention_days": 30,
    "alarm_recipients": ("operators@example.com",),
    "kafka_job_topic": "events",
    "kafka_job_consumer_group": "workers",
    "kafka_worker_pool_size": 20,
    "public_base_url": "https://jobs.example.com",
}


def rules(synthesis: Synthesis) -> dict[str, str]:
    """Each rule of a schedule by its logical id, as it stands in the template."""
    return {
        logical_id: json.dumps(rule)
        for logical_id, rule in synthesis.resources("AWS::Events::Rule").items()
        if "ScheduleExpression" in rule["Properties"]
    }


def test_other_settings_leave_each_rule_as_it_is(dev: Synthesis, tmp_path: Path) -> None:
    tuned = synthesise(replace(DEV, **UNRELATED), tmp_path)
    assert tuned.template != dev.template
    assert len(rules(dev)) == len(catalog.SCHEDULED_JOB_TYPES)
    assert rules(tuned) == rules(dev)


def test_a_release_leaves_each_rule_as_it_is(
    dev: Synthesis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other dependencies, another migration, other limits of the jobs."""
    monkeypatch.setattr(layers, "dependencies_hash", lambda architecture: "0" * 64)
    monkeypatch.setattr(migrations, "content_hash", lambda: "0" * 64)
    for name in ("ANALYTICS", "FRAUD", "RELAY"):
        job_type = getattr(catalog, name)
        monkeypatch.setattr(catalog, name, replace(job_type, timeout_seconds=77, memory_mb=333))
    released = synthesise(DEV, tmp_path)
    _, function = released.function("analytics")
    assert function["Properties"]["Timeout"] == 77
    assert rules(released) == rules(dev)


@pytest.mark.parametrize("job_type", TUNABLE, ids=lambda job_type: job_type.name)
def test_an_interval_that_changes_in_code_changes_its_rule_and_what_says_so(
    dev: Synthesis, tmp_path: Path, job_type: catalog.ScheduledJobType
) -> None:
    """Nothing besides goes by the deployed interval, so all is right with the one that the console has set."""
    changed = synthesise(replace(DEV, **{job_type.interval_setting.lower(): "6h"}), tmp_path)
    rule_id, rule = changed.named("AWS::Events::Rule", "Name", job_type.name)
    assert rule["Properties"]["ScheduleExpression"] == "rate(6 hours)"
    function_id, function = changed.function(job_type.name)
    before, after = dev.template["Resources"], changed.template["Resources"]
    assert {name for name in after if after[name] != before[name]} == {rule_id, function_id}
    assert set(before) == set(after)
    # The function is told, and does not listen; see the next test.
    variables = function["Properties"]["Environment"]["Variables"]
    assert variables[job_type.interval_setting] == "6h"
    variables[job_type.interval_setting] = job_type.default_interval
    assert function == before[function_id]


def test_no_code_goes_by_the_deployed_interval(repository: Path) -> None:
    named = {setting for job_type in TUNABLE for setting in _names_of(job_type)}
    package = repository / "layers" / "campaign_jobs" / "python" / "campaign_jobs"
    files = [*package.rglob("*.py"), *(repository / "functions").rglob("*.py")]
    # Where the settings are declared, and the catalog that names them.
    declaring = {Path(settings.__file__), Path(catalog.__file__)}
    assert declaring < set(files)
    reading = {
        str(file.relative_to(repository))
        for file in files
        if file not in declaring and named & set(_words(ast.parse(file.read_text())))
    }
    assert reading == set()


def _names_of(job_type: catalog.ScheduledJobType) -> set[str]:
    setting = job_type.interval_setting
    return {setting, setting.lower(), "default_interval", "interval_setting"}


def _words(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("job_type", TUNABLE, ids=lambda job_type: job_type.name)
def test_a_tick_lives_as_long_as_its_retries_whatever_the_interval(
    dev: Synthesis, job_type: catalog.ScheduledJobType
) -> None:
    """Lambda tries again after one minute and after two more; a rule tuned to days must not lose its day for less."""
    _, rule = dev.named("AWS::Events::Rule", "Name", job_type.name)
    (target,) = rule["Properties"]["Targets"]
    tries = 1 + target["RetryPolicy"]["MaximumRetryAttempts"]
    longest = timedelta(seconds=tries * job_type.timeout_seconds) + timedelta(minutes=3)
    assert target["RetryPolicy"]["MaximumEventAgeInSeconds"] >= longest.total_seconds()
