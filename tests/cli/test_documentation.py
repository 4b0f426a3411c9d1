"""docs/command-line.md names each command about people, mails and numbers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from campaign_jobs_cli.app import app

DOCUMENTED = ("analytics", "explain", "fraud", "import", "rewards", "suppressions", "templates")


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
    found = [each for name in DOCUMENTED for each in commands(group.commands[name], f"campaign-jobs {name}")]
    assert len(found) > len(DOCUMENTED)
    assert [name for name in found if name not in text] == []
