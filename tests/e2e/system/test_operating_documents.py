"""What the documents tell an operator to type works, against the whole local system."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local.system import LocalSystem

DOCUMENTS = ("docs/operating.md", "docs/runbook.md")
pytestmark = pytest.mark.timeout(300)


def commands(text: str) -> list[str]:
    """The command lines of `campaign-jobs` in blocks of shell, without those that name something to be filled in."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith("campaign-jobs ")))


def run(system: LocalSystem, repository: Path, line: str) -> "subprocess.CompletedProcess[str]":
    words = shlex.split(line.replace("$ENV", "local"))[1:]
    paths = [str(repository / "layers/campaign_jobs/python"), str(repository / "cli")]
    return subprocess.run(
        [sys.executable, "-m", "campaign_jobs_cli", "--directory", str(system.directory), *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def quiet(system: LocalSystem, repository: Path) -> LocalSystem:
    """The system once its first heartbeats have passed every lane."""
    deadline = time.monotonic() + 150
    while (done := run(system, repository, "campaign-jobs --env $ENV doctor")).returncode != 0:
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(1)
    return system


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_that_a_document_begins_with_works(
    quiet: LocalSystem, repository: Path, document: str
) -> None:
    found = commands((repository / document).read_text(encoding="utf-8"))
    assert found
    for line in found:
        done = run(quiet, repository, line)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_that_a_document_mentions_exists(repository: Path, document: str) -> None:
    """Those too that stand in a sentence, or name something to be filled in."""
    from typer.main import get_command

    from campaign_jobs_cli.app import app

    text = (repository / document).read_text(encoding="utf-8")
    mentioned = re.findall(r"campaign-jobs (?:--env \$ENV )?([a-z-]+(?: [a-z-]+)?)", text)
    known = get_command(app)
    for words in mentioned:
        name, _, second = words.partition(" ")
        command = known.commands.get(name)  # type: ignore[attr-defined]
        assert command is not None, words
        if hasattr(command, "commands"):
            assert second in command.commands, words


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_entry_begins_with_a_command_that_shows_the_state(repository: Path, document: str) -> None:
    text = (repository / document).read_text(encoding="utf-8")
    entries = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert len(entries) > 5
    without = [entry.partition("\n")[0] for entry in entries if not commands(entry)]
    assert without == []
