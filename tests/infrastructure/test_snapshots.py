"""What a change of the code does to each environment's template, to be read in review."""

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from infra.environments import ENVIRONMENTS
from tests.infrastructure.synthesis import Synthesis

DIRECTORY = Path(__file__).parent / "snapshots"
# Assets are named by what is in them, and so is the schema: the code's own tests are about that.
_HASH = re.compile(r"\b[0-9a-f]{64}\b")


def snapshot(template: dict[str, Any]) -> str:
    masked = _HASH.sub("<hash>", json.dumps(_in_order(template), indent=1, sort_keys=True))
    return f"{masked}\n"


def _in_order(value: Any) -> Any:
    """With lists sorted where their order means nothing."""
    if isinstance(value, dict):
        return {
            key: sorted(inner) if key == "DependsOn" and isinstance(inner, list) else _in_order(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_in_order(inner) for inner in value]
    return value


def changes(before: str, after: str) -> str:
    """What differs, resource by resource, as in a diff."""
    parts = []
    old, new = json.loads(before), json.loads(after)
    for section in sorted({*old, *new}):
        was, now = old.get(section, {}), new.get(section, {})
        for name in sorted({*was, *now}) if isinstance(was, dict) and isinstance(now, dict) else [None]:
            one, other = (was, now) if name is None else (was.get(name), now.get(name))
            if one != other:
                parts.append(_difference(f"{section}/{name}" if name else section, one, other))
    return "\n".join(parts)


def _difference(title: str, before: Any, after: Any) -> str:
    lines = [
        [] if value is None else json.dumps(value, indent=1, sort_keys=True).splitlines()
        for value in (before, after)
    ]
    body = list(difflib.unified_diff(*lines, n=2, lineterm=""))[2:]
    return "\n".join([f"{title}:", *(f"  {line}" for line in body)])


def test_the_template_is_the_one_that_was_looked_at(synthesis: Synthesis) -> None:
    file = DIRECTORY / f"{synthesis.environment.name}.json"
    now = snapshot(synthesis.template)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        DIRECTORY.mkdir(exist_ok=True)
        file.write_text(now)
    before = file.read_text() if file.exists() else "{}"
    if before != now:
        pytest.fail(
            f"The template of {synthesis.environment.name} has changed:\n\n{changes(before, now)}\n\n"
            "If it is meant: make snapshots, and commit what it writes.",
            pytrace=False,
        )


def test_there_is_no_snapshot_of_an_environment_that_is_gone() -> None:
    assert sorted(file.stem for file in DIRECTORY.glob("*.json")) == sorted(
        each.name for each in ENVIRONMENTS
    )


def test_a_change_is_shown_at_its_resource_and_nothing_else(dev: Synthesis) -> None:
    before = snapshot(dev.template)
    template = json.loads(before)
    function, _ = dev.function("email")
    queue, _ = dev.queue("email-dead-letters")
    template["Resources"][function]["Properties"]["Timeout"] = 121
    del template["Resources"][queue]
    shown = changes(before, snapshot(template))
    assert f"Resources/{function}:" in shown
    assert '-  "Timeout": 120' in shown
    assert '+  "Timeout": 121' in shown
    assert f"Resources/{queue}:" in shown
    assert shown.count("Resources/") == 2


def test_another_asset_is_not_another_template(dev: Synthesis) -> None:
    before = snapshot(dev.template)
    function, _ = dev.function("email")
    key = dev.template["Resources"][function]["Properties"]["Code"]["S3Key"]
    assert re.fullmatch(r"[0-9a-f]{64}\.zip", key)
    assert snapshot(json.loads(json.dumps(dev.template).replace(key, f"{'0' * 64}.zip"))) == before
    assert not re.search(_HASH, before)
