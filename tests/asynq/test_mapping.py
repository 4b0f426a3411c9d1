"""The mapping file: what it may say, and what becomes of a task by it."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from campaign_jobs import events
from campaign_jobs_cli.asynq.errors import WrongMapping
from campaign_jobs_cli.asynq.mapping import Becomes, Drops, Stays, TaskMapping, Verdict
from tests.asynq.old_world import CAMPAIGN, user_id

USER = user_id(1)
REWARD = user_id(2)
TEMPLATE = user_id(3)
NOW = datetime(2025, 1, 1, tzinfo=UTC)


def data_of(verdict: Verdict) -> dict[str, Any]:
    assert isinstance(verdict, Becomes), verdict
    event = events.as_json(verdict.event("an id", NOW))
    assert event["type"] == verdict.type and event["timestamp"] == "2025-01-01T00:00:00Z"
    data: dict[str, Any] = event["data"]
    return data


def email(email_type: str, **template_data: Any) -> bytes:
    return json.dumps(
        {
            "type": email_type,
            "campaign_id": CAMPAIGN,
            "user_id": USER,
            "template_id": TEMPLATE,
            "template_data": template_data,
            "priority": 2,
        }
    ).encode()


@pytest.mark.parametrize("email_type", ["verification", "welcome", "position_update"])
def test_the_base_server_s_mails(mapping: TaskMapping, email_type: str) -> None:
    verdict = mapping.verdict(f"email:{email_type}", email(email_type, first_name="Ada", position=7))
    assert data_of(verdict) == {
        "type": email_type,
        "campaign_id": CAMPAIGN,
        "user_id": USER,
        "template_id": TEMPLATE,
        "template_data": {"first_name": "Ada", "position": 7},
        "priority": 2,
    }


def test_mails_that_need_more(mapping: TaskMapping) -> None:
    earned = email("reward_earned", user_reward_id=REWARD, reward_name="A pen", reward_data={"code": "x"})
    assert data_of(mapping.verdict("email:reward_earned", earned)) == {
        "type": "reward_earned",
        "campaign_id": CAMPAIGN,
        "user_id": USER,
        "template_id": TEMPLATE,
        "user_reward_id": REWARD,
        "template_data": {"reward_name": "A pen"},
        "priority": 2,
    }
    milestone = data_of(mapping.verdict("email:milestone", email("milestone", milestone=10)))
    assert (milestone["milestone"], milestone["template_data"]) == (10, {"milestone": 10})
    for lacking in ("reward_earned", "milestone"):
        verdict = mapping.verdict(f"email:{lacking}", email(lacking, reward_name="A pen"))
        assert isinstance(verdict, Stays) and "is missing" in verdict.reason and "pen" not in verdict.reason


def test_the_base_server_s_other_tasks(mapping: TaskMapping) -> None:
    reward = json.dumps({"user_reward_id": REWARD, "retry_attempt": 3}).encode()
    assert data_of(mapping.verdict("reward:delivery", reward)) == {"user_reward_id": REWARD}
    position = json.dumps({"campaign_id": CAMPAIGN, "user_ids": [USER]}).encode()
    assert data_of(mapping.verdict("position:recalculation", position))["campaign_id"] == CAMPAIGN
    assert isinstance(mapping.verdict("fraud:detection", b""), Drops)
    assert isinstance(mapping.verdict("analytics:aggregation", b""), Drops)
    assert isinstance(mapping.verdict("webhook:delivery", b"{}"), Stays)
    for unknown in ("email:tracking", "data:export", ""):
        assert mapping.verdict(unknown, b"{}") == Stays("the mapping does not know its type")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "campaign_id"),
        (email("welcome"), "data.type must be 'verification'"),
        (email("verification", a=True), "must be a text or a number"),
        (email("verification", **{f"a{n}": "é" * 4_000 for n in range(40)}), "allowed are 262144"),
    ],
)
def test_what_stays_and_why(mapping: TaskMapping, payload: bytes, reason: str) -> None:
    verdict = mapping.verdict("email:verification", payload)
    assert isinstance(verdict, Stays) and reason in verdict.reason


def test_paths_and_constants(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        """
        [tasks.hello]
        event = "job.email.welcome"
        data = { campaign_id = "campaign", user_id = "to.user.id", "template_data.a" = "x", "template_data.b" = "y.z" }
        constants = { priority = 3, "template_data.c" = "always" }

        [tasks.whole]
        event = "job.reward.deliver"
        """
    )
    mapping = TaskMapping.load(str(file))
    payload = {"campaign": CAMPAIGN, "to": {"user": {"id": USER}}, "x": 1, "y": "no object"}
    assert data_of(mapping.verdict("hello", json.dumps(payload).encode())) == {
        "type": "welcome",
        "campaign_id": CAMPAIGN,
        "user_id": USER,
        "priority": 3,
        "template_data": {"a": 1, "c": "always"},
    }
    whole = json.dumps({"user_reward_id": REWARD, "other": [1]}).encode()
    assert data_of(mapping.verdict("whole", whole)) == {"user_reward_id": REWARD}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tasks = 1", "tasks"),
        ("", "tasks"),
        ("[tasks.a]", "exactly one of event, drop and stay"),
        ("[tasks.a]\ndrop = 'x'\nstay = 'y'", "exactly one of event, drop and stay"),
        ("[tasks.a]\nevent = 'job.unknown'", "allowed events are job.email"),
        ("[tasks.a]\ndrop = 'x'\ndata = {}", "go with event"),
        ("[tasks.a]\ndrop = ''", "tasks.a.drop"),
        ("[tasks.a]\nevents = 'x'", "tasks.a.events"),
        ("[tasks.a", "not TOML"),
    ],
)
def test_what_a_mapping_must_not_say(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(WrongMapping, match=problem):
        TaskMapping.load(str(file))


def test_the_example_of_the_guide(tmp_path: Path, repository: Path) -> None:
    guide = (repository / "docs" / "migrating-from-asynq.md").read_text()
    [example] = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    file = tmp_path / "mine.toml"
    file.write_text(example)
    mapping = TaskMapping.load(str(file))
    payload = {"campaign_id": CAMPAIGN, "user": {"id": USER, "first_name": "Ada"}}
    data = data_of(mapping.verdict("email:verification", json.dumps(payload).encode()))
    assert (data["user_id"], data["template_data"], data["priority"]) == (USER, {"name": "Ada"}, 1)
    assert isinstance(mapping.verdict("fraud:detection", b""), Drops)


def test_the_guide_lists_what_the_included_mapping_knows(mapping: TaskMapping, repository: Path) -> None:
    guide = (repository / "docs" / "migrating-from-asynq.md").read_text()
    for task_type in mapping.rules:
        room, _, name = task_type.partition(":")
        assert f"`{task_type}`" in guide or (room == "email" and f"`:{name}`" in guide), task_type


def test_a_mapping_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WrongMapping, match="cannot be read"):
        TaskMapping.load(str(tmp_path / "none.toml"))
