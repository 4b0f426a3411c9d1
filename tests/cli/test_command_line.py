"""What all commands share: where options may stand, exit codes, and that results go to standard output alone."""

import json
from pathlib import Path

import pytest

from campaign_jobs_cli.app import common_first, run
from campaign_jobs_cli.output import shown


def test_common_options_may_stand_behind_the_command() -> None:
    given = ["doctor", "--env", "prod", "--output=json", "--", "--env", "dev"]
    assert common_first(given) == ["--env", "prod", "--output=json", "doctor", "--", "--env", "dev"]
    assert common_first(["doctor", "--env"]) == ["--env", "doctor"]


def test_a_local_system_that_is_not_there_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", "--directory", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "make local" in printed.err and "--env" in printed.err


def test_wrong_usage_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["no-such-command"]) == 2
    assert run(["doctor", "--output", "yaml"]) == 2
    assert "yaml" in capsys.readouterr().err


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "Exit codes" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[bold]not markup[/bold]", "[link=https://example.com]x[/link]"])
def test_nobodys_text_is_markup(text: str) -> None:
    assert shown(text).plain == text
    assert shown({"text": text}).plain == json.dumps({"text": text})
