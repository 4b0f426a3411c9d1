"""docs/command-line.md names each command."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from campaign_jobs_cli.app import app

# Described in docs/migrating-from-asynq.md.
ELSEWHERE = {"asynq"}


def commands(command: Any, name: str) -> Iterator[str]:
    below = getattr(command, "commands", None)
    if below is None:
        yield name
        return
    for each, part in below.items():
        yield from commands(part, f"{name} {each}")


def test_every_command_is_documented(repository: Path) -> None:
    text = (repository / "docs/command-line.md").read_text(encoding="utf-8")
    group: Any = typer.main.get_command(app)
    names = group.commands.keys() - ELSEWHERE
    found = [each for name in names for each in commands(group.commands[name], f"campaign-jobs {name}")]
    assert len(found) > len(names)
    assert [name for name in found if name not in text] == []
