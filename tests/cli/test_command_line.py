"""What all commands share: where options may stand, exit codes, and that results go to standard output alone."""

import io
import json
import re
from pathlib import Path
from uuid import UUID

import pytest
from rich.console import Console
from rich.text import Text

from campaign_jobs_cli.app import common_first, run
from campaign_jobs_cli.errors import Declined
from campaign_jobs_cli.output import Format, Output, shown, visible


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


@pytest.mark.parametrize("content", ["{", '["no object"', None])
def test_a_local_system_whose_file_tells_nothing_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    file = tmp_path / "endpoints.json"
    if content is None:
        file.mkdir()
    else:
        file.write_text(content)
    assert run(["doctor", "--directory", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"{file} cannot be read")
    not_one = tmp_path / "file"
    not_one.touch()
    assert run(["doctor", "--directory", str(not_one)]) == 1
    assert "no local system is running" in capsys.readouterr().err


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


def test_who_hangs_up_when_asked_has_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO("")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    with pytest.raises(Declined):
        Output(notes=Console(file=io.StringIO())).confirm("Delete all?", yes=False)


def test_a_progress_bar_shows_a_name_as_it_is() -> None:
    written = io.StringIO()
    output = Output(notes=Console(file=written, width=100, force_terminal=True, color_system=None))
    with output.progress("Reading [red]people.csv\x07") as advance:
        advance(1)
    assert "Reading [red]people.csv\\x07" in written.getvalue()


HOSTILE = "\x1b]0;title\x07 [red]x[/red] \x9b2J \u202eetad \u2028 \ud800"


def test_nobodys_text_reaches_the_terminal_as_a_command() -> None:
    written = io.StringIO()
    console = Console(file=written, width=200, force_terminal=True, color_system=None)
    output = Output(results=console, notes=console)
    output.rows([{"name": HOSTILE}], columns=("name",), title=HOSTILE)
    output.record({HOSTILE: HOSTILE, "rows": [{HOSTILE: HOSTILE}]}, title=HOSTILE)
    output.line({}, HOSTILE)
    output.note(HOSTILE)
    printed = written.getvalue()
    # Rich's own commands set the style of a title.
    printed = re.sub("\x1b\\[[0-9;]*m", "", printed)
    assert not set(printed) & set("\x1b\x07\x9b\u202e\u2028\ud800")
    assert printed.count("[red]x[/red]") == 9
    assert visible("new\nline and ünïcödé 漢字 👩‍🚀") == "new\nline and ünïcödé 漢字 👩‍🚀"
    assert Text("kept") == shown(Text("kept"))


def test_json_holds_the_text_and_moves_no_terminal_either(capsys: pytest.CaptureFixture[str]) -> None:
    text = HOSTILE.replace("\ud800", "")
    Output(format=Format.JSON).record({"name": text})
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\x07\x9b\u202e\u2028")
    assert json.loads(printed) == {"name": text}


@pytest.mark.parametrize("width", range(20, 160, 10))
def test_no_table_loses_a_character(width: int) -> None:
    written = io.StringIO()
    row = {
        "id": UUID(int=7),
        "user_id": str(UUID(int=8)),
        "email": "somebody-with-a-long-name@example.org",
        "count": 3,
    }
    Output(results=Console(file=written, width=width)).rows([row], columns=tuple(row))
    printed = written.getvalue()
    assert sum(printed.count(character) for character in "78") == 2, printed
    assert printed.count("@") == 1 and printed.count("0") == 62
    if width >= 100:
        assert str(UUID(int=7)) in printed and str(UUID(int=8)) in printed, (
            "what is copied stays in one piece"
        )
